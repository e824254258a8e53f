"""The drained agents, as one orchestrator knows them. A Redis that lost data thus undoes no drain.

Admission and callers read `orch:draining` itself. This copy is at most about a second old, and has the agents that
were resumed as well.
"""

from __future__ import annotations

import asyncio

import structlog
from redis.exceptions import RedisError, ResponseError

from tachikoma.redis import keys
from tachikoma.redis.access import wrong_type
from tachikoma.redis.commands import Redis

__all__ = ["Drains"]

log = structlog.get_logger(__name__)

#: Pause between two readings of Redis, in seconds.
REFRESH_SECONDS = 1.0


class Drains:
    """One orchestrator's copy of the drained agents in Redis."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        #: Entries by agent, as Redis contains them.
        self._active: dict[bytes, bytes] = {}
        #: The last entries of agents that were resumed.
        self._ended: dict[bytes, bytes] = {}

    async def run(self) -> None:
        """Keep the copy fresh, until cancelled."""
        while True:
            try:
                await self.refresh()
            except (RedisError, OSError) as error:
                log.warning("drains.redis_unavailable", error=str(error))
            await asyncio.sleep(REFRESH_SECONDS)

    async def refresh(self) -> None:
        """Read the drained agents in Redis. Raises redis errors."""
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.hgetall(keys.DRAINING)
            pipe.get(keys.LIFE)
            found, life = await pipe.execute()
        if life is None:
            # Redis lost its keys, so it says nothing about agents that were resumed.
            return
        self._ended |= {agent: entry for agent, entry in self._active.items() if agent not in found}
        self._active = dict(found)
        for agent in found:
            self._ended.pop(agent, None)

    async def write_again(self, redis: Redis) -> None:
        """Write the latest drain or resumption of each agent again, if Redis lost it. Raises redis errors.

        This process may not know a change that another orchestrator made in the second before the loss. So an agent is
        resumed only if its entry is the one that was removed.

        Args:
            redis: connections that need not wait for the new life of Redis.
        """
        try:
            found: dict[bytes, bytes] = await redis.hgetall(keys.DRAINING)
        except ResponseError as error:
            if not wrong_type(error):
                raise
            log.error("drains.unreadable", error=str(error))
            return
        for agent, entry in self._active.items():
            if agent not in found:
                log.warning("drain.written_again", agent=agent.decode(errors="replace"))
                await redis.hset(keys.DRAINING, agent, entry)
        for agent, entry in self._ended.items():
            if found.get(agent) == entry:
                log.warning("resume.written_again", agent=agent.decode(errors="replace"))
                await redis.execute_command("HDEL", keys.DRAINING, agent)
