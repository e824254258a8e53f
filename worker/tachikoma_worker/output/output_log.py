"""The output log of one execution in Redis: a Stream for replay, and a channel of the same name for live output."""

from __future__ import annotations

import asyncio
import base64
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from typing import TypeVar

import structlog
from redis.exceptions import RedisError, ResponseError

from tachikoma.config.retry import Backoff
from tachikoma.redis import keys
from tachikoma.redis.access import wrong_type
from tachikoma.redis.commands import Redis, Value
from tachikoma.streams.frames import FIELD, MODES, STDERR, STDOUT, Frame, entry_id, sequence_of
from tachikoma_worker.output.awaited_reader import AwaitedReader
from tachikoma_worker.output.checkpoints import Checkpoints
from tachikoma_worker.output.excerpt import Excerpt
from tachikoma_worker.output.records import Totals
from tachikoma_worker.output.spool import Chunk

__all__ = ["ABANDONED_SECONDS", "ENTRY_BYTES", "OutputLog"]

T = TypeVar("T")

log = structlog.get_logger(__name__)

#: Approximate size of a Stream entry without its data, in bytes.
ENTRY_BYTES = 100
#: Entries that one XDEL cuts at most.
CUT_ENTRIES = 1000
#: Largest size of the entries between two checkpoints of a terminal's modes, in bytes.
CHECKPOINT_BYTES = 256 * 1024
#: Delay between two reads of the readers' position.
POLL_SECONDS = 0.05
#: First and longest delay between attempts while Redis is unavailable.
RETRY_SECONDS = (0.05, 2.0)
#: Lifetime of the log if the agent dies. After the ending the log gets the configured retention.
ABANDONED_SECONDS = 8 * 24 * 3600


