"""Files with a hash chain as a sink; `tachikoma.audit.chain` describes their format."""

from __future__ import annotations

import fcntl
import json
import os
import platform
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import structlog

from tachikoma.audit.chain import CHECKPOINT_EVENTS, ChainEnd, audit_files, read_end
from tachikoma.errors import ConfigurationError
from tachikoma.identity.signed_messages import AuditCheckpoint
from tachikoma.identity.signing import sign
from tachikoma.identity.svid import SvidSource
from tachikoma.vocabulary.audit import ExecAuditLog
from tachikoma_orchestrator.audit.sinks.sink import SinkUnavailable

__all__ = ["CHECKPOINT_SECONDS", "FileSink"]

log = structlog.get_logger(__name__)

#: Longest time that an event waits for a checkpoint, in seconds.
CHECKPOINT_SECONDS = 60.0
#: The first bytes of every line.
_LINE_BEGIN = b'{"line":'


class _Draft:
    """Lines that continue a chain and are not written yet."""

    def __init__(self, end: ChainEnd, identity: SvidSource) -> None:
        self.lines: list[bytes] = []
        #: The end of the chain once the lines are written.
        self.end = end
        #: The checkpoints among the lines, with their tokens.
        self.checkpoints: list[tuple[AuditCheckpoint, str]] = []
        self._identity = identity

    def begin(self) -> None:
        """Add the first line of a chain."""
        content = {
            "writer": str(self._identity.current().spiffe_id),
            "host": platform.node(),
            "began": datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        }
        self._add(*self.end.append("chain", content))

    def event(self, event: ExecAuditLog) -> None:
        """Add an event, and a checkpoint if it is the last of `CHECKPOINT_EVENTS`."""
        self._add(*self.end.append_event(event))
        if self.end.unsigned >= CHECKPOINT_EVENTS:
            self.checkpoint()

    def checkpoint(self) -> None:
        """Add a signature of the chain up to here."""
        svid = self._identity.current()
        claims = AuditCheckpoint(
            iss=str(svid.spiffe_id), iat=int(time.time()), line=self.end.line, head=self.end.head, seq=self.end.seq
        )
        token = sign(svid, claims)
        self.checkpoints.append((claims, token))
        self._add(*self.end.append_checkpoint(token))

    def _add(self, line: bytes, end: ChainEnd) -> None:
        self.lines.append(line)
        self.end = end


