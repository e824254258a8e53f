"""Where a call comes from, with and without proxies."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tachikoma_orchestrator.api.addresses import client_address, peer_address

PROXIES = [ip_network("10.0.0.0/8"), ip_network("2001:db8:1::/48")]
ADDRESSES = st.ip_addresses().map(str)


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        ("ipv4:127.0.0.1:4711", "127.0.0.1"),
        ("ipv6:%5B::1%5D:4711", "::1"),
        ("ipv6:[2001:db8::7]:4711", "2001:db8::7"),
        ("ipv6:%5B::ffff:192.0.2.7%5D:4711", "192.0.2.7"),
        ("unix:", ""),
        ("unix:/run/x", ""),
        ("", ""),
        ("ipv4:nonsense:1", ""),
    ],
)
def test_the_address_of_a_connection(peer: str, address: str) -> None:
    assert peer_address(peer) == address


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        # No proxy: what anybody says of others is not heard.
        ("192.0.2.1", [], "192.0.2.1"),
        ("192.0.2.1", ["198.51.100.9"], "192.0.2.1"),
        ("", ["198.51.100.9"], ""),
        # A proxy's word, with and without port, in one header or several.
        ("10.1.1.1", ["198.51.100.9"], "198.51.100.9"),
        ("10.1.1.1", ["198.51.100.9:4711"], "198.51.100.9"),
        ("10.1.1.1", ["[2001:db8:2::7]:4711"], "2001:db8:2::7"),
        ("10.1.1.1", ["2001:db8:2::7"], "2001:db8:2::7"),
        ("10.1.1.1", ["::ffff:198.51.100.9"], "198.51.100.9"),
        ("2001:db8:1::1", ["198.51.100.9"], "198.51.100.9"),
        ("10.1.1.1", ["198.51.100.9, 10.2.2.2"], "198.51.100.9"),
        ("10.1.1.1", ["198.51.100.9", "10.2.2.2"], "198.51.100.9"),
        # What the client itself put in front is its invention.
        ("10.1.1.1", ["192.168.0.1, 198.51.100.9"], "198.51.100.9"),
        ("10.1.1.1", ["10.3.3.3, 198.51.100.9, 10.2.2.2"], "198.51.100.9"),
        ("10.1.1.1", ["nonsense, 198.51.100.9"], "198.51.100.9"),
        # Unknown: it does not say, or says what is none.
        ("10.1.1.1", [], ""),
        ("10.1.1.1", [""], ""),
        ("10.1.1.1", ["unknown"], ""),
        ("10.1.1.1", ["198.51.100.9, "], ""),
        ("10.1.1.1", ["10.2.2.2"], ""),
    ],
)
def test_the_client_behind_proxies(peer: str, forwarded: list[str], client: str) -> None:
    assert client_address(peer, forwarded, PROXIES) == client


@given(ADDRESSES, st.lists(st.text(max_size=60), max_size=5))
def test_without_proxies_nothing_that_is_said_counts(peer: str, forwarded: list[str]) -> None:
    assert client_address(peer, forwarded, []) == peer


@given(st.lists(ADDRESSES | st.text(max_size=20), max_size=5), ADDRESSES)
def test_nobody_hides_behind_what_they_invent(invented: list[str], client: str) -> None:
    """Whatever a client sends, the proxy appends where it really is."""
    if any(ip_address(client) in network for network in PROXIES) or getattr(ip_address(client), "ipv4_mapped", None):
        return
    assert client_address("10.1.1.1", [*invented, client], PROXIES) == client
