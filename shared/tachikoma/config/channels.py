"""gRPC channels to the orchestrator: their target, proxies, and connections that died in silence."""

from __future__ import annotations

import os
import socket
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final

from tachikoma.errors import ConfigurationError, Unavailable
from tachikoma.vocabulary.addresses import HostPort, host_of

__all__ = ["KEEPALIVE_OPTIONS", "MAX_MESSAGE_BYTES", "is_local", "proxy_hint", "proxy_options", "target_of"]

#: Largest gRPC message in either direction: a request with its standard input, or a response with two streams of output
#: of up to 16 MiB each. Client and server must agree on it.
MAX_MESSAGE_BYTES: Final = 64 * 1024 * 1024

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
    if "," in address:
        return all(is_local(part.strip()) for part in address.split(","))
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
    """Return the end of a message about a failed connection: the proxy that it used; empty if it used none."""
    if is_local(address):
        return ""
    for name in _PROXY_VARIABLES:
        if value := os.environ.get(name):
            # A proxy's address may contain a password.
            shown = value.rpartition("@")[2]
            return f"; the connection uses the proxy {shown} of the variable {name}, no_proxy exempts hosts"
    return ""


def target_of(address: str) -> str:
    """Return gRPC's target for addresses. One address is its own target; of several, the names are looked up. Blocks.

    gRPC's policy `pick_first` connects to the first address that accepts, and continues with the next one when a
    connection ends (grpc/doc/load-balancing.md). A target has either one name or a list of IP addresses
    (grpc/doc/naming.md).

    Raises:
        Unavailable: none of several names is known.
        ConfigurationError: one of several addresses is not host:port.
    """
    places = [part.strip() for part in address.split(",")]
    if len(places) == 1:
        return address
    found: list[tuple[IPv4Address | IPv6Address, int]] = []
    try:
        parsed = [HostPort.parse(place) for place in places]
    except ValueError as error:
        raise ConfigurationError(f"the address {address}: {error}") from None
    for place in parsed:
        try:
            answers = socket.getaddrinfo(place.host.strip("[]"), place.port, type=socket.SOCK_STREAM)
        except OSError:
            # The others may be known.
            continue
        found += [(ip_address(answer[4][0]), place.port) for answer in answers]
    # A target has addresses of one family.
    family = 4 if any(ip.version == 4 for ip, _ in found) else 6
    usable = [f"{ip}:{port}" if family == 4 else f"[{ip}]:{port}" for ip, port in found if ip.version == family]
    if not usable:
        raise Unavailable(f"none of the names in {address} is known; check the address")
    return f"ipv{family}:{','.join(dict.fromkeys(usable))}"
