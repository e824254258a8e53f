"""The output pump: from a command's two pipes into the output log, chunk by chunk.

Whatever can be read now is one chunk, up to a bound; while a chunk is under way to Redis the pipes fill, so a fast
writer gets large chunks and a slow one gets each line at once. One chunk of each pipe is held at most: when Redis is
away or slow, the command waits in its write, and nothing is lost.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import deque
from contextlib import suppress

import structlog
from redis.exceptions import RedisError, ResponseError

from tachikoma import keys
from tachikoma.output import FIELD, STDERR, STDOUT, Frame, entry_id
from tachikoma.redis_access import Redis
from tachikoma_worker.excerpt import Excerpt

__all__ = ["CHUNK_BYTES", "OutputLog", "Pump"]

log = structlog.get_logger(__name__)

#: Largest chunk.
CHUNK_BYTES = 256 * 1024
#: After `stop`, how often each pipe is read at the most: what a full pipe holds, and a chunk. Whoever still writes into
#: it is not listened to for ever.
#: Size of a pipe that the spawner makes.
PIPE_BYTES = 1024 * 1024
LAST_READS = PIPE_BYTES // CHUNK_BYTES + 1
#: Between attempts while Redis is away, at first and at the most.
RETRY_SECONDS = (0.05, 2.0)
#: A log whose agent died stays so long; after the end it is given the configured retention.
ABANDONED_SECONDS = 8 * 24 * 3600


class OutputLog:
    """One execution's output log in Redis: Stream and channel of the same name."""

    def __init__(self, redis: Redis, agent: str, exec_id: str, *, log_bytes: int, excerpt_bytes: int) -> None:
        self._redis = redis
        self._key = keys.output(agent, exec_id)
        self._exec_id = exec_id
        self._log_bytes = log_bytes
        #: Sizes of the entries that the Stream holds, oldest first, and their sum.
        self._held: deque[int] = deque()
        self._held_bytes = 0
        self._offset = 0
        #: Number of the last chunk.
        self.seq = 0
        self.excerpts = {STDOUT: Excerpt(excerpt_bytes), STDERR: Excerpt(excerpt_bytes)}

    async def append(self, chunks: list[tuple[int, bytes]]) -> None:
        """Number chunks, and bring them into Stream and channel, however long Redis is away."""
        frames: list[Frame] = []
        for kind, data in chunks:
            self.excerpts[kind].add(data)
            self.seq += 1
            frames.append(Frame(kind, self.seq, self._offset, time.time_ns() // 1000, data))
            self._offset += len(data)
            self._held.append(len(data))
            self._held_bytes += len(data)
        while self._held_bytes > self._log_bytes and len(self._held) > len(chunks):
            self._held_bytes -= self._held.popleft()
        oldest = entry_id(self.seq - len(self._held) + 1)
        delay, most = RETRY_SECONDS
        while True:
            try:
                await self._send(frames, oldest)
                return
            except (RedisError, OSError) as error:
                log.warning("output.waiting", id=self._exec_id, error=str(error))
                await asyncio.sleep(delay)
                delay = min(2 * delay, most)

    async def _send(self, frames: list[Frame], oldest: str) -> None:
        async with self._redis.pipeline(transaction=False) as pipe:
            for frame in frames:
                raw = frame.encode()
                pipe.xadd(self._key, {FIELD: raw}, id=entry_id(frame.seq), minid=oldest, approximate=False)
                pipe.publish(self._key, raw)
            if frames[0].seq == 1:
                pipe.expire(self._key, ABANDONED_SECONDS)
            answers = await pipe.execute(raise_on_error=False)
        for answer in answers:
            # Its number is in the log already: an attempt whose answer was lost had brought it there.
            if isinstance(answer, ResponseError) and "equal or smaller" in str(answer):
                continue
            if isinstance(answer, Exception):
                raise answer


class Pump:
    """Reads a command's pipes until both are closed or `stop` is called."""

    def __init__(self, output: OutputLog, stdout: int, stderr: int) -> None:
        self._output = output
        self._open = {stdout: STDOUT, stderr: STDERR}
        self._ready: set[int] = set()
        self._wake = asyncio.Event()
        self._stopped = False

    def stop(self) -> None:
        """Take what is in the pipes now, and then end although somebody still holds them open."""
        self._stopped = True
        self._wake.set()

    async def run(self) -> None:
        """Pump until the end."""
        loop = asyncio.get_running_loop()
        for descriptor in self._open:
            loop.add_reader(descriptor, self._on_readable, descriptor)
        try:
            while self._open and not self._stopped:
                await self._wake.wait()
                self._wake.clear()
                ready, self._ready = self._ready, set()
                chunks = self._read(ready)
                if chunks:
                    await self._output.append(chunks)
                # Only now: what comes meanwhile waits in the pipe.
                for descriptor in ready & self._open.keys():
                    loop.add_reader(descriptor, self._on_readable, descriptor)
            for _ in range(LAST_READS):
                chunks = self._read(set(self._open))
                if not chunks:
                    return
                await self._output.append(chunks)
        finally:
            for descriptor in self._open:
                with suppress(OSError, ValueError):
                    loop.remove_reader(descriptor)

    def _on_readable(self, descriptor: int) -> None:
        # Not again before it was read, or the loop would spin while Redis is slow.
        asyncio.get_running_loop().remove_reader(descriptor)
        self._ready.add(descriptor)
        self._wake.set()

    def _read(self, descriptors: set[int]) -> list[tuple[int, bytes]]:
        chunks: list[tuple[int, bytes]] = []
        for descriptor in sorted(descriptors & self._open.keys()):
            try:
                data = os.read(descriptor, CHUNK_BYTES)
            except BlockingIOError:
                continue
            except OSError:
                data = b""
            if data:
                chunks.append((self._open[descriptor], data))
            else:
                asyncio.get_running_loop().remove_reader(descriptor)
                del self._open[descriptor]
        return chunks
