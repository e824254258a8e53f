"""Where a call comes from: the address of the connection, or, behind proxies that are configured, what they say."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from urllib.parse import unquote

__all__ = ["client_address", "peer_address"]

#: The name of the metadata in which proxies say it (as everywhere in HTTP), the nearest proxy's word last.
FORWARDED = "x-forwarded-for"


def _read(text: str) -> IPv4Address | IPv6Address | None:
    try:
        address = ip_address(text)
    except ValueError:
        return None
    # A server that listens on IPv6 sees clients of IPv4 in this form.
    return getattr(address, "ipv4_mapped", None) or address


def peer_address(peer: str) -> str:
    """The address in gRPC's `ipv4:127.0.0.1:4711` or `ipv6:%5B::1%5D:4711`; empty where there is none."""
    kind, _, rest = peer.partition(":")
    if kind not in ("ipv4", "ipv6"):
        return ""
    address = _read(unquote(rest).rpartition(":")[0].strip("[]"))
    return "" if address is None else str(address)


def _hop(text: str) -> IPv4Address | IPv6Address | None:
    """An address in the header: with or without a port."""
    text = text.strip()
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    return _read(text)


def client_address(peer: str, forwarded: Iterable[str], proxies: Sequence[IPv4Network | IPv6Network]) -> str:
    """The address of the client behind proxies; empty where it is not known, which no network contains.

    Args:
        peer: address of the connection.
        forwarded: values of the header, in the order in which they came.
        proxies: whose word is believed. Each tells of the one before it; the first that is none of them is the client,
            and what that one says of others is its own invention.
    """
    address = _read(peer)
    if address is None or not any(address in network for network in proxies):
        return peer
    hops = [hop for value in forwarded for hop in value.split(",")]
    for text in reversed(hops):
        hop = _hop(text)
        if hop is None:
            return ""
        if not any(hop in network for network in proxies):
            return str(hop)
    # A proxy that does not say for whom it calls.
    return ""
