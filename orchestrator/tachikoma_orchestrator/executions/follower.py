"""A follower of an execution's output: replay from the log, then live chunks, without a gap and without a duplicate.

A follower first subscribes and then reads the log, so no chunk falls between the two. It drops chunks that it has
returned before. When numbers do not follow each other it returns to the log: after a reconnect, or when it was too slow
and its bounded queue of live chunks was dropped. A slow caller therefore costs reads, not memory.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime

import structlog
from redis.exceptions import ResponseError

from tachikoma.errors import OutputAltered
from tachikoma.redis import keys
from tachikoma.redis.access import wrong_type
from tachikoma.redis.commands import Entry, Redis
from tachikoma.streams.frames import FIELD, MODES, STDOUT, Frame, entry_id
from tachikoma.vocabulary.messages import OutputKind
from tachikoma.vocabulary.results import ExecOutput
from tachikoma_orchestrator.executions.final_state import FinalState
from tachikoma_orchestrator.store.read_reports import ReadReports
from tachikoma_orchestrator.store.subscriber import Subscriber

__all__ = ["Follower"]

log = structlog.get_logger(__name__)

#: Largest number of live bytes queued for one follower; beyond that it reads the log.
MAX_QUEUED_BYTES = 2 * 1024 * 1024
#: Entries read from the log at once; a chunk has at most 256 KiB.
READ_ENTRIES = 16
#: Seconds without a read after which a command that ended stops waiting for its reader.
READER_SECONDS = 30
#: Seconds after which a reader without a new chunk reports its position again. Without that, a command that is silent
#: for longer and then needs room would wait for a reader that has read everything.
RENEW_SECONDS = READER_SECONDS / 3


class Follower:
    """Reads one execution's output for one caller."""

    def __init__(self, redis: Redis, subscriber: Subscriber, agent: str, exec_id: str, after_seq: int) -> None:
        """Prepare a follower.

        Args:
            redis: the connections.
            subscriber: delivers the live chunks.
            agent, exec_id: the execution.
            after_seq: number of the last chunk that the caller has; 0 for none.
        """
        self._redis = redis
        self._subscriber = subscriber
        self._key = keys.output(agent, exec_id)
        self._read_key = keys.read(agent, exec_id)
        self._exec_id = exec_id
        #: Number of the last chunk returned to the caller.
        self._seq = after_seq
        #: Bytes of output before the next chunk; None until the first chunk is read.
        self._offset: int | None = None if after_seq else 0
        self._live: deque[Frame] = deque()
        self._live_bytes = 0
        #: True if chunks may be missing from the live ones, so the log must be read.
        self._needs_replay = True
        self._wake = asyncio.Event()
        #: True if the agent waits for its readers, so the position is written to Redis.
        self.acknowledges = False
        #: Reports to the agent what an attached caller has read; None for another reader.
        self._reports: ReadReports | None = None
        #: The last chunk of the log with a checkpoint: its number, and the modes of the terminal before it.
        self.modes: tuple[int, bytes] | None = None
        #: Size of the last chunk, which the caller may not have taken yet; None if it has.
        self._handed_bytes: int | None = None

    @property
    def seq(self) -> int:
        """Number of the last chunk returned to the caller."""
        return self._seq

    def _on_message(self, raw: bytes) -> None:
        try:
            frame = Frame.decode(raw)
        except ValueError as error:
            log.warning("output.unreadable", id=self._exec_id, error=str(error))
            return
        if not self._needs_replay:
            self._live.append(frame)
            self._live_bytes += len(frame.data)
            if self._live_bytes > MAX_QUEUED_BYTES:
                self._on_gap()
        self._wake.set()

    def _on_gap(self) -> None:
        self._live.clear()
        self._live_bytes = 0
        self._needs_replay = True
        self._wake.set()

    @asynccontextmanager
    async def listen(self) -> AsyncIterator[None]:
        """Subscribe; enter this before the execution can start."""
        async with self._subscriber.listen(self._key, self._on_message, self._on_gap):
            try:
                yield
            finally:
                if self._reports is not None:
                    await self._reports.leave()

    def report_reads(self, *, announce: bool) -> None:
        """Report the caller's position to the agent, so that the command waits for the caller. Use it inside `listen`.

        Args:
            announce: whether the agent does not know yet that a caller is attached.
        """
        self._reports = ReadReports(self._redis, self._read_key)
        if announce:
            self._reports.announce(self._seq)

    async def until(self, end: asyncio.Future[FinalState]) -> AsyncIterator[ExecOutput]:
        """Return chunks until the execution has its final state and its log is read. Use it inside `listen`.

        Raises:
            OutputAltered: an entry of the log is no output of the agent.
        """
        end.add_done_callback(lambda _: self._wake.set())
        while True:
            self._wake.clear()
            ended = end.done()
            if self._needs_replay or ended:
                # From here on live chunks are queued. All that were published before are in the log.
                self._needs_replay = False
                async for output in self.replay():
                    yield output
            while self._live:
                frame = self._live.popleft()
                self._live_bytes -= len(frame.data)
                if frame.seq == self._seq + 1:
                    yield self._output(frame)
                elif frame.seq > self._seq:
                    self._on_gap()
            if ended:
                if self._reports is not None:
                    self._reports.ended = True
                return
            await self._acknowledge()
            if not self._needs_replay:
                await self._wait()

    async def _wait(self) -> None:
        """Wait for a chunk or the end, and report the position meanwhile."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(RENEW_SECONDS if self.acknowledges else None):
                    await self._wake.wait()
                return
            await self._acknowledge()

    async def replay(self) -> AsyncIterator[ExecOutput]:
        """Return the chunks in the log, and a gap for chunks that it no longer holds.

        Raises:
            OutputAltered: an entry of the log is no output of the agent.
        """
        while True:
            entries = await self._entries()
            for entry, fields in entries:
                frame = self._frame(entry, fields)
                missing = 0 if self._offset is None else frame.offset - self._offset
                if frame.seq > self._seq + 1 and self._offset is None:
                    # The caller's position is no longer in the log, so the size of the gap is unknown. It is at most
                    # everything before this chunk.
                    missing = frame.offset
                if missing > 0:
                    yield self.gap(missing)
                if modes := fields.get(MODES):
                    self.modes = frame.seq, modes
                yield self._output(frame)
            await self._acknowledge()
            if len(entries) < READ_ENTRIES:
                return

    async def _entries(self) -> list[Entry]:
        """Return the next entries of the log. A key of another type counts as a deleted log, without entries."""
        try:
            return await self._redis.xrange(self._key, min=entry_id(self._seq + 1), max="+", count=READ_ENTRIES)
        except ResponseError as error:
            if not wrong_type(error):
                raise
            log.error("output.unreadable", id=self._exec_id, error=str(error))
            return []

    def _frame(self, entry: bytes, fields: dict[bytes, bytes]) -> Frame:
        """Return the chunk of an entry of the log.

        Raises:
            OutputAltered: the entry is no chunk, or has a number other than its place, which could cause a loop.
        """
        try:
            frame = Frame.decode(fields[FIELD])
        except (ValueError, KeyError):
            raise OutputAltered(f"the output log of {self._exec_id} has an entry that is no output") from None
        if entry.decode() != entry_id(frame.seq):
            raise OutputAltered(f"the output log of {self._exec_id} has chunk {frame.seq} in the place of another")
        return frame

    async def _acknowledge(self) -> None:
        """Report the position to the agent. If there are several readers, the last report counts."""
        self._chunk_taken()
        if self.acknowledges:
            await self._redis.set(self._read_key, self._seq, ex=READER_SECONDS)

    def _chunk_taken(self) -> None:
        """Record that the caller has read the last chunk, since it asks for the next."""
        if self._reports is not None and self._handed_bytes is not None:
            self._reports.chunk_read(self._seq, self._handed_bytes)
        self._handed_bytes = None

    def missing_at_end(self, total_bytes: int) -> int:
        """Return the number of bytes that the caller did not get; 0 if that is unknown."""
        return max(0, total_bytes - self._offset) if self._offset is not None else 0

    def gap(self, missing: int) -> ExecOutput:
        """Return the message for a gap of `missing` bytes."""
        return ExecOutput(id=self._exec_id, kind=OutputKind.GAP, seq=self._seq, missing_bytes=missing)

    def _output(self, frame: Frame) -> ExecOutput:
        self._chunk_taken()
        self._seq, self._handed_bytes = frame.seq, len(frame.data)
        self._offset = frame.offset + len(frame.data)
        return ExecOutput(
            id=self._exec_id,
            kind=OutputKind.STDOUT if frame.kind == STDOUT else OutputKind.STDERR,
            seq=frame.seq,
            time=datetime.fromtimestamp(frame.time_micros / 1e6, UTC),
            data=frame.data,
            offset=frame.offset,
        )
