"""The reports of an attached caller's position to the agent, whose command waits for that caller.

A small output costs no report: the agent keeps unread output anyway until its log is full. A report is a command to
Redis that nothing waits for, at most one in `INTERVAL_SECONDS`.
"""

from __future__ import annotations

import asyncio
import secrets
from contextlib import suppress

from redis.exceptions import RedisError

from tachikoma.config.tasks import cancel_all
from tachikoma.redis.commands import Redis
from tachikoma.streams.frames import READER_LEFT, reader_position

__all__ = ["LEAST_BYTES", "ReadReports"]

#: Least bytes since the last report. Logs hold at least four times as much.
LEAST_BYTES = 8 * 1024
#: Bytes that a chunk counts in addition to its data, since a log counts its entries so too.
CHUNK_COST = 100
#: Least time between two reports.
INTERVAL_SECONDS = 0.02
#: Lifetime of a report. A caller that reads nothing for longer is given up by each agent before.
KEEP_SECONDS = 2 * 3600
#: Lifetime of the report that the caller has left.
LEFT_SECONDS = 30


class ReadReports:
    """Reports the position of one caller in one output."""

    def __init__(self, redis: Redis, key: str) -> None:
        """Prepare the reports of one caller.

        Args:
            redis: the connections.
            key: the key that the agent reads (`tachikoma.redis.keys.read`).
        """
        self._redis = redis
        self._key = key
        self._seq = 0
        #: Cost of the chunks that were read, now and at the last report.
        self._read = 0
        self._reported = 0
        self._task: asyncio.Task[None] | None = None
        #: Random text that distinguishes this caller's reports from others, and the last report; None before it.
        self._nonce = secrets.token_hex(4)
        self._last: bytes | None = None
        #: Set when the execution has ended, so its command waits for no reader.
        self.ended = False

    def announce(self, seq: int) -> None:
        """Report a caller that the order did not name: it attached later, or the order was sent after an approval."""
        self._seq = seq
        self._read += LEAST_BYTES
        self._report()

    def chunk_read(self, seq: int, size: int) -> None:
        """Record that the caller has read a chunk.

        Args:
            seq: number of the chunk.
            size: its bytes.
        """
        self._seq = seq
        self._read += size + CHUNK_COST
        self._report()

    def _report(self) -> None:
        if self._task is None and self._due:
            self._task = asyncio.create_task(self._send(), name="read-report")

    @property
    def _due(self) -> bool:
        return self._read - self._reported >= LEAST_BYTES

    async def _send(self) -> None:
        try:
            while self._due:
                self._reported = self._read
                self._last = reader_position(self._seq, self._nonce)
                # Without Redis no output comes either. The next report is sent with the next chunk.
                with suppress(RedisError, OSError):
                    await self._redis.set(self._key, self._last, ex=KEEP_SECONDS)
                await asyncio.sleep(INTERVAL_SECONDS)
        finally:
            self._task = None

    async def leave(self) -> None:
        """Report that the caller reads no more, so the command no longer waits for it.

        A caller whose connection broke may read on elsewhere: its newer reports are left alone.
        """
        if self._task is not None:
            await cancel_all([self._task])
        if self.ended and self._last is None:
            return
        with suppress(RedisError, OSError):
            if await self._redis.get(self._key) in (None, self._last):
                await self._redis.set(self._key, READER_LEFT, ex=LEFT_SECONDS)
