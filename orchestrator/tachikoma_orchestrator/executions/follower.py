"""Following an execution's output: replay from the log, then live, without a hole and without a copy.

A follower subscribes first and reads the log after that, so nothing falls between. It drops what it has seen, and goes
back to the log whenever numbers do not follow: after a reconnect, or when it was too slow and its bounded queue of
live frames was dropped. So a slow client costs no memory, only reads.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime

import structlog

from tachikoma.errors import OutputAltered
from tachikoma.redis import keys
from tachikoma.redis.commands import Redis
from tachikoma.streams.frames import FIELD, STDOUT, Frame, entry_id
from tachikoma.vocabulary.results import ExecOutput, OutputKind
from tachikoma_orchestrator.executions.final_state import FinalState
from tachikoma_orchestrator.store.subscriber import Subscriber

__all__ = ["Follower"]

log = structlog.get_logger(__name__)

#: Live bytes held for one follower before it is sent to the log.
MAX_QUEUED_BYTES = 2 * 1024 * 1024
#: Entries read from the log at once; an agent's chunk is at most 256 KiB.
READ_ENTRIES = 16
#: A reader that took nothing for so long is none any more to a command that has ended.
READER_SECONDS = 30


class Follower:
    """Reads one execution's output for one caller."""

    def __init__(self, redis: Redis, subscriber: Subscriber, agent: str, exec_id: str, after_seq: int) -> None:
        self._redis = redis
        self._subscriber = subscriber
        self._key = keys.output(agent, exec_id)
        self._read_key = keys.read(agent, exec_id)
        self._exec_id = exec_id
        #: Number of the last chunk given to the caller.
        self._seq = after_seq
        #: Bytes before the next chunk; None until a first frame told it.
        self._offset: int | None = None if after_seq else 0
        self._live: deque[Frame] = deque()
        self._live_bytes = 0
        self._behind = True
        self._wake = asyncio.Event()
        #: Whether the agent is told what was read; it waits for that.
        self.acknowledges = False

    @property
    def seq(self) -> int:
        """Number of the last chunk given to the caller."""
        return self._seq

    def _on_message(self, raw: bytes) -> None:
        try:
            frame = Frame.decode(raw)
        except ValueError as error:
            log.warning("output.unreadable", id=self._exec_id, error=str(error))
            return
        if not self._behind:
            self._live.append(frame)
            self._live_bytes += len(frame.data)
            if self._live_bytes > MAX_QUEUED_BYTES:
                self._on_gap()
        self._wake.set()

    def _on_gap(self) -> None:
        self._live.clear()
        self._live_bytes = 0
        self._behind = True
        self._wake.set()

    def listen(self) -> AbstractAsyncContextManager[None]:
        """The subscription, to be entered before the execution can start."""
        return self._subscriber.listen(self._key, self._on_message, self._on_gap)

    async def until(self, end: asyncio.Future[FinalState]) -> AsyncIterator[ExecOutput]:
        """Chunks until the execution has ended and its log is read. To be used inside `listen`."""
        end.add_done_callback(lambda _: self._wake.set())
        while True:
            self._wake.clear()
            ended = end.done()
            if self._behind or ended:
                # From here on live frames are kept; what was published before now is in the log.
                self._behind = False
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
                return
            await self._acknowledge()
            if not self._behind:
                await self._wake.wait()

    async def replay(self) -> AsyncIterator[ExecOutput]:
        """Chunks the log holds now, and a gap where it no longer holds them."""
        while True:
            entries = await self._redis.xrange(self._key, min=entry_id(self._seq + 1), max="+", count=READ_ENTRIES)
            for entry, fields in entries:
                frame = self._frame(entry, fields)
                missing = 0 if self._offset is None else frame.offset - self._offset
                if frame.seq > self._seq + 1 and self._offset is None:
                    # The caller's position is no longer in the log, so how much lay between is not known exactly;
                    # everything before this frame is the bound that is.
                    missing = frame.offset
                if missing > 0:
                    yield self.gap(missing)
                yield self._output(frame)
            await self._acknowledge()
            if len(entries) < READ_ENTRIES:
                return

    def _frame(self, entry: bytes, fields: dict[bytes, bytes]) -> Frame:
        """The frame of an entry of the log.

        Raises:
            OutputAltered: it is none, or stands in the place of another, by whose number a reader might go round.
        """
        try:
            frame = Frame.decode(fields[FIELD])
        except (ValueError, KeyError):
            raise OutputAltered(f"an entry of the output log of {self._exec_id} is no output of its agent") from None
        if entry.decode() != entry_id(frame.seq):
            raise OutputAltered(f"the output log of {self._exec_id} has chunk {frame.seq} in the place of another")
        return frame

    async def _acknowledge(self) -> None:
        """Tell the agent what was read. Of several readers the last to say so counts."""
        if self.acknowledges:
            await self._redis.set(self._read_key, self._seq, ex=READER_SECONDS)

    def missing_at_end(self, total_bytes: int) -> int:
        """How many bytes the end says there are beyond those given to the caller."""
        return max(0, total_bytes - self._offset) if self._offset is not None else 0

    def gap(self, missing: int) -> ExecOutput:
        """A message for a hole."""
        return ExecOutput(id=self._exec_id, kind=OutputKind.GAP, seq=self._seq, missing_bytes=missing)

    def _output(self, frame: Frame) -> ExecOutput:
        self._seq = frame.seq
        self._offset = frame.offset + len(frame.data)
        return ExecOutput(
            id=self._exec_id,
            kind=OutputKind.STDOUT if frame.kind == STDOUT else OutputKind.STDERR,
            seq=frame.seq,
            time=datetime.fromtimestamp(frame.time_micros / 1e6, UTC),
            data=frame.data,
        )
