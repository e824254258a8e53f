"""Addresses of this host are never reached by a proxy, and a message names the proxy of others."""

from __future__ import annotations

import pytest

from tachikoma.config.channels import KEEPALIVE_OPTIONS, is_local, proxy_hint, proxy_options

LOCAL = [
    "localhost:8534", "LOCALHOST:1", "localhost.:1", "a.localhost:1", "127.0.0.1:8534", "127.9.8.7:1", "[::1]:8534",
    "[::ffff:127.0.0.1]:1", "unix:/run/x", "unix:///run/x", "unix-abstract:x", "dns:localhost:1", "dns:///127.0.0.1:1",
    "ipv4:127.0.0.1:1", "ipv6:[::1]:1", "127.0.0.1:1, localhost:2",
]  # fmt: skip
REMOTE = [
    "example.org:8534", "10.0.0.7:8534", "[2001:db8::1]:1", "[::ffff:10.0.0.7]:1", "localhost.example.org:1",
    "notlocalhost:1", "127.example.org:1", "dns:///db:1", "ipv4:192.0.2.1:1", "0.0.0.0:1",
]  # fmt: skip


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("grpc_proxy", "https_proxy", "http_proxy"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("address", LOCAL)
def test_this_host_is_reached_directly(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "http://proxy:3128")
    assert is_local(address)
    assert proxy_options(address) == [("grpc.enable_http_proxy", 0)]
    assert proxy_hint(address) == ""


@pytest.mark.parametrize("address", REMOTE)
@pytest.mark.parametrize("name", ["grpc_proxy", "https_proxy", "http_proxy"])
def test_another_host_is_reached_through_the_proxy_which_a_message_names(
    address: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not is_local(address)
    assert proxy_options(address) == []
    assert proxy_hint(address) == ""
    monkeypatch.setenv(name, "http://user:secret@proxy:3128")
    assert f" the proxy proxy:3128 of the variable {name}" in proxy_hint(address)
    assert "secret" not in proxy_hint(address)


def test_the_first_variable_that_grpc_reads_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://third")
    monkeypatch.setenv("grpc_proxy", "http://first")
    assert "grpc_proxy" in proxy_hint("example.org:1")


def test_a_silent_connection_is_found_within_15_seconds() -> None:
    options = dict(KEEPALIVE_OPTIONS)
    assert options["grpc.keepalive_time_ms"] + options["grpc.http2.ping_timeout_ms"] <= 15_000
    assert options["grpc.http2.ping_timeout_ms"] == options["grpc.keepalive_timeout_ms"]
