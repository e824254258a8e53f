"""The address of a caller: that of the connection, or the one that configured proxies report."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from urllib.parse import unquote

from tachikoma.vocabulary.addresses import host_of

__all__ = ["FORWARDED", "client_address", "peer_address"]

#: The metadata in which proxies report their client, as the HTTP header of the same name; the nearest proxy's is last.
FORWARDED = "x-forwarded-for"


def peer_address(peer: str) -> str:
    """Return the address in gRPC's `ipv4:127.0.0.1:4711` or `ipv6:%5B::1%5D:4711`; empty if there is none."""
    kind, _, rest = peer.partition(":")
    if kind not in ("ipv4", "ipv6"):
        return ""
    address = _parse(unquote(rest))
    return "" if address is None else str(address)


def client_address(peer: str, forwarded: Iterable[str], proxies: Sequence[IPv4Network | IPv6Network]) -> str:
    """Return the address of the client in front of trusted proxies; empty if it is unknown, which no network contains.

    Each trusted proxy reports the address that connected to it. The first reported address that is no trusted proxy is
    the client. Whatever that client itself reported is ignored: it could be invented.

    Args:
        peer: address of the connection.
        forwarded: values of the header, in the order in which they came.
        proxies: networks of the trusted proxies.
    """
    address = _parse(peer)
    if address is None or not any(address in network for network in proxies):
        return peer
    hops = [hop.strip() for value in forwarded for hop in value.split(",")]
    for text in reversed(hops):
        hop = _parse(text)
        if hop is None:
            return ""
        if not any(hop in network for network in proxies):
            return str(hop)
    # The proxy does not report its client.
    return ""


def _parse(text: str) -> IPv4Address | IPv6Address | None:
    """Return the IP address in `host`, `host:port` or `[host]:port`; None if there is none."""
    try:
        address = ip_address(host_of(text))
    except ValueError:
        return None
    # A server that listens on IPv6 sees clients of IPv4 in this form.
    return getattr(address, "ipv4_mapped", None) or address
