"""The spool: the output of a command, on the agent's disk until the receipt is delivered.

Output moves from the command's pipe into the spool and from there to Redis. So a command continues while Redis is
unavailable, up to a bound. A worker that is restarted finds every byte: it moves from pipe to file within one system
call (splice(2)), and is in one of the two whenever the worker dies. Nothing is synced: a crash of the host ends the
command as well.

A file is a sequence of records: a header (kind, number, time in microseconds, length), then the content. The first
record is the START with the `Facts`; then follow chunks of output; the END with the `Ending` is the last one. A header
is written before its content, and its length after the content. If the length is 0, the content extends to the end of
the file. The number in the header of the START says why the command is ended early; 0 for a command that runs on.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

import structlog
from pydantic import ValidationError

from tachikoma.streams.frames import STDERR, STDOUT
from tachikoma.vocabulary.clock import now_micros
from tachikoma_worker.output.records import Ending, Facts, Totals

__all__ = ["CHUNK_BYTES", "Chunk", "Spool", "SpoolError", "StoredChunk", "host_boot", "stored_chunks"]

log = structlog.get_logger(__name__)

#: Largest chunk, in whole pages. It is a little below 256 KiB: with its entry it then fits into the 256 KiB class of
#: Redis's allocator, whose next class is 320 KiB.
CHUNK_BYTES = 252 * 1024
#: Largest START or END that is read.
MAX_STATE_BYTES = 64 * 1024 * 1024
#: Largest spool in memory, which is used if the disk refuses data.
MEMORY_BYTES = 4 * 1024 * 1024
#: No space, quota exceeded, or a failing disk: the output then goes through memory.
_DISK_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS})

_HEADER = struct.Struct("=B7xQQQ")
_LENGTH = struct.Struct("=Q")
#: The number in a header, and its place there.
_NUMBER, _NUMBER_AT = struct.Struct("=Q"), 8


class _Kind(IntEnum):
    """Kind of a record; the kinds of output are those of its streams."""

    STDOUT = STDOUT
    STDERR = STDERR
    START = 100
    END = 101


class SpoolError(Exception):
    """A spool cannot be created or written, or a file is not a spool."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of output."""

    #: The stream.
    kind: int
    #: Number of the chunk, from 1, over both streams.
    seq: int
    #: When it was read, in microseconds since the epoch.
    time_us: int
    data: bytes


@dataclass(frozen=True, slots=True)
class StoredChunk:
    """The place of a chunk in a spool's file."""

    kind: int
    seq: int
    time_us: int
    #: Offset of its first byte in the output of both streams, and in the file.
    offset: int
    begin: int
    length: int