class FileSink:
    """A chain of files. It contains every event, and its position in the trail.

    The state of the sink is the end of the chain on disk. It changes only once lines are on the disk: after a write
    that fails, the same events are written again. Bytes that a failed write left in the file are removed before the
    next one. All methods may be called from any thread; they exclude each other.
    """

    def __init__(self, path: Path, identity: SvidSource, *, rotate_bytes: int) -> None:
        """Open the file, and continue the chain after its last complete line.

        Args:
            path: the current file.
            identity: signs checkpoints.
            rotate_bytes: size of a file in bytes after which the next event starts a new file.

        Raises:
            ConfigurationError: the file cannot be written, is written by another process, or is not an audit log.
        """
        self.name = f"file:{platform.node()}:{path}"
        self._path = path
        self._identity = identity
        self._rotate_bytes = rotate_bytes
        self._lock = threading.Lock()
        #: Size of the file up to the end of the chain; further bytes are left from a write that failed.
        self._size = 0
        self._torn = False
        #: False until the names of new files are on the disk.
        self._folder_synced = False
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._fd = self._open()
            try:
                self._end = read_end(audit_files(path))
                self._size = self._complete_bytes()
                self._first_line = self._read_first_line()
                self._begin()
            except BaseException:
                os.close(self._fd)
                raise
        except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise ConfigurationError(f"cannot continue the audit log {path}: {error}") from error
        #: Time since which events wait for a checkpoint, by the monotonic clock.
        self._unsigned_since = time.monotonic()

    # --- state --------------------------------------------------------------------------------------------------------

    @property
    def cursor(self) -> str:
        """Place of the last event in the trail of Redis; `0-0` if there is none."""
        return self._end.cursor

    @property
    def seq(self) -> int:
        """Number of the last event that has one; 0 if there is none."""
        return self._end.seq

    @property
    def unsigned(self) -> int:
        """Number of events after the last checkpoint."""
        return self._end.unsigned

    # --- writing ------------------------------------------------------------------------------------------------------

    def send(self, events: Sequence[ExecAuditLog]) -> None:
        """Append events, and a checkpoint after each `CHECKPOINT_EVENTS`. Takes all or none. Raises SinkUnavailable."""
        with self._lock:
            draft = _Draft(self._end, self._identity)
            for event in events:
                draft.event(event)
            # Only here: a file that begins with an event says by itself where the trail continues.
            self._write(draft, rotate=self._size >= self._rotate_bytes)

    def checkpoint(self) -> None:
        """Append a checkpoint if there are events without one. Raises SinkUnavailable."""
        with self._lock:
            if self._end.unsigned:
                draft = _Draft(self._end, self._identity)
                draft.checkpoint()
                self._write(draft)

    def checkpoint_if_due(self) -> None:
        """Append a checkpoint if an event has waited for one for `CHECKPOINT_SECONDS`. Raises SinkUnavailable."""
        if self._end.unsigned and time.monotonic() - self._unsigned_since >= CHECKPOINT_SECONDS:
            self.checkpoint()

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            os.close(self._fd)

    def _begin(self) -> None:
        """Append the first line of a new chain."""
        if not self._end.line:
            draft = _Draft(self._end, self._identity)
            draft.begin()
            self._append(draft.lines)
            self._end = draft.end

    def _write(self, draft: _Draft, *, rotate: bool = False) -> None:
        try:
            if rotate or not self._is_current():
                self._rotate()
            self._append(draft.lines)
        except OSError as error:
            raise SinkUnavailable(f"cannot write the audit log {self._path}: {error.strerror or error}") from error
        if draft.checkpoints or not self._end.unsigned:
            self._unsigned_since = time.monotonic()
        self._end = draft.end
        for claims, token in draft.checkpoints:
            # A log on another host shows with this that the end of the chain was removed. Only what is on the disk is
            # logged: a checkpoint that the chain does not contain would accuse it.
            log.info("audit.checkpoint", file=str(self._path), line=claims.line, head=claims.head, token=token)

    def _append(self, lines: Sequence[bytes]) -> None:
        """Append lines durably. Raises OSError; the file is then restored, now or before the next append."""
        self._restore()
        data = b"".join(line + b"\n" for line in lines)
        self._torn = True
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(self._fd, view) :]
            os.fdatasync(self._fd)
        except OSError:
            with suppress(OSError):
                self._restore()
            raise
        self._torn = False
        self._size += len(data)

    def _restore(self) -> None:
        """Complete what a failed operation left undone. Raises OSError."""
        if self._torn:
            os.ftruncate(self._fd, self._size)
            self._torn = False
        if not self._folder_synced:
            self._sync_folder()
            self._folder_synced = True

    def _sync_folder(self) -> None:
        folder = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    # --- files --------------------------------------------------------------------------------------------------------

    def _rotate(self) -> None:
        """Give the full file its final name, and open a new one. Raises OSError; the next call then continues."""
        # A full file gets no more lines, so nothing of a failed write may remain in it.
        self._restore()
        if self._is_current():
            name = f"{self._path.stem}-{self._first_line:012}{self._path.suffix}"
            self._path.rename(self._path.with_name(name))
        full, self._fd = self._fd, self._open()
        os.close(full)
        self._size, self._first_line = 0, self._end.line + 1
        self._folder_synced = False

    def _is_current(self) -> bool:
        """Return False between the two steps of a rotation, when `path` is not the open file. Raises OSError."""
        try:
            return os.path.samestat(self._path.stat(), os.fstat(self._fd))
        except FileNotFoundError:
            return False

    def _open(self) -> int:
        """Open the current file for this process alone, and create it if there is none. Raises OSError."""
        fd = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            raise OSError("another process writes it") from None
        except OSError:
            os.close(fd)
            raise
        return fd

    def _complete_bytes(self) -> int:
        """Return the size of the current file up to its last line break, and remove what a crash left after it.

        Raises:
            OSError: the file cannot be read or changed.
            ValueError: the file is not an audit log.
        """
        size = os.fstat(self._fd).st_size
        torn = _bytes_after_last_line(self._fd, size)
        if torn:
            if torn == size and not _LINE_BEGIN.startswith(os.pread(self._fd, len(_LINE_BEGIN), 0)):
                raise ValueError("it is not an audit log")
            log.warning("audit.torn_line", file=str(self._path), bytes=torn)
            os.ftruncate(self._fd, size - torn)
        return size - torn

    def _read_first_line(self) -> int:
        """Return the number of the current file's first line; of an empty file, of the line that it will begin with."""
        with self._path.open("rb") as opened:
            line = opened.readline()
        return int(json.loads(line)["line"]) if line else self._end.line + 1


def _bytes_after_last_line(fd: int, size: int) -> int:
    """Return the number of bytes after the last line break of a file."""
    position, block = size, 64 * 1024
    while position:
        begin = max(0, position - block)
        found = os.pread(fd, position - begin, begin).rfind(b"\n")
        if found >= 0:
            return size - (begin + found + 1)
        position = begin
    return size
