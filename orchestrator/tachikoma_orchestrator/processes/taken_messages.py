"""The messages that submitters have taken from their queues and not acknowledged yet.

kombu keeps them under the name of the submitter's run. When that run has ended, another submitter puts its messages
back on their queues. Nothing runs twice, because each request contains its id.
"""

from __future__ import annotations

import asyncio
import json
import secrets

import structlog
from redis.exceptions import RedisError, ResponseError

from tachikoma.redis import keys
from tachikoma.redis.access import wrong_type
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
            try:
                await self.look()
            except (RedisError, OSError) as error:
                log.warning("submitters.unavailable", error=str(error))
            await asyncio.sleep(ALIVE_SECONDS)

    async def look(self) -> None:
        """Give a sign of life, and put back the messages of runs that have ended. Raises redis errors.

        Times are those of the clock of Redis: clocks of hosts differ, and no live run may count as ended.
        """
        now = (await self._redis.time())[0]
        try:
            await self._redis.zadd(keys.SUBMITTERS, {self.run_id: now})
        except ResponseError as error:
            if not wrong_type(error):
                raise
            # Whatever replaced it, the runs in it are forgotten. Those that live report again.
            log.error("submitters.unreadable", error=str(error))
            await self._redis.delete(keys.SUBMITTERS)
            await self._redis.zadd(keys.SUBMITTERS, {self.run_id: now})
        for run in await self._redis.zrange(keys.SUBMITTERS, 0, now - GONE_SECONDS, byscore=True):
            await self.put_back(run.decode(errors="replace"))

    async def put_back(self, run: str) -> None:
        """Put the messages of an ended run back on their queues. Raises redis errors."""
        unacked, index, _ = keys.unacked(run)
        taken: dict[str, list[str]] = {keys.SUBMIT: [], keys.BATCH: []}
        for raw in await self._taken(run, unacked):
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
        match await self._runner.run(call):
            case 1:
                log.info("submitter.put_back", run=run, messages=sum(map(len, taken.values())))
            case 2:
                # The messages stay with the run until somebody deletes that key.
                log.error("submitter.not_put_back", run=run, reason="a queue of the submitters is no list")

    async def _taken(self, run: str, unacked: str) -> list[bytes]:
        """Return the messages of a run; none if its key contains something else, which must not hide other runs."""
        try:
            return await self._redis.hvals(unacked)
        except ResponseError as error:
            if not wrong_type(error):
                raise
            log.error("submitter.unreadable", run=run, error=str(error))
            return []