def host_boot() -> str:
    """Return the id of the kernel's current run (random(4))."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


class Spool:
    """The spool of one execution: one side appends, the other reads. Both belong to one event loop."""

    def __init__(self, path: Path, descriptor: int, facts: Facts, *, max_bytes: int) -> None:
        """Take over an open file; use `create` or `open`."""
        self._path = path
        self._descriptor = descriptor
        self._max_bytes = max_bytes
        #: Offsets of the next record to write, the next record to read, and the record after those from `chunks`.
        self._written = 0
        self._read = 0
        self._next = 0
        self._seq = facts.totals.seq
        #: Bytes of output so far, of both streams, with those that the spool no longer contains.
        self.offset = facts.totals.offset
        #: Whether the file is memory, because the disk refused data. A later worker cannot find it.
        self._in_memory = False
        #: Facts of the start.
        self.start = facts
        #: Why the command is ended early, as a number of the caller's; 0 while it runs on.
        self.stopped = 0
        #: The ending, once it is known.
        self.end: Ending | None = None

    @classmethod
    def create(cls, folder: Path, exec_id: str, facts: Facts, *, max_bytes: int) -> Spool:
        """Create the spool of a command that is about to start.

        Args:
            folder: the folder of all spools.
            exec_id: the execution.
            facts: facts that a later worker needs to continue the execution.
            max_bytes: size at which the spool counts as full.

        Raises:
            SpoolError: the spool cannot be written, so nothing may be started.
        """
        path = folder / exec_id
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise SpoolError(f"cannot write {path}: {error.strerror}") from error
        spool = cls(path, descriptor, facts, max_bytes=max_bytes)
        try:
            spool._append_state(_Kind.START, facts)
        except OSError as error:
            spool.remove()
            raise SpoolError(f"cannot write {path}: {error.strerror}") from error
        spool._read = spool._written
        return spool

    @classmethod
    def open(cls, folder: Path, exec_id: str, *, max_bytes: int) -> Spool:
        """Open the spool of an earlier worker, to read it from its beginning and append at its end.

        Args:
            folder: the folder of all spools.
            exec_id: the execution.
            max_bytes: size at which the spool counts as full.

        Raises:
            SpoolError: there is no spool, or it was written before the host was restarted.
        """
        path = folder / exec_id
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise SpoolError(f"cannot read {path}: {error.strerror}") from error
        try:
            return cls._recover(path, descriptor, max_bytes)
        except (OSError, ValueError, struct.error) as error:
            os.close(descriptor)
            raise SpoolError(f"{path} is no spool of this run of the host: {error}") from None

    @classmethod
    def _recover(cls, path: Path, descriptor: int, max_bytes: int) -> Spool:
        """Read the records of an earlier worker, and complete the length of the last chunk if it died before that."""
        size = os.fstat(descriptor).st_size
        spool: Spool | None = None
        position = 0
        while position + _HEADER.size <= size:
            kind, seq, _, length = _HEADER.unpack(os.pread(descriptor, _HEADER.size, position))
            begin = position + _HEADER.size
            content = length or size - begin
            if begin + content > size:
                raise ValueError("it ends in the middle of a record")
            if kind in (_Kind.START, _Kind.END) and content > MAX_STATE_BYTES:
                raise ValueError("a record is too long")
            if spool is None:
                spool = cls(path, descriptor, _read_facts(descriptor, kind, begin, content), max_bytes=max_bytes)
                spool._read = begin + content
                spool.stopped = seq
            elif kind == _Kind.END:
                # An incomplete END was never acted upon, so it is the same as none.
                with suppress(ValidationError):
                    spool.end = Ending.model_validate_json(os.pread(descriptor, content, begin))
                    spool._written = position
                break
            elif content:
                spool._seq = seq
                spool.offset += content
                if not length:
                    os.pwrite(descriptor, _LENGTH.pack(content), begin - _LENGTH.size)
            position = begin + content if content else position
            spool._written = position
            if not content:
                break
        if spool is None:
            raise ValueError("it is empty")
        return spool

    # --- the side that appends ----------------------------------------------------------------------------------------

    def take(self, kind: int, pipe: int) -> int:
        """Move the bytes that a pipe contains now, up to a chunk, to the end of the spool.

        Args:
            kind: the stream.
            pipe: descriptor of the pipe's read end.

        Returns:
            The number of bytes; 0 if the pipe is closed.

        Raises:
            BlockingIOError: the pipe is empty.
            SpoolError: the disk refuses the data. Nothing was taken out of the pipe.
        """
        begin = self._written + _HEADER.size
        try:
            os.pwrite(self._descriptor, _HEADER.pack(kind, self._seq + 1, now_micros(), 0), self._written)
            moved = os.splice(pipe, self._descriptor, CHUNK_BYTES, offset_dst=begin, flags=os.SPLICE_F_NONBLOCK)
        except OSError as error:
            if error.errno in _DISK_ERRORS:
                raise SpoolError(f"cannot write {self._path}: {error.strerror}") from None
            raise
        if moved:
            os.pwrite(self._descriptor, _LENGTH.pack(moved), begin - _LENGTH.size)
            self._written = begin + moved
            self._seq += 1
            self.offset += moved
        return moved

    @property
    def full(self) -> bool:
        """True if the spool must be restarted before it takes more."""
        return self._written >= (MEMORY_BYTES if self._in_memory else self._max_bytes)

    def renew(self, totals: Totals) -> None:
        """Restart the spool without the chunks that it contains. Allowed only when all of them were read.

        Args:
            totals: the position of the output.

        Raises:
            SpoolError: the disk refuses the data. The spool is unchanged.
        """
        assert not self.pending
        facts = self.start.model_copy(update={"totals": totals})
        if self._in_memory:
            os.ftruncate(self._descriptor, 0)
            self._written = self._read = 0
            self._append_state(_Kind.START, facts)
            self._read = self._written
            return
        beside = self._path.with_name(f".{self._path.name}")
        fresh = Spool.create(beside.parent, beside.name, facts, max_bytes=self._max_bytes)
        fresh.note_stop(self.stopped)
        beside.rename(self._path)
        os.close(self._descriptor)
        self._descriptor, self._written, self._read = fresh._descriptor, fresh._written, fresh._read

    def continue_in_memory(self, reason: SpoolError, totals: Totals) -> None:
        """Keep further output in memory instead of the file. Allowed only when all chunks were read.

        Args:
            reason: why the disk cannot be used.
            totals: the position of the output.

        Raises:
            SpoolError: the output goes through memory already, and that fails as well.
        """
        if self._in_memory:
            raise reason
        log.warning("spool.in_memory", id=self._path.name, reason=str(reason))
        os.close(self._descriptor)
        self._path.unlink(missing_ok=True)
        self._descriptor = os.memfd_create(self._path.name, os.MFD_CLOEXEC)
        self._in_memory = True
        self.renew(totals)

    def note_stop(self, reason: int) -> None:
        """Store why the command is ended early, before it is. A failure of the disk is only logged.

        Args:
            reason: a number of the caller's, above 0.
        """
        self.stopped = reason
        try:
            os.pwrite(self._descriptor, _NUMBER.pack(reason), _NUMBER_AT)
        except OSError as error:
            log.warning("spool.not_written", id=self._path.name, reason=error.strerror)

    def finish(self, ending: Ending) -> None:
        """Store the ending, so that a later worker can deliver it. A failure of the disk is only logged."""
        self.end = ending
        position = self._written
        try:
            self._append_state(_Kind.END, ending)
        except OSError as error:
            log.warning("spool.not_written", id=self._path.name, reason=error.strerror)
        # The END is no output: reading stops before it.
        self._written = position

    def _append_state(self, kind: _Kind, state: Facts | Ending) -> None:
        content = state.model_dump_json().encode()
        record = _HEADER.pack(kind, 0, 0, len(content)) + content
        os.ftruncate(self._descriptor, self._written)
        if os.pwrite(self._descriptor, record, self._written) != len(record):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._written += len(record)

    # --- the side that reads ------------------------------------------------------------------------------------------

    @property
    def pending(self) -> bool:
        """True if the spool contains chunks that were not read."""
        return self._read < self._written

    def chunks(self, max_bytes: int) -> Iterator[Chunk]:
        """Yield the next chunks, until they have `max_bytes` bytes together. `done` marks them as read."""
        position, taken = self._read, 0
        while position < self._written and taken < max_bytes:
            kind, seq, time_us, length = _HEADER.unpack(os.pread(self._descriptor, _HEADER.size, position))
            yield Chunk(kind, seq, time_us, os.pread(self._descriptor, length, position + _HEADER.size))
            position += _HEADER.size + length
            taken += length
            self._next = position

    def done(self) -> None:
        """Mark the chunks that the last call of `chunks` yielded as read."""
        self._read = self._next

    # --- closing ------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Close the file. A later worker finds it."""
        with suppress(OSError):
            os.close(self._descriptor)

    def move(self, path: Path) -> int:
        """Close the file and move it; return its size in bytes. In memory it is removed, and its size is 0."""
        self.close()
        if self._in_memory or self.offset == self.start.totals.offset:
            self._path.unlink(missing_ok=True)
            return 0
        self._path.rename(path)
        return self._written

    def remove(self) -> None:
        """Close and remove the file, because the receipt is delivered."""
        self.close()
        self._path.unlink(missing_ok=True)


