"""Where events go when they leave Redis: files with a hash chain, syslog, standard output.

All of this blocks, and is called in a thread. A sink that cannot take an event says how many it did take; the rest is
sent again (`shipper.py`).
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import socket
import ssl
import struct
import termios
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import structlog

from tachikoma.audit.chain import CHECKPOINT_EVENTS, FIRST_PREV, MAX_LINE_BYTES, audit_files, line_digest
from tachikoma.audit.codes import code_row
from tachikoma.errors import ConfigurationError
from tachikoma.identity.signed_messages import AuditCheckpoint, sign
from tachikoma.identity.svid import SvidSource
from tachikoma.vocabulary.audit import ExecAuditLog

__all__ = ["FileSink", "Sink", "SinkAway", "StandardOutputSink", "SyslogSink", "syslog_message"]

log = structlog.get_logger(__name__)

#: Longest time one operation of a connection may take.
SOCKET_SECONDS = 5.0
#: Between looks at what a connection still holds back.
POLL_SECONDS = 0.005
#: Facility "log audit" of RFC 5424, table 1.
SYSLOG_FACILITY = 13


class SinkAway(Exception):
    """A sink does not take events now; the message says why.

    Attributes:
        sent: how many of those given it took before.
    """

    def __init__(self, message: str, *, sent: int = 0) -> None:
        super().__init__(message)
        self.sent = sent


class Sink(Protocol):
    """Takes events, in order."""

    #: For people, and the name its position is kept under.
    name: str

    def send(self, events: Sequence[ExecAuditLog]) -> None:
        """Take events. Raises SinkAway."""

    def close(self) -> None:
        """Let go of what it holds."""


def _dump(content: dict[str, Any]) -> bytes:
    return json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode()


class FileSink:
    """A hash chain in files; see `tachikoma.audit.chain`. It holds every event, and knows by itself where it stands."""

    def __init__(self, path: Path, identity: SvidSource, *, rotate_bytes: int) -> None:
        """Open the file, and go on where its last line stands.

        Args:
            path: the current file.
            identity: signs checkpoints.
            rotate_bytes: size after which the file is put aside and another begun.

        Raises:
            ConfigurationError: it cannot be written, or is written by another process, or is no audit log.
        """
        self.name = f"file:{platform.node()}:{path}"
        self._path = path
        self._identity = identity
        self._rotate_bytes = rotate_bytes
        #: Place in the trail of Redis after the last event, and its number.
        self.cursor = "0-0"
        self.seq = 0
        #: Events after the last checkpoint.
        self.unsigned = 0
        self._line = 0
        self._head = FIRST_PREV
        self._file_first_line = 1
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._fd = self._open()
            self._recover()
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigurationError(f"cannot go on with the audit log {path}: {error}") from error
        if self._line == 0:
            chain = {
                "writer": str(identity.current().spiffe_id),
                "host": platform.node(),
                "began": datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
            }
            self._append([self._next("chain", chain)])

    def _open(self) -> int:
        fd = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            raise OSError("another process writes it") from None
        self._size = os.fstat(fd).st_size
        return fd

    def _recover(self) -> None:
        """Find where the chain stands. What a crash left of a line is cut off: it is written again."""
        for file in reversed(audit_files(self._path)):
            with file.open("rb") as opened:
                start = max(0, opened.seek(0, os.SEEK_END) - 4 * MAX_LINE_BYTES)
                opened.seek(start)
                tail = opened.read()
            whole, _, torn = tail.rpartition(b"\n")
            if torn and file == self._path:
                log.warning("audit.torn_line", file=str(file), bytes=len(torn))
                os.ftruncate(self._fd, self._size - len(torn))
                self._size -= len(torn)
            lines = whole.split(b"\n")[1 if start else 0 :]
            if not whole or not lines:
                continue
            last = json.loads(lines[-1])
            self._line, self._head = int(last["line"]), line_digest(lines[-1])
            signed = False
            for line in reversed(lines):
                content = json.loads(line)
                signed = signed or "checkpoint" in content
                if "event" in content:
                    if self.cursor == "0-0":
                        self.cursor = str(content["event"]["cursor"])
                    self.seq = self.seq or int(content["event"]["seq"])
                    if signed and self.seq:
                        break
                    self.unsigned += not signed
            if file == self._path:
                with file.open("rb") as opened:
                    self._file_first_line = int(json.loads(opened.readline())["line"])
            else:
                self._file_first_line = self._line + 1
            return

    def _next(self, kind: str, content: Any) -> bytes:
        self._line += 1
        line = _dump({"line": self._line, "prev": self._head, kind: content})
        self._head = line_digest(line)
        return line

    def send(self, events: Sequence[ExecAuditLog]) -> None:
        before = (self._line, self._head, self.unsigned)
        lines, seq = [], self.seq
        try:
            for event in events:
                seq = event.seq or seq
                lines.append(self._next("event", event.to_dict()))
                self.unsigned += 1
                if self.unsigned >= CHECKPOINT_EVENTS:
                    lines.append(self._checkpoint(seq))
            self._append(lines)
        except OSError as error:
            self._line, self._head, self.unsigned = before
            raise SinkAway(f"cannot write the audit log {self._path}: {error.strerror}") from error
        self.cursor, self.seq = events[-1].cursor, seq

    def checkpoint(self) -> None:
        """Sign for what is there, if something is that nobody signed for. Raises SinkAway."""
        if not self.unsigned:
            return
        before = (self._line, self._head, self.unsigned)
        try:
            self._append([self._checkpoint(self.seq)])
        except OSError as error:
            self._line, self._head, self.unsigned = before
            raise SinkAway(f"cannot write the audit log {self._path}: {error.strerror}") from error

    def _checkpoint(self, seq: int) -> bytes:
        svid = self._identity.current()
        claims = AuditCheckpoint(
            iss=str(svid.spiffe_id), iat=int(time.time()), line=self._line, head=self._head, seq=seq
        )
        token = sign(svid, claims)
        self.unsigned = 0
        # This is what shows a cut off end, once the log has left this host.
        log.info("audit.checkpoint", file=str(self._path), line=claims.line, head=claims.head, token=token)
        return self._next("checkpoint", token)

    def _append(self, lines: Sequence[bytes]) -> None:
        data = b"".join(line + b"\n" for line in lines)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(self._fd, view) :]
            os.fdatasync(self._fd)
        except OSError:
            # Nothing of it counts: the lines will be others when it is tried again.
            os.ftruncate(self._fd, self._size)
            raise
        self._size += len(data)
        if self._size >= self._rotate_bytes:
            self._rotate()

    def _rotate(self) -> None:
        name = f"{self._path.stem}-{self._file_first_line:012}{self._path.suffix}"
        self._path.rename(self._path.with_name(name))
        old, self._fd = self._fd, self._open()
        os.close(old)
        self._file_first_line = self._line + 1
        folder = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def close(self) -> None:
        os.close(self._fd)


class StandardOutputSink:
    """One JSON object a line."""

    name = "stdout"

    def __init__(self, descriptor: int = 1) -> None:
        self._descriptor = descriptor

    def send(self, events: Sequence[ExecAuditLog]) -> None:
        for number, event in enumerate(events):
            view = memoryview(_dump(event.to_dict()) + b"\n")
            try:
                while view:
                    view = view[os.write(self._descriptor, view) :]
            except OSError as error:
                raise SinkAway(f"cannot write to standard output: {error.strerror}", sent=number) from error

    def close(self) -> None:
        pass


def syslog_message(event: ExecAuditLog, host: str) -> bytes:
    """An event as a message of RFC 5424; its text is the event as JSON."""
    priority = SYSLOG_FACILITY * 8 + code_row(event.event).severity.syslog
    time_text = event.time.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    header = f"<{priority}>1 {time_text} {host} tachikoma {os.getpid()} {event.event} - "
    return header.encode() + _dump(event.to_dict())


class SyslogSink:
    """RFC 5424 over a unix socket, TCP (RFC 6587, octet counting) or TLS (RFC 5425).

    Syslog has no acknowledgement. Over TCP an event counts as taken when the other host's kernel has acknowledged it;
    what was under way when a connection broke is sent again, and can be told by its number.
    """

    def __init__(self, url: str) -> None:
        """Prepare a sink; it connects when it is used.

        Raises:
            ConfigurationError: the URL is none of unix:///path, tcp://host:port and tls://host:port.
        """
        parts = urlsplit(url)
        try:
            port = parts.port
        except ValueError:
            port = None
        usable = bool(parts.path) if parts.scheme == "unix" else bool(parts.hostname and port)
        if parts.scheme not in ("unix", "tcp", "tls") or not usable:
            raise ConfigurationError(
                f"{url!r} is no way to reach syslog; use unix:///dev/log, tcp://host:port or tls://host:port "
                "(UDP loses messages, and is not offered)"
            )
        self.name = f"syslog:{url}"
        self._scheme, self._path = parts.scheme, parts.path
        self._address = (parts.hostname or "", port or 0)
        self._host = platform.node() or "-"
        self._socket: socket.socket | None = None

    def send(self, events: Sequence[ExecAuditLog]) -> None:
        messages = [syslog_message(event, self._host) for event in events]
        sent = 0
        try:
            connection = self._socket = self._socket or self._connect()
            if self._scheme == "unix":
                for message in messages:
                    connection.send(message)
                    sent += 1
                return
            frames = [b"%d %s" % (len(message), message) for message in messages]
            sent = self._send_stream(connection, frames)
            if sent < len(frames):
                raise OSError("what was sent is not acknowledged")
        except OSError as error:
            self.close()
            raise SinkAway(f"cannot reach {self.name}: {error.strerror or error}", sent=sent) from error

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

    def _send_stream(self, connection: socket.socket, frames: Sequence[bytes]) -> int:
        """Send frames and wait until they are acknowledged; how many surely are."""
        # A peer that has gone is found before anything is given to it.
        connection.setblocking(False)
        with suppress(BlockingIOError, ssl.SSLWantReadError):
            if connection.recv(1) == b"":
                raise OSError("the other side closed the connection")
        connection.settimeout(SOCKET_SECONDS)
        ends, total = [], 0
        for frame in frames:
            total += len(frame)
            ends.append(total)
        acknowledged = 0
        try:
            connection.sendall(b"".join(frames))
            deadline = time.monotonic() + SOCKET_SECONDS
            while time.monotonic() < deadline:
                held = struct.unpack("i", fcntl.ioctl(connection, termios.TIOCOUTQ, b"\0" * 4))[0]
                if connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                    break
                acknowledged = max(0, total - held)
                if not held:
                    return len(frames)
                time.sleep(POLL_SECONDS)
        except OSError as error:
            raise SinkAway(f"cannot reach {self.name}: {error.strerror or error}") from error
        return 0 if self._scheme == "tls" else sum(end <= acknowledged for end in ends)

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
