"""The output pump: from a command's two pipes into its spool, and from there into the output log, chunk by chunk.

Whatever can be read now is one chunk, up to a bound; so a fast writer gets large chunks and a slow one gets each line
at once. While Redis is away or slow, the spool takes what comes; when that is full, the command waits in its write.
Nothing is lost, and nothing of it is held in memory but what is under way to Redis.
"""

from __future__ import annotations

import asyncio
import base64
import re
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from typing import TypeVar

import structlog
from redis.exceptions import RedisError, ResponseError

from tachikoma.redis import keys
from tachikoma.redis.access import wrong_type
from tachikoma.redis.commands import Redis
from tachikoma.streams.frames import FIELD, STDERR, STDOUT, Frame, entry_id, sequence_of
from tachikoma_worker.output.excerpt import Excerpt
from tachikoma_worker.output.spool import CHUNK_BYTES, Chunk, Spool, SpoolError, Totals

__all__ = ["OutputLog", "Pump"]

T = TypeVar("T")

log = structlog.get_logger(__name__)

#: Bytes of output that go to Redis at once, about.
SEND_BYTES = 2 * CHUNK_BYTES
#: What an entry of the Stream takes beside its bytes, about.
ENTRY_BYTES = 100
#: Size of a pipe that the spawner makes.
PIPE_BYTES = 1024 * 1024
#: After `stop`, how often each pipe is read at the most: what a full pipe holds, and a chunk. Whoever still writes into
#: it is not listened to for ever.
LAST_READS = PIPE_BYTES // CHUNK_BYTES + 1
#: Entries cut by one command.
CUT_ENTRIES = 1000
#: Between looks at how far readers are.
POLL_SECONDS = 0.05
#: Between attempts while Redis is away, at first and at the most.
RETRY_SECONDS = (0.05, 2.0)
#: A log whose agent died stays so long; after the end it is given the configured retention.
ABANDONED_SECONDS = 8 * 24 * 3600


class OutputLog:
    """One execution's output log in Redis: Stream and channel of the same name."""

    def __init__(
        self, redis: Redis, agent: str, exec_id: str, *,
        log_bytes: int, excerpt_bytes: int, waits: bool = False, resumed: Totals | None = None,
    ) -> None:  # fmt: skip
        """Prepare a log.

        Args:
            redis: the connections.
            agent, exec_id: whose log it is.
            log_bytes: bytes that the Stream holds. Of more the begin and the end stay, and what lies between is cut.
            waits: whether nothing is cut that nobody has read; what comes waits for readers instead.
            excerpt_bytes: bytes of each stream that are kept for the response.
            resumed: of what an earlier worker began, where the output stood that is in its spool no more.
        """
        totals = resumed or Totals()
        self._redis = redis
        self._key = keys.output(agent, exec_id)
        self._read_key = keys.read(agent, exec_id)
        self._exec_id = exec_id
        self._waits = waits
        self._hurry = False
        #: Bytes of the begin that stay, how many there are, and how many may be held behind them.
        self._pin_bytes = 0 if waits else log_bytes // 2
        self._pinned_bytes = totals.pinned_bytes
        self._hold_bytes = log_bytes - self._pin_bytes
        #: What is held behind them: last number and size of each entry, oldest first; the first number; all sizes.
        self._held: deque[tuple[int, int]] = deque()
        self._held_from, self._held_bytes = totals.held_from, totals.held_bytes
        if totals.held_bytes:
            # What an earlier worker brought there is cut as one.
            self._held.append((totals.seq, totals.held_bytes))
        self._offset = totals.offset
        #: Number of the last chunk that an earlier worker brought there; None before Redis was asked.
        self._there: int | None = 0 if resumed is None else None
        self._expires = False
        #: Number of the last chunk.
        self.seq = totals.seq
        self.excerpts = {kind: Excerpt.resumed(excerpt_bytes, *totals.kept(kind)) for kind in (STDOUT, STDERR)}

    def totals(self) -> Totals:
        """Where the output stands."""
        return Totals(
            seq=self.seq,
            offset=self._offset,
            pinned_bytes=self._pinned_bytes,
            held_bytes=self._held_bytes,
            held_from=self._held_from,
            total={kind: excerpt.total for kind, excerpt in self.excerpts.items()},
            head={kind: base64.b64encode(excerpt.head).decode() for kind, excerpt in self.excerpts.items()},
            tail={kind: base64.b64encode(excerpt.tail).decode() for kind, excerpt in self.excerpts.items()},
        )

    async def append(self, chunks: Iterable[Chunk]) -> None:
        """Bring chunks into Stream and channel, however long Redis is away."""
        if self._there is None:
            self._there = await self._insist(self._last)
        frames: list[Frame] = []
        for chunk in chunks:
            self.excerpts[chunk.kind].add(chunk.data)
            self.seq = chunk.seq
            if chunk.seq > self._there:
                frames.append(Frame(chunk.kind, chunk.seq, self._offset, chunk.time_us, chunk.data))
            self._offset += len(chunk.data)
            self._hold(chunk.seq, len(chunk.data) + ENTRY_BYTES)
        if not frames:
            return
        cut = await self._make_room(before=frames[0].seq)
        await self._insist(lambda: self._send(frames, cut))

    def _hold(self, seq: int, size: int) -> None:
        if not self._held and self._pinned_bytes + size <= self._pin_bytes:
            self._pinned_bytes += size
            self._held_from = seq + 1
            return
        self._held.append((seq, size))
        self._held_bytes += size

    async def _make_room(self, *, before: int) -> list[str]:
        """Entries to cut; where the output waits for readers, only what was read, or nobody is there to read."""
        cut: list[str] = []
        read: int | None = 0
        while self._held_bytes > self._hold_bytes and self._held[0][0] < before:
            seq, size = self._held[0]
            if self._waits and (read or 0) < seq:
                read = await self._insist(self._position)
                if (read or 0) < seq and not (self._hurry and read is None):
                    await asyncio.sleep(POLL_SECONDS)
                    continue
            self._held.popleft()
            self._held_bytes -= size
            cut += map(entry_id, range(self._held_from, seq + 1))
            self._held_from = seq + 1
        return cut

    async def _position(self) -> int | None:
        """Number of the last chunk that was read; None where nobody reads."""
        try:
            position = await self._redis.get(self._read_key)
        except ResponseError as error:
            if not wrong_type(error):
                raise
            position = None
        # What is no number nobody who reads wrote.
        return int(position) if position and re.fullmatch(rb"[0-9]{1,18}", position) else None

    def hurry(self) -> None:
        """From now on wait only for readers that there are."""
        self._hurry = True

    async def _insist(self, action: Callable[[], Awaitable[T]]) -> T:
        delay, most = RETRY_SECONDS
        while True:
            try:
                return await action()
            except (RedisError, OSError) as error:
                log.warning("output.waiting", id=self._exec_id, error=str(error))
                await asyncio.sleep(delay)
                delay = min(2 * delay, most)

    async def _last(self) -> int:
        last = await self._redis.xrevrange(self._key, count=1)
        return sequence_of(last[0][0]) if last else 0

    async def _send(self, frames: list[Frame], cut: list[str]) -> None:
        async with self._redis.pipeline(transaction=False) as pipe:
            # First what makes room.
            for begin in range(0, len(cut), CUT_ENTRIES):
                pipe.xdel(self._key, *cut[begin : begin + CUT_ENTRIES])
            for frame in frames:
                raw = frame.encode()
                pipe.xadd(self._key, {FIELD: raw}, id=entry_id(frame.seq))
                pipe.publish(self._key, raw)
            if not self._expires:
                pipe.expire(self._key, ABANDONED_SECONDS)
            answers = await pipe.execute(raise_on_error=False)
        for answer in answers:
            # Its number is in the log already: an attempt whose answer was lost had brought it there.
            if isinstance(answer, ResponseError) and "equal or smaller" in str(answer):
                continue
            if isinstance(answer, Exception):
                raise answer
        self._expires = True


