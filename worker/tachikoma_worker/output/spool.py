"""The spool: what a command wrote, on the agent's disk until its end is delivered.

Output goes from the command's pipe into the spool and from there to Redis. So a command goes on while Redis is away, up
to a bound; and a worker that was killed and started again finds every byte: it moves from pipe to file within one
system call (splice(2)), and is in one of the two whenever the worker dies. Nothing is synced: what a crash of the host
would lose has ended with it.

A file is a row of records: a header (kind, number, time in microseconds, length), then the content. The first is the
START, what a later worker must know to go on; then come chunks of OUTPUT; the END is the last. A header is written
before its content is there and its length behind it, so where the length is 0 the content goes to the end of the file.
"""

from __future__ import annotations

import base64
import errno
import os
import struct
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

import structlog
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tachikoma.streams.frames import STDERR, STDOUT
from tachikoma.vocabulary.limits import ResourceUsage
from tachikoma.vocabulary.results import KillReceipt
from tachikoma.vocabulary.states import ExecState

__all__ = ["CHUNK_BYTES", "Chunk", "End", "Spool", "SpoolError", "Start", "Totals", "host_boot"]

log = structlog.get_logger(__name__)

#: Largest chunk, in whole pages. A little below 256 KiB, so that Redis, whose allocator knows that size and then
#: 320 KiB, needs no quarter more for each with what stands around it.
CHUNK_BYTES = 252 * 1024
#: Largest START or END that is read.
MAX_STATE_BYTES = 64 * 1024 * 1024
#: What a spool in memory may hold, where the disk takes nothing.
MEMORY_BYTES = 4 * 1024 * 1024
#: No room, over quota, or a disk that fails: output then goes through memory.
_DISK_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS})

_HEADER = struct.Struct("=B7xQQQ")


class _Kind(IntEnum):
    """Of a record; those of output are its streams."""

    STDOUT = STDOUT
    STDERR = STDERR
    START = 100
    END = 101


class SpoolError(Exception):
    """A spool cannot be made, or is none."""


class Totals(BaseModel):
    """Where an output stood when its spool was begun anew: what is no longer in it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    #: Number and end of the last chunk.
    seq: int = 0
    offset: int = 0
    #: What the log in Redis holds of it: bytes that stay, bytes that may be cut, and the number where those begin.
    pinned_bytes: int = 0
    held_bytes: int = 0
    held_from: int = 1
    #: Bytes of each stream, and what is kept of its begin and end, base64.
    total: dict[int, int] = Field(default_factory=dict)
    head: dict[int, str] = Field(default_factory=dict)
    tail: dict[int, str] = Field(default_factory=dict)

    def kept(self, kind: int) -> tuple[int, bytes, bytes]:
        """Bytes, head and tail of a stream."""
        head, tail = (base64.b64decode(part.get(kind, "")) for part in (self.head, self.tail))
        return self.total.get(kind, 0), head, tail


class Start(BaseModel):
    """What a worker must know of a command that an earlier one started."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    #: The run of the host's kernel; a command of an earlier one is gone.
    host: str
    order_sha256: str
    #: SPIFFE ID of the requester; of one that an older version began it is not known.
    requested_by: str = ""
    executable: str
    #: By the clock, ms; and by CLOCK_MONOTONIC, ns, which all processes of a host share.
    started_ms: int
    began_ns: int
    #: Seconds it may run, and between TERM and KILL.
    timeout: float
    kill_grace: float
    #: Its limit, for people.
    memory: int | None = None
    #: Bytes that the log in Redis may hold of its output, and whether it waits for readers when that is full.
    log_bytes: int = 64 * 1024 * 1024
    waits: bool = False
    totals: Totals = Totals()


class End(BaseModel):
    """How an execution ended."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    state: ExecState
    exit_code: int = -1
    signal: int = 0
    error: str = ""
    executable: str = ""
    started_ms: int = 0
    duration_us: int = 0
    usage: ResourceUsage = ResourceUsage()
    kill: KillReceipt | None = None


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of output."""

    kind: int
    seq: int
    time_us: int
    data: bytes


