"""A session's names in Redis: the stream of its input, which the agent reads and trims, and the channel of its notices.

Reading and publishing repeat until Redis is available, so callers see no error of Redis.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, field

import structlog
from redis.exceptions import RedisError

from tachikoma.config.retry import Backoff
from tachikoma.redis import keys
from tachikoma.redis.access import wrong_type
from tachikoma.redis.commands import Redis
from tachikoma.sessions.messages import (
    ANSWER_SECONDS,
    Answer,
    Entry,
    Notice,
    decode_entry,
    encode_notice,
)

__all__ = ["Mailbox"]

log = structlog.get_logger(__name__)

#: Longest wait of one read for an entry, in milliseconds; below the timeout of a command.
BLOCK_MS = 2000
#: Entries of one read; each has at most 252 KiB of input.
READ_ENTRIES = 16
#: First and longest delay between attempts while Redis is unavailable.
RETRY_SECONDS = (0.05, 2.0)


@dataclass(slots=True)
class Mailbox:
    """The stream and the channel of one session."""

    redis: Redis
    #: Connections for reads that wait. Each running session occupies one of them.
    waiting: Redis
    agent: str
    exec_id: str
    #: Id of the last entry that was read.
    _last: bytes = field(default=b"0-0", init=False)

    async def read(self) -> AsyncIterator[Entry]:
        """Yield entries until cancelled. Values that are no entries are skipped and logged."""
        key = keys.input(self.agent, self.exec_id)
        backoff = Backoff(*RETRY_SECONDS)
        while True:
            try:
                found = await self.waiting.xread({key: self._last}, count=READ_ENTRIES, block=BLOCK_MS)
            except (RedisError, OSError) as error:
                log.warning("session.waiting", id=self.exec_id, error=str(error))
                if wrong_type(error):
                    await self.remove()
                await backoff.wait()
                continue
            backoff.reset()
            for entry_id, fields in found[0][1] if found else []:
                self._last = entry_id
                try:
                    entry = decode_entry(fields)
                except ValueError as error:
                    log.warning("session.entry_refused", id=self.exec_id, reason=str(error))
                    continue
                yield entry

    async def skip(self) -> None:
        """Skip the entries that an earlier worker may have read: they are sealed with keys that are lost."""
        backoff = Backoff(*RETRY_SECONDS)
        while True:
            try:
                if last := await self.redis.xrevrange(keys.input(self.agent, self.exec_id), count=1):
                    self._last = last[0][0]
                return
            except (RedisError, OSError) as error:
                log.warning("session.waiting", id=self.exec_id, error=str(error))
                if wrong_type(error):
                    await self.remove()
                await backoff.wait()

    async def publish(self, notices: list[Notice]) -> int:
        """Trim what was read, store an answer, and publish notices, in one round trip.

        Returns:
            The number of orchestrators that received the last notice.

        Raises:
            RedisError, OSError: Redis is unavailable. A notice may have been published.
        """
        name = keys.session(self.agent, self.exec_id)
        milliseconds, _, number = self._last.partition(b"-")
        first = b"%s-%d" % (milliseconds, int(number) + 1)
        async with self.redis.pipeline(transaction=False) as pipe:
            pipe.xtrim(keys.input(self.agent, self.exec_id), minid=first, approximate=False)
            for notice in notices:
                raw = encode_notice(notice)
                if isinstance(notice, Answer):
                    pipe.set(name, raw, ex=ANSWER_SECONDS)
                pipe.publish(name, raw)
            results = await pipe.execute(raise_on_error=False)
        for result in results[1:]:
            if isinstance(result, Exception):
                raise result
        return int(results[-1])

    async def remove(self) -> None:
        """Remove the input stream, by a lifetime of 0: the agent's user in Redis may not use DEL."""
        with suppress(RedisError, OSError):
            await self.redis.expire(keys.input(self.agent, self.exec_id), 0)