class Pump:
    """Takes what comes out of pipes until all are closed or `stop` is called, and brings it to Redis."""

    def __init__(self, output: OutputLog, spool: Spool, pipes: Mapping[int, int]) -> None:
        """Prepare a pump; `pipes` says by descriptor which stream it is."""
        self._output = output
        self._spool = spool
        self._open = dict(pipes)
        self._ready: set[int] = set()
        self._wake = asyncio.Event()
        self._stopped = False
        #: Something stands in the spool; what stood there is in Redis.
        self._more = asyncio.Event()
        self._sent = asyncio.Event()
        #: Set when no more comes.
        self.taken = asyncio.Event()

    def stop(self) -> None:
        """Take what is in the pipes now, and then end although somebody still holds them open."""
        self._stopped = True
        self._output.hurry()
        self._wake.set()

    async def run(self) -> None:
        """Pump until all of it is in Redis."""
        sending = asyncio.create_task(self._send())
        try:
            await self._take()
            self.taken.set()
            self._more.set()
            await sending
        finally:
            if not sending.done():
                sending.cancel()
                await asyncio.gather(sending, return_exceptions=True)

    async def _take(self) -> None:
        loop = asyncio.get_running_loop()
        for descriptor in self._open:
            loop.add_reader(descriptor, self._on_readable, descriptor)
        try:
            while self._open and not self._stopped:
                await self._wake.wait()
                self._wake.clear()
                ready, self._ready = self._ready, set()
                await self._take_from(ready)
                # Only now: what comes meanwhile waits in the pipe.
                for descriptor in ready & self._open.keys():
                    loop.add_reader(descriptor, self._on_readable, descriptor)
            for _ in range(LAST_READS):
                if not await self._take_from(set(self._open)):
                    return
        finally:
            for descriptor in self._open:
                with suppress(OSError, ValueError):
                    loop.remove_reader(descriptor)

    def _on_readable(self, descriptor: int) -> None:
        # Not again before it was read, or the loop would spin while the spool is full.
        asyncio.get_running_loop().remove_reader(descriptor)
        self._ready.add(descriptor)
        self._wake.set()

    async def _take_from(self, descriptors: set[int]) -> bool:
        """Take a chunk of each; whether there was one."""
        found = False
        for descriptor in sorted(descriptors & self._open.keys()):
            try:
                moved = await self._take_chunk(self._open[descriptor], descriptor)
            except BlockingIOError:
                continue
            if moved:
                found = True
                self._more.set()
            else:
                asyncio.get_running_loop().remove_reader(descriptor)
                del self._open[descriptor]
        return found

    async def _take_chunk(self, kind: int, descriptor: int) -> int:
        try:
            if self._spool.full:
                await self._all_sent()
                self._spool.renew(self._output.totals())
            return self._spool.take(kind, descriptor)
        except SpoolError as error:
            await self._all_sent()
            self._spool.go_on_in_memory(error, self._output.totals())
            return self._spool.take(kind, descriptor)

    async def _all_sent(self) -> None:
        while self._spool.pending:
            self._sent.clear()
            await self._sent.wait()

    async def _send(self) -> None:
        while True:
            while self._spool.pending:
                await self._output.append(self._spool.chunks(SEND_BYTES))
                self._spool.done()
                self._sent.set()
            if self.taken.is_set():
                return
            self._more.clear()
            await self._more.wait()
