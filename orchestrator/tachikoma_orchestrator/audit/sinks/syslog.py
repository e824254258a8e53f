"""Syslog as a sink: RFC 5424 over a unix socket, TCP (RFC 6587, octet counting) or TLS (RFC 5425)."""

from __future__ import annotations

import fcntl
import os
import platform
import socket
import ssl
import struct
import termios
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from urllib.parse import urlsplit

from tachikoma.audit.chain import encode
from tachikoma.audit.codes import code_row
from tachikoma.errors import ConfigurationError
from tachikoma.vocabulary.audit import ExecAuditLog
from tachikoma_orchestrator.audit.sinks.sink import SinkUnavailable

__all__ = ["SyslogSink", "syslog_message"]

#: Longest duration of one operation of a connection, and longest wait without progress.
SOCKET_SECONDS = 5.0
#: Longest duration of one `send`; shorter than the shipper's lock.
SEND_SECONDS = 15.0
#: Pause between two checks of the bytes that the receiver has not acknowledged.
POLL_SECONDS = 0.005
#: Bytes that are sent before the receiver must acknowledge them.
GROUP_BYTES = 64 * 1024
#: Facility "log audit" of RFC 5424, table 1.
FACILITY = 13


def syslog_message(event: ExecAuditLog, host: str) -> bytes:
    """Return an event as a message of RFC 5424; its text is the event as JSON."""
    priority = FACILITY * 8 + code_row(event.event).severity.syslog
    time_text = event.time.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    header = f"<{priority}>1 {time_text} {host} tachikoma {os.getpid()} {event.event} - "
    return header.encode() + encode(event.to_dict())


class SyslogSink:
    """A syslog server.

    Syslog has no acknowledgement. Over TCP and TLS an event counts as taken once the kernel of the other host has
    acknowledged it. Events that were under way when a connection broke are sent again; receivers recognize them by
    their number. A connection is never used again after a failure, since it may have ended within a frame.
    """

    def __init__(self, url: str) -> None:
        """Prepare a sink; it connects with the first event.

        Raises:
            ConfigurationError: the URL is not one of unix:///path, tcp://host:port and tls://host:port.
        """
        parts = urlsplit(url)
        try:
            port = parts.port
        except ValueError:
            port = None
        usable = bool(parts.path) if parts.scheme == "unix" else bool(parts.hostname and port)
        if parts.scheme not in ("unix", "tcp", "tls") or not usable:
            raise ConfigurationError(
                f"{url!r} is not an address of syslog; use unix:///dev/log, tcp://host:port or tls://host:port "
                "(UDP loses messages and is not supported)"
            )
        self.name = f"syslog:{url}"
        self._scheme, self._path = parts.scheme, parts.path
        self._address = (parts.hostname or "", port or 0)
        self._host = platform.node() or "-"
        self._socket: socket.socket | None = None

    def send(self, events: Sequence[ExecAuditLog]) -> None:
        """Send events and wait until the receiver has them. Raises SinkUnavailable."""
        messages = [syslog_message(event, self._host) for event in events]
        deadline = time.monotonic() + SEND_SECONDS
        sent = 0
        try:
            self._socket = self._socket or self._connect()
            for count in self._sending(self._socket, messages):
                sent += count
                if sent < len(messages) and time.monotonic() > deadline:
                    raise SinkUnavailable(f"{self.name} is slow", sent=sent)
        except OSError as error:
            self.close()
            raise SinkUnavailable(f"cannot reach {self.name}: {error.strerror or error}", sent=sent) from error

    def _sending(self, connection: socket.socket, messages: Sequence[bytes]) -> Iterator[int]:
        """Send messages, and yield the number of those that the receiver got at each step."""
        if self._scheme == "unix":
            for message in messages:
                connection.send(message)
                yield 1
            return
        _check_open(connection)
        for group in _groups([b"%d %s" % (len(message), message) for message in messages]):
            _send_acknowledged(connection, b"".join(group))
            yield len(group)

    def _connect(self) -> socket.socket:
        if self._scheme == "unix":
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        else:
            connection = socket.create_connection(self._address, timeout=SOCKET_SECONDS)
        try:
            connection.settimeout(SOCKET_SECONDS)
            if self._scheme == "unix":
                connection.connect(self._path)
            elif self._scheme == "tls":
                return ssl.create_default_context().wrap_socket(connection, server_hostname=self._address[0])
        except OSError:
            connection.close()
            raise
        return connection

    def close(self) -> None:
        """Close the connection; the next `send` opens another."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def _check_open(connection: socket.socket) -> None:
    """Raise OSError if the receiver has closed the connection, before anything is sent on it."""
    connection.setblocking(False)
    with suppress(BlockingIOError, ssl.SSLWantReadError):
        if connection.recv(1) == b"":
            raise OSError("the receiver closed the connection")
    connection.settimeout(SOCKET_SECONDS)


def _groups(frames: Sequence[bytes]) -> Iterator[list[bytes]]:
    """Divide frames into groups of at most `GROUP_BYTES`, or of one larger frame."""
    group: list[bytes] = []
    size = 0
    for frame in frames:
        if group and size + len(frame) > GROUP_BYTES:
            yield group
            group, size = [], 0
        group.append(frame)
        size += len(frame)
    if group:
        yield group


def _send_acknowledged(connection: socket.socket, data: bytes) -> None:
    """Send data, and wait until the kernel of the other host has acknowledged all of it.

    Raises:
        OSError: the connection failed, or made no progress for `SOCKET_SECONDS`.
    """
    connection.sendall(data)
    waiting = _unacknowledged(connection)
    deadline = time.monotonic() + SOCKET_SECONDS
    while waiting:
        if code := connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            raise OSError(code, os.strerror(code))
        if time.monotonic() > deadline:
            raise TimeoutError("the receiver does not acknowledge what was sent")
        time.sleep(POLL_SECONDS)
        before, waiting = waiting, _unacknowledged(connection)
        if waiting < before:
            deadline = time.monotonic() + SOCKET_SECONDS


def _unacknowledged(connection: socket.socket) -> int:
    """Return the number of sent bytes that the other host has not acknowledged (`tcp(7)`, SIOCOUTQ)."""
    count: int = struct.unpack("i", fcntl.ioctl(connection, termios.TIOCOUTQ, b"\0" * 4))[0]
    return count
