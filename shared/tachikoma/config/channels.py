"""Options of gRPC channels to the orchestrator: proxies, and connections that died in silence."""

from __future__ import annotations

import os
from ipaddress import IPv6Address, ip_address
from typing import Final

from tachikoma.vocabulary.addresses import host_of

__all__ = ["KEEPALIVE_OPTIONS", "is_local", "proxy_hint", "proxy_options"]

#: A call may wait for hours, so a silent connection is tested after 8 s, and the answer may take 5 s. The server uses
#: the same times. gRPC ends a connection by the ping timeout, whose default is a minute, and not by the keepalive's.
KEEPALIVE_OPTIONS: Final = (
    ("grpc.keepalive_time_ms", 8_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.ping_timeout_ms", 5_000),
)

#: The variables from which gRPC takes a proxy, the first one that is set (grpc/doc/environment_variables.md).
_PROXY_VARIABLES: Final = ("grpc_proxy", "https_proxy", "http_proxy")
#: The schemes of names in gRPC that come before a host (grpc/doc/naming.md).
_SCHEMES: Final = ("dns:", "ipv4:", "ipv6:")


def is_local(address: str) -> bool:
    """Return whether an address is on this host: a unix socket, a loopback address, or a name of localhost."""
    if address.startswith(("unix:", "unix-abstract:")):
        return True
    for scheme in _SCHEMES:
        address = address.removeprefix(scheme)
    host = host_of(address.rpartition("/")[2]).lower().rstrip(".")
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        ip = ip_address(host.strip("[]"))
    except ValueError:
        return False
    mapped = ip.ipv4_mapped if isinstance(ip, IPv6Address) else None
    return (mapped or ip).is_loopback


def proxy_options(address: str) -> list[tuple[str, int]]:
    """Return the options that keep a connection to an address of this host away from proxies; none for others."""
    return [("grpc.enable_http_proxy", 0)] if is_local(address) else []


def proxy_hint(address: str) -> str:
    """Return the end of a message about a connection that failed: which proxy it used; empty if none."""
    if is_local(address):
        return ""
    for name in _PROXY_VARIABLES:
        if value := os.environ.get(name):
            # A proxy's address may contain a password.
            shown = value.rpartition("@")[2]
            return f"; the connection uses the proxy {shown} of the variable {name}, no_proxy exempts hosts"
    return ""
