"""`host:port`, read and written."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tachikoma.vocabulary.addresses import MAX_PORT, HostPort, HostPorts, host_of, identity_place

NAMES = st.from_regex(r"[a-z0-9]([a-z0-9.-]{0,40}[a-z0-9])?", fullmatch=True)
HOSTS = NAMES | st.ip_addresses().map(str)
PORTS = st.integers(0, MAX_PORT)


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("localhost:8534", "localhost", 8534),
        ("10.0.0.7:0", "10.0.0.7", 0),
        ("[::1]:8534", "::1", 8534),
        ("[2001:db8::7]:65535", "2001:db8::7", 65535),
        ("orchestrator.example.org:443", "orchestrator.example.org", 443),
    ],
)
def test_an_address_is_read_and_written_the_same(text: str, host: str, port: int) -> None:
    assert HostPort.parse(text) == HostPort(host, port)
    assert str(HostPort(host, port)) == text


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "has no port"),
        ("localhost", "has no port"),
        ("[::1]", "has no port"),
        ("8534", "has no port"),
        (":8534", "has no host"),
        ("localhost:", "has the port ''"),
        ("localhost:http", "has the port 'http'"),
        ("localhost:-1", "has the port '-1'"),
        ("localhost:65536", "has the port '65536'"),
        ("localhost:²", "has the port '²'"),
        ("::1:8534", "has more than one colon"),
        ("a:b:1", "has more than one colon"),
        ("[::1:8534", "has unmatched brackets"),
        ("[::1]8534", "has unmatched brackets"),
        ("[localhost]:1", "has no IPv6 address in its brackets"),
        ("[]:1", "has no IPv6 address in its brackets"),
        ("http://localhost:1", "without a scheme, path, user or space"),
        ("a[b:1", "without a scheme, path, user or space"),
        ("user@localhost:1", "without a scheme, path, user or space"),
        ("local host:1", "without a scheme, path, user or space"),
    ],
)
def test_a_wrong_address_is_refused_with_its_mistake(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match="write ") as caught:
        HostPort.parse(text)
    assert repr(text) in str(caught.value)
    assert reason in str(caught.value)


@given(HOSTS, PORTS)
def test_reading_is_the_inverse_of_writing(host: str, port: int) -> None:
    address = HostPort(host, port)
    assert HostPort.parse(str(address)) == address
    assert host_of(str(address)) == host_of(host) == host


@given(st.text(max_size=30))
def test_any_text_is_an_address_or_a_value_error(text: str) -> None:
    try:
        address = HostPort.parse(text)
    except ValueError:
        return
    assert HostPort.parse(str(address)) == address


def test_a_host_without_a_port_is_found() -> None:
    assert host_of("[::1]") == "::1"
    assert host_of("2001:db8::7") == "2001:db8::7"
    assert host_of("10.0.0.7") == "10.0.0.7"


@pytest.mark.parametrize(
    ("listens", "reached"),
    [
        ("0.0.0.0:1", "127.0.0.1:1"),
        ("[::]:1", "[::1]:1"),
        ("10.0.0.7:1", "10.0.0.7:1"),
        ("localhost:1", "localhost:1"),
    ],
)
def test_a_server_on_all_addresses_is_reached_over_the_loopback(listens: str, reached: str) -> None:
    address = HostPort.parse(listens)
    assert str(address.loopback()) == reached
    assert address.unspecified is (listens != reached)


def test_the_port_that_was_taken_replaces_the_one_that_was_asked_for() -> None:
    assert str(HostPort.parse("[::1]:0").with_port(4711)) == "[::1]:4711"


@pytest.mark.parametrize("text", ["a:1", "a:1,b:2", "[::1]:8534,10.0.0.1:8534"])
def test_several_addresses_are_read_and_written(text: str) -> None:
    assert str(HostPorts.parse(text)) == text


@pytest.mark.parametrize("text", ["", ",", "a:1,", "a:1,b", "a:1;b:2", ",".join(["a:1"] * 17)])
def test_one_wrong_address_among_several_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"has no port|has no host|addresses|more than one colon|write host:port"):
        HostPorts.parse(text)


@pytest.mark.parametrize("text", ["unix:///run/spire.sock", "unix:/x"])
def test_the_socket_of_a_workload_api_stays_text_and_a_folder_becomes_a_path(text: str) -> None:
    assert identity_place(text) == text
    assert identity_place("/etc/x") == Path("/etc/x")
