"""Network addresses as people write them in settings: `host:port`, with IPv6 addresses in brackets.

The form is that of the authority in a URL (RFC 3986 section 3.2) without a user: `db1:6379`, `10.0.0.7:8534`,
`[::1]:8534`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

__all__ = ["MAX_PORT", "HostPort", "HostPorts", "host_of", "identity_place"]

#: Largest TCP port.
MAX_PORT = 65535
#: Most addresses of one service.
MAX_PLACES = 16


@dataclass(frozen=True, slots=True)
class HostPort:
    """A host and a TCP port."""

    #: A DNS name or an IP address, without brackets.
    host: str
    #: 0 to 65535; 0 asks the operating system for a free port when something listens.
    port: int

    @classmethod
    def parse(cls, text: str) -> HostPort:
        """Read `host:port`, `192.0.2.1:port` or `[::1]:port`.

        Raises:
            ValueError: the text is not an address; the message says which part is wrong.
        """
        host, port = _split(text)
        if port is None:
            raise ValueError(f"{text!r} has no port; write host:port, for instance localhost:8534 or [::1]:8534")
        if not host:
            raise ValueError(f"{text!r} has no host; write host:port, for instance localhost:8534 or [::1]:8534")
        if not (port.isascii() and port.isdecimal() and int(port) <= MAX_PORT):
            raise ValueError(f"{text!r} has the port {port!r}; write host:port, the port from 0 to {MAX_PORT}")
        return cls(host, int(port))

    def __str__(self) -> str:
        """Return the form that `parse` reads."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def ip(self) -> IPv4Address | IPv6Address | None:
        """The host as an IP address; None if it is a name."""
        try:
            return ip_address(self.host)
        except ValueError:
            return None

    @property
    def unspecified(self) -> bool:
        """True for 0.0.0.0 and ::, which stand for all addresses of a host and cannot be connected to."""
        return self.ip is not None and self.ip.is_unspecified

    def with_port(self, port: int) -> HostPort:
        """Return the same host with another port."""
        return replace(self, port=port)

    def loopback(self) -> HostPort:
        """Return the address at which the host itself reaches a server that listens here."""
        if self.ip is None or not self.ip.is_unspecified:
            return self
        return replace(self, host="127.0.0.1" if self.ip.version == 4 else "::1")


@dataclass(frozen=True, slots=True)
class HostPorts:
    """The addresses of a service that several servers offer. A client uses the first one that accepts."""

    places: tuple[HostPort, ...]

    @classmethod
    def parse(cls, text: str) -> HostPorts:
        """Read one address or several with commas.

        Raises:
            ValueError: one is not an address, or there are too many.
        """
        places = [part.strip() for part in text.split(",")]
        if len(places) > MAX_PLACES:
            raise ValueError(f"has {len(places)} addresses; at most {MAX_PLACES} are allowed")
        return cls(tuple(map(HostPort.parse, places)))

    def __str__(self) -> str:
        """Return the form that `parse` reads."""
        return ",".join(map(str, self.places))


def host_of(text: str) -> str:
    """Return the host of `host`, `host:port`, `[::1]`, `[::1]:port` or a bare IPv6 address; it is not validated."""
    return text if text.count(":") > 1 and not text.startswith("[") else _split(text)[0]


def _split(text: str) -> tuple[str, str | None]:
    """Split into host and the text of the port; None without one.

    Raises:
        ValueError: brackets are missing, are not closed, or contain something else than an IPv6 address.
    """
    if text.startswith("["):
        host, closed, rest = text[1:].partition("]")
        if not closed or (rest and not rest.startswith(":")):
            raise ValueError(f"{text!r} has unmatched brackets; write [::1]:8534")
        if not _is_ipv6(host):
            raise ValueError(f"{text!r} has no IPv6 address in its brackets; write [::1]:8534")
        return host, rest[1:] if rest else None
    host, colon, port = text.rpartition(":")
    if not colon:
        return text, None
    if any(character.isspace() or character in "/@[]" for character in host):
        raise ValueError(f"{text!r} is not host:port; write it without a scheme, path, user or space")
    if ":" in host:
        raise ValueError(f"{text!r} has more than one colon; write an IPv6 address in brackets, as [::1]:8534")
    return host, port


def _is_ipv6(text: str) -> bool:
    try:
        IPv6Address(text)
    except ValueError:
        return False
    return True


def identity_place(value: str | Path) -> str | Path:
    """Return where an identity is: `unix:///path` of a Workload API as it is, other text as the path of a folder."""
    return value if str(value).startswith("unix:") else Path(value)
