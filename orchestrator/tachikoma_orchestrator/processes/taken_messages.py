"""The messages that submitters have taken from their queues and not acknowledged yet.

kombu keeps them under the name of the submitter's run. When that run has ended, another submitter puts its messages
back on their queues. Nothing runs twice, because each request contains its id.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from contextlib import suppress

import structlog
from redis.exceptions import RedisError

from tachikoma.redis import keys
from tachikoma.redis.commands import Redis
from tachikoma_orchestrator.store.scripts import Runner, Script

__all__ = ["TakenMessages"]

log = structlog.get_logger(__name__)

#: Seconds between two signs of life.
ALIVE_SECONDS = 2.0
#: Seconds without a sign of life after which a run counts as ended.
GONE_SECONDS = 15.0


class TakenMessages:
    """Keeps this run alive in Redis, and puts back the messages of runs that have ended."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._runner = Runner(redis)
        self._resubmit = Script("resubmit")
        #: Random id of this run of the submitter.
        self.run_id = secrets.token_hex(8)

    async def run(self) -> None:
        """Report that this run lives, and search for ended runs, until cancelled."""
        while True:
            with suppress(RedisError, OSError):
                await self.look()
            await asyncio.sleep(ALIVE_SECONDS)

    async def look(self) -> None:
        """Give a sign of life, and put back the messages of runs that have ended. Raises redis errors.

        Times are those of the clock of Redis: clocks of hosts differ, and no live run may count as ended.
        """
        now = (await self._redis.time())[0]
        await self._redis.zadd(keys.SUBMITTERS, {self.run_id: now})
        for run in await self._redis.zrange(keys.SUBMITTERS, 0, now - GONE_SECONDS, byscore=True):
            await self.put_back(run.decode(errors="replace"))

    async def put_back(self, run: str) -> None:
        """Put the messages of an ended run back on their queues. Raises redis errors."""
        unacked, index, _ = keys.unacked(run)
        taken: dict[str, list[str]] = {keys.SUBMIT: [], keys.BATCH: []}
        for raw in await self._redis.hvals(unacked):
            try:
                message, _, queue = json.loads(raw)
                message["properties"]["delivery_info"]["redelivered"] = True
                taken[queue].append(json.dumps(message))
            except (ValueError, TypeError, KeyError, RecursionError) as error:
                log.warning("message.unreadable", error=repr(error)[:300])
        call = self._resubmit(
            keys=[keys.SUBMITTERS, unacked, index, *taken],
            args={"run": run, "counts": [len(messages) for messages in taken.values()]},
            payloads=[message for messages in taken.values() for message in messages],
        )
        if await self._runner.run(call):
            log.info("submitter.put_back", run=run, messages=sum(map(len, taken.values())))
