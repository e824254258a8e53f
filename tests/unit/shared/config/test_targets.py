"""Addresses of several orchestrators."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from tachikoma.config import channels as module
from tachikoma.config.channels import is_local, target_of
from tachikoma.errors import ConfigurationError, Unavailable

NAMES = {
    "one": ["10.0.0.1"], "two": ["10.0.0.2", "fd00::2"], "six": ["fd00::6"], "10.0.0.9": ["10.0.0.9"], "::1": ["::1"],
}  # fmt: skip


@pytest.fixture(autouse=True)
def names(monkeypatch: pytest.MonkeyPatch) -> None:
    def getaddrinfo(host: str, port: int, **_: Any) -> list[Any]:
        if host not in NAMES:
            raise socket.gaierror
        return [(None, None, 0, "", (address, port)) for address in NAMES[host]]

    monkeypatch.setattr(module.socket, "getaddrinfo", getaddrinfo)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("address", "target"),
    [
        ("one:1", "one:1"),
        ("dns:///one:1", "dns:///one:1"),
        ("one:1,two:2", "ipv4:10.0.0.1:1,10.0.0.2:2"),
        ("one:1, one:1", "ipv4:10.0.0.1:1"),
        ("unknown:1,10.0.0.9:2", "ipv4:10.0.0.9:2"),
        ("six:1,[::1]:2", "ipv6:[fd00::6]:1,[::1]:2"),
    ],
)
def test_several_addresses_become_one_target(address: str, target: str) -> None:
    assert target_of(address) == target


def test_unknown_names_are_reported() -> None:
    with pytest.raises(Unavailable, match="none of the names in a:1,b:2 is known"):
        target_of("a:1,b:2")


@pytest.mark.parametrize("address", ["one,two:2", "one:1,", "one:1,two:x"])
def test_a_mistake_in_a_list_is_reported(address: str) -> None:
    with pytest.raises(ConfigurationError, match="the address"):
        target_of(address)


def test_a_list_is_local_if_all_of_it_is() -> None:
    assert is_local("127.0.0.1:1,localhost:2")
    assert not is_local("127.0.0.1:1,one:2")
