"""The latest pause of each schedule, as one process knows it. A Redis that lost data thus undoes no pause."""

from __future__ import annotations

import structlog
from redis.exceptions import ResponseError

from tachikoma.errors import RecordAltered
from tachikoma.redis import keys
from tachikoma.redis.access import wrong_type
from tachikoma.redis.commands import Redis
from tachikoma_orchestrator.schedules.planner import ScheduleState

__all__ = ["Pauses"]

log = structlog.get_logger(__name__)


class Pauses:
    """Remembers when each schedule was paused and resumed."""

    def __init__(self) -> None:
        self._known: dict[str, ScheduleState] = {}

    def note(self, name: str, state: ScheduleState) -> None:
        """Remember the latest pause or resume of a schedule, unless a later one is known."""
        known = self._known.get(name)
        if known is None or state.changed_ms >= known.changed_ms:
            self._known[name] = state

    async def write_again(self, redis: Redis) -> None:
        """Write the latest pause or resume of each schedule again, if Redis lost it. Raises redis errors.

        Args:
            redis: connections that do not wait until the new life of Redis is recorded.
        """
        for name, state in self._known.items():
            try:
                stored = ScheduleState.parse(name, await redis.hgetall(keys.schedule(name)))
                if stored.changed_ms < state.changed_ms:
                    log.warning("schedules.pause_written_again", schedule=name, paused=state.paused)
                    await self._write(redis, keys.schedule(name), stored.version + 1, state)
            except RecordAltered as error:
                log.error("schedules.record_unreadable", schedule=name, reason=str(error))
            except ResponseError as error:
                if not wrong_type(error):
                    raise
                log.error("schedules.record_unreadable", schedule=name, reason=str(error))

    @staticmethod
    async def _write(redis: Redis, key: str, version: int, state: ScheduleState) -> None:
        assert state.paused_ms is not None
        async with redis.pipeline(transaction=True) as pipe:
            pipe.execute_command(
                "HSET", key, "version", version, "paused_ms", state.paused_ms,
                "paused_by", state.paused_by, "pause_reason", state.pause_reason,
            )  # fmt: skip
            if state.resumed_ms is None:
                pipe.execute_command("HDEL", key, "resumed_ms")
            else:
                pipe.execute_command("HSET", key, "resumed_ms", state.resumed_ms)
            await pipe.execute()