class OutputLog:
    """Writer of one execution's output log. It also accumulates the excerpts for the receipt."""

    def __init__(
        self, redis: Redis, agent: str, exec_id: str, *,
        log_bytes: int, excerpt_bytes: int, waits: bool = False, attached: bool = False,
        wait_seconds: float | None = None, terminal: bool = False, resumed: Totals | None = None,
    ) -> None:  # fmt: skip
        """Prepare a log.

        Args:
            redis: the connections.
            agent, exec_id: the execution.
            log_bytes: bytes that the Stream may hold. Of a longer output its beginning and its end are retained.
            excerpt_bytes: bytes of each stream that are retained for the response.
            waits: whether output waits until it was read, also while there is no reader.
            attached: whether the caller reads the output from its beginning.
            wait_seconds: longest wait for a reader that reads nothing; None for no limit.
            terminal: whether it is the output of a terminal.
            resumed: position of the output when an earlier worker restarted its spool; None for a new output.
        """
        totals = resumed or Totals()
        self._redis = redis
        self._key = keys.output(agent, exec_id)
        self._read_key = keys.read(agent, exec_id)
        self._exec_id = exec_id
        self._reader = AwaitedReader(always=waits, attached=attached, limit_seconds=wait_seconds)
        #: The beginning is pinned, it is never cut: its largest size and its size so far.
        self._pin_bytes = 0 if waits else log_bytes // 2
        self._pinned_bytes = totals.pinned_bytes
        #: The rest is held until there is no more room: its largest size; number and size of each entry, oldest first;
        #: number of the first entry; sum of the sizes.
        self._hold_bytes = log_bytes - self._pin_bytes
        # Sizes of single entries are not known any more, so the entries of an earlier worker are cut as one.
        self._held = deque([(totals.seq, totals.held_bytes)] if totals.held_bytes else [])
        self._held_from, self._held_bytes = totals.held_from, totals.held_bytes
        self._offset = totals.offset
        #: Number of the last chunk that an earlier worker stored; None until Redis was asked.
        self._stored_seq: int | None = 0 if resumed is None else None
        self._expires = False
        #: Follows the modes of a terminal; None without one.
        self._checkpoints = (
            Checkpoints(min(self._hold_bytes // 4, CHECKPOINT_BYTES), totals.modes) if terminal else None
        )
        #: Number of the last chunk.
        self.seq = totals.seq
        #: Number of the last chunk that Redis has confirmed.
        self.sent = 0
        #: The retained part of each stream.
        self.excerpts = {kind: Excerpt.resumed(excerpt_bytes, *totals.kept(kind)) for kind in (STDOUT, STDERR)}

    def totals(self) -> Totals:
        """Return the position of the output."""
        return Totals(
            seq=self.seq,
            offset=self._offset,
            pinned_bytes=self._pinned_bytes,
            held_bytes=self._held_bytes,
            held_from=self._held_from,
            total={kind: excerpt.total for kind, excerpt in self.excerpts.items()},
            head={kind: base64.b64encode(excerpt.head).decode() for kind, excerpt in self.excerpts.items()},
            tail={kind: base64.b64encode(excerpt.tail).decode() for kind, excerpt in self.excerpts.items()},
            modes=self._checkpoints.current() if self._checkpoints is not None else "",
        )

    async def append(self, chunks: Iterable[Chunk]) -> None:
        """Store chunks in the Stream and publish them. Repeats until Redis is available."""
        if self._stored_seq is None:
            self._stored_seq = self.sent = await self._until_available(self._last_stored)
        frames: list[Frame] = []
        checkpoints: dict[int, bytes] = {}
        for chunk in chunks:
            self.excerpts[chunk.kind].add(chunk.data)
            self.seq = chunk.seq
            size = len(chunk.data) + ENTRY_BYTES
            if self._checkpoints is not None and (modes := self._checkpoints.before(chunk.data, size)):
                checkpoints[chunk.seq] = modes
                size += len(modes)
            if chunk.seq > self._stored_seq:
                frames.append(Frame(chunk.kind, chunk.seq, self._offset, chunk.time_us, chunk.data))
            self._offset += len(chunk.data)
            self._account(chunk.seq, size)
        if not frames:
            return
        cut = await self._make_room(before=frames[0].seq)
        await self._until_available(lambda: self._send(frames, cut, checkpoints))
        self.sent = self.seq

    def wait_only_for_known_readers(self) -> None:
        """From now on cut unread output if there is no reader, instead of waiting for one."""
        self._reader.always = False

    def _account(self, seq: int, size: int) -> None:
        """Add an entry to the pinned beginning, or to the held rest."""
        if not self._held and self._pinned_bytes + size <= self._pin_bytes:
            self._pinned_bytes += size
            self._held_from = seq + 1
            return
        self._held.append((seq, size))
        self._held_bytes += size

    async def _make_room(self, *, before: int) -> list[str]:
        """Return the entries to cut, only entries before a number.

        If the output waits for a reader, wait until the entries were read, or until there is no reader to wait for.
        """
        cut: list[str] = []
        asked = False
        while self._held_bytes > self._hold_bytes and self._held[0][0] < before:
            seq, size = self._held[0]
            if not asked and self._reader.matters_to(seq):
                self._reader.note(await self._until_available(self._readers_position))
                asked = True
            if self._reader.keeps(seq):
                await asyncio.sleep(POLL_SECONDS)
                asked = False
                continue
            self._held.popleft()
            self._held_bytes -= size
            cut += map(entry_id, range(self._held_from, seq + 1))
            self._held_from = seq + 1
        return cut

    async def _readers_position(self) -> bytes:
        """Return what the reader reported last; empty if there is no report."""
        try:
            position = await self._redis.get(self._read_key)
        except ResponseError as error:
            if not wrong_type(error):
                raise
            position = None
        return position or b""

    async def _until_available(self, action: Callable[[], Awaitable[T]]) -> T:
        """Repeat an action until Redis answers, and return its result."""
        backoff = Backoff(*RETRY_SECONDS)
        while True:
            try:
                return await action()
            except ResponseError as error:
                if not wrong_type(error):
                    log.warning("output.waiting", id=self._exec_id, error=str(error))
                    await backoff.wait()
                    continue
                # Waiting would not help, and the command would never end. Readers see the lost part as a gap.
                log.error("output.recreated", id=self._exec_id, error=str(error))
                await self._remove()
                await backoff.wait()
            except (RedisError, OSError) as error:
                log.warning("output.waiting", id=self._exec_id, error=str(error))
                await backoff.wait()

    async def _remove(self) -> None:
        """Remove the value at the log's key, by a lifetime of 0: the agent's user in Redis may not use DEL."""
        with suppress(RedisError, OSError):
            await self._redis.expire(self._key, 0)
        self._expires = False

    async def _last_stored(self) -> int:
        """Return the number of the last chunk in the Stream, or 0."""
        last = await self._redis.xrevrange(self._key, count=1)
        return sequence_of(last[0][0]) if last else 0

    async def _send(self, frames: list[Frame], cut: list[str], checkpoints: dict[int, bytes]) -> None:
        """Cut entries, then store and publish frames, in one round trip."""
        async with self._redis.pipeline(transaction=False) as pipe:
            for begin in range(0, len(cut), CUT_ENTRIES):
                pipe.xdel(self._key, *cut[begin : begin + CUT_ENTRIES])
            for frame in frames:
                raw = frame.encode()
                fields: dict[str | bytes, Value] = {FIELD: raw}
                if frame.seq in checkpoints:
                    fields[MODES] = checkpoints[frame.seq]
                pipe.xadd(self._key, fields, id=entry_id(frame.seq))
                pipe.publish(self._key, raw)
            if not self._expires:
                pipe.expire(self._key, ABANDONED_SECONDS)
            answers = await pipe.execute(raise_on_error=False)
        for answer in answers:
            # The number is in the log already: an earlier attempt whose answer was lost stored the entry.
            if isinstance(answer, ResponseError) and "equal or smaller" in str(answer):
                continue
            if isinstance(answer, Exception):
                raise answer
        self._expires = True
