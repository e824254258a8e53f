"""The submitter's view of the audit sinks: the orchestrators ship to them and store the positions in Redis."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress

from redis.exceptions import RedisError

from tachikoma.redis import keys
from tachikoma.redis.commands import Redis
from tachikoma_orchestrator.audit.positions import SinkPosition
from tachikoma_orchestrator.audit.trail import AuditTrail

__all__ = ["SinkWatch"]

#: Seconds between two looks.
LOOK_SECONDS = 2.0
#: A sink without an update for this many seconds is no longer in use.
SINK_SECONDS = 24 * 3600


class SinkWatch:
    """Closes the audit trail, so that requests are refused, while too many events wait for a sink."""

    def __init__(self, redis: Redis, trail: AuditTrail, backlog: int) -> None:
        """Prepare a watch.

        Args:
            redis: the connections.
            trail: closed while more than `backlog` events wait.
            backlog: most events that may wait for one sink.
        """
        self._redis = redis
        self._trail = trail
        self._backlog = backlog

    async def run(self) -> None:
        """Check the sinks regularly, until cancelled."""
        while True:
            with suppress(RedisError, OSError, ValueError):
                await self.look()
            await asyncio.sleep(LOOK_SECONDS)

    async def look(self) -> None:
        """Check the sinks once. Raises redis errors, and ValueError if the latest number cannot be read."""
        latest = int(await self._redis.get(keys.AUDIT_SEQ) or 0)
        reason = ""
        for name, raw in (await self._redis.hgetall(keys.AUDIT_SINKS)).items():
            position = SinkPosition.read(raw)
            if position is None or position.at <= time.time() - SINK_SECONDS:
                continue
            waiting = latest - position.seq
            if waiting > self._backlog:
                reason = f"{waiting} events of the audit trail wait for {name.decode(errors='replace')}"
        self._trail.closed_reason = reason