def _read_facts(descriptor: int, kind: int, begin: int, length: int) -> Facts:
    """Return the facts in the first record of a spool.

    Raises:
        ValueError: the record is not a START, or the host was restarted since.
    """
    if kind != _Kind.START:
        raise ValueError("its first record is no start")
    facts = Facts.model_validate_json(os.pread(descriptor, length, begin))
    if facts.host != host_boot():
        raise ValueError("the host was started again since")
    return facts


def stored_chunks(descriptor: int, last: int | None) -> tuple[Facts, list[StoredChunk]]:
    """Return the facts and the chunks in the file of a spool. Its worker may still write to it. Blocks.

    Args:
        descriptor: the file.
        last: number of the last chunk to return; None for all complete chunks.

    Raises:
        OSError, ValueError, struct.error: the file is no spool of this run of the host.
    """
    size, position = os.fstat(descriptor).st_size, 0
    facts: Facts | None = None
    found: list[StoredChunk] = []
    offset = 0
    while position + _HEADER.size <= size:
        kind, seq, time_us, length = _HEADER.unpack(os.pread(descriptor, _HEADER.size, position))
        begin = position + _HEADER.size
        if facts is None:
            facts = _read_facts(descriptor, kind, begin, min(length, MAX_STATE_BYTES))
            offset = facts.totals.offset
        elif kind not in (STDOUT, STDERR) or not length or begin + length > size or (last is not None and seq > last):
            break
        else:
            found.append(StoredChunk(kind, seq, time_us, offset, begin, length))
            offset += length
        position = begin + length
    if facts is None:
        raise ValueError("it is empty")
    return facts, found