def host_boot() -> str:
    """Names this run of the kernel (random(4))."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


class Spool:
    """The spool of one execution. One side appends, the other reads behind it; both belong to one event loop."""

    def __init__(self, path: Path, descriptor: int, start: Start, *, most: int) -> None:
        self._path = path
        self._descriptor = descriptor
        self._most = most
        #: Where the next record is written, and where the next one is read.
        self._written = 0
        self._read = 0
        #: Where the next one stands after those that `chunks` gave.
        self._next = 0
        self._seq = start.totals.seq
        #: Its file is memory, for the disk takes nothing; a later worker will not find it.
        self._in_memory = False
        self.start = start
        #: Set once it is known.
        self.end: End | None = None

    @classmethod
    def create(cls, folder: Path, exec_id: str, start: Start, *, most: int) -> Spool:
        """Begin the spool of a command that is about to start.

        Args:
            folder: for all spools.
            exec_id: the execution.
            start: what a later worker needs.
            most: bytes it may hold.

        Raises:
            SpoolError: it cannot be written; nothing is to be started.
        """
        path = folder / exec_id
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise SpoolError(f"cannot write {path}: {error.strerror}") from error
        spool = cls(path, descriptor, start, most=most)
        try:
            spool._append_state(_Kind.START, start)
        except OSError as error:
            spool.remove()
            raise SpoolError(f"cannot write {path}: {error.strerror}") from error
        spool._read = spool._written
        return spool

    @classmethod
    def open(cls, folder: Path, exec_id: str, *, most: int) -> Spool:
        """Open what an earlier worker left, to be read from its beginning and appended to at its end.

        Raises:
            SpoolError: there is none, or it is of an earlier run of the host.
        """
        path = folder / exec_id
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise SpoolError(f"cannot read {path}: {error.strerror}") from error
        try:
            return cls._recover(path, descriptor, most)
        except (OSError, ValueError, struct.error) as error:
            os.close(descriptor)
            raise SpoolError(f"{path} is no spool of this run of the host: {error}") from None

    @classmethod
    def _recover(cls, path: Path, descriptor: int, most: int) -> Spool:
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
                if kind != _Kind.START:
                    raise ValueError("its first record is no start")
                start = Start.model_validate_json(os.pread(descriptor, content, begin))
                if start.host != host_boot():
                    raise ValueError("the host was started again since")
                spool = cls(path, descriptor, start, most=most)
                spool._read = begin + content
            elif kind == _Kind.END:
                # An END that was cut off was not acted upon.
                with suppress(ValidationError):
                    spool.end = End.model_validate_json(os.pread(descriptor, content, begin))
                    spool._written = position
                break
            elif content:
                spool._seq = seq
                if not length:
                    os.pwrite(descriptor, struct.pack("=Q", content), begin - 8)
            position = begin + content if content else position
            spool._written = position
            if not content:
                break
        if spool is None:
            raise ValueError("it is empty")
        return spool

    # --- one side -----------------------------------------------------------------------------------------------------

    def take(self, kind: int, pipe: int) -> int:
        """Move what is in a pipe now, up to a chunk, to the end.

        Returns:
            How many bytes; 0 when the pipe is closed.

        Raises:
            BlockingIOError: there is nothing in it now.
            SpoolError: the disk does not take it; nothing was taken out of the pipe.
        """
        begin = self._written + _HEADER.size
        try:
            os.pwrite(self._descriptor, _HEADER.pack(kind, self._seq + 1, time.time_ns() // 1000, 0), self._written)
            moved = os.splice(pipe, self._descriptor, CHUNK_BYTES, offset_dst=begin, flags=os.SPLICE_F_NONBLOCK)
        except OSError as error:
            if error.errno in _DISK_ERRORS:
                raise SpoolError(f"cannot write {self._path}: {error.strerror}") from None
            raise
        if moved:
            os.pwrite(self._descriptor, struct.pack("=Q", moved), begin - 8)
            self._written = begin + moved
            self._seq += 1
        return moved

    @property
    def full(self) -> bool:
        """Whether it is to be begun anew before more is taken."""
        return self._written >= (MEMORY_BYTES if self._in_memory else self._most)

    def renew(self, totals: Totals) -> None:
        """Begin anew, without what was read. To be called when everything was.

        Raises:
            SpoolError: the disk does not take it; it is as it was.
        """
        assert not self.pending
        start = self.start.model_copy(update={"totals": totals})
        if self._in_memory:
            os.ftruncate(self._descriptor, 0)
            self._written = self._read = 0
            self._append_state(_Kind.START, start)
            self._read = self._written
            return
        beside = self._path.with_name(f".{self._path.name}")
        fresh = Spool.create(beside.parent, beside.name, start, most=self._most)
        beside.rename(self._path)
        os.close(self._descriptor)
        self._descriptor, self._written, self._read = fresh._descriptor, fresh._written, fresh._read

    def go_on_in_memory(self, why: SpoolError, totals: Totals) -> None:
        """Let the output go through memory from now on. To be called when everything was read.

        Raises:
            SpoolError: it does already, and that is full as well.
        """
        if self._in_memory:
            raise why
        log.warning("spool.in_memory", id=self._path.name, reason=str(why))
        os.close(self._descriptor)
        self._path.unlink(missing_ok=True)
        self._descriptor = os.memfd_create(self._path.name, os.MFD_CLOEXEC)
        self._in_memory = True
        self.renew(totals)

    def finish(self, end: End) -> None:
        """Keep how it ended, so that a later worker can deliver it."""
        self.end = end
        position = self._written
        try:
            self._append_state(_Kind.END, end)
        except OSError as error:
            log.warning("spool.not_written", id=self._path.name, reason=error.strerror)
        # Read up to what stands before it.
        self._written = position

    def _append_state(self, kind: _Kind, state: Start | End) -> None:
        content = state.model_dump_json().encode()
        record = _HEADER.pack(kind, 0, 0, len(content)) + content
        os.ftruncate(self._descriptor, self._written)
        if os.pwrite(self._descriptor, record, self._written) != len(record):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._written += len(record)

    # --- the other side -----------------------------------------------------------------------------------------------

    @property
    def pending(self) -> bool:
        """Whether there is something that was not read."""
        return self._read < self._written

    def chunks(self, most: int) -> Iterator[Chunk]:
        """The next chunks, of about so many bytes; `done` says that they need not be read again."""
        position, taken = self._read, 0
        while position < self._written and taken < most:
            kind, seq, time_us, length = _HEADER.unpack(os.pread(self._descriptor, _HEADER.size, position))
            yield Chunk(kind, seq, time_us, os.pread(self._descriptor, length, position + _HEADER.size))
            position += _HEADER.size + length
            taken += length
            self._next = position

    def done(self) -> None:
        """What `chunks` gave is where it belongs."""
        self._read = self._next

    # --- the end ------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Close it; a later worker finds it."""
        with suppress(OSError):
            os.close(self._descriptor)

    def remove(self) -> None:
        """Close and remove it: its end is delivered."""
        self.close()
        self._path.unlink(missing_ok=True)
