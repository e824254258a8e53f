"""The index of open executions after a loss of data: it is compared with all records once.

The reaper settles what is in the index. Redis may go back to a state in which the index lacked an entry that no running
process remembers, and the execution of that record would never end.
"""

from __future__ import annotations

import structlog
from redis.exceptions import ResponseError

from tachikoma.redis import keys
from tachikoma.redis.access import wrong_type
from tachikoma.redis.commands import Redis
from tachikoma.vocabulary.states import ExecState
from tachikoma_orchestrator.executions.ledger import Ledger
from tachikoma_orchestrator.store.lives import Lives

__all__ = ["OpenIndex"]

log = structlog.get_logger(__name__)

#: Executions compared in one round trip.
BATCH = 500
_OPEN = {state.value.encode() for state in ExecState if not state.terminal}


class OpenIndex:
    """Restores the index once after each loss of data."""

    def __init__(self, redis: Redis, ledger: Ledger, lives: Lives | None) -> None:
        """Prepare it.

        Args:
            redis: the connections.
            ledger: the executions.
            lives: the lives of Redis; None if no life may lose data.
        """
        self._redis = redis
        self._ledger = ledger
        self._lives = lives
        #: The last loss, by the number of its life, after which the index was restored.
        self._done = 0

    async def restore_after_loss(self) -> None:
        """Put back every execution without a final state, if data was lost since the last call. Raises redis errors."""
        loss = 0 if self._lives is None else self._lives.valid_from
        if loss <= self._done:
            return
        try:
            await self._restore()
        except ResponseError as error:
            if not wrong_type(error):
                raise
            log.error("open_index.unreadable", error=str(error))
        self._done = loss

    async def _restore(self) -> None:
        offset = 0
        # The newest first: executions that are admitted meanwhile then let entries appear twice, and skip none.
        while ids := await self._redis.zrange(keys.INDEX, offset, offset + BATCH - 1, desc=True):
            async with self._redis.pipeline(transaction=False) as pipe:
                for raw in ids:
                    pipe.hget(keys.execution(raw.decode(errors="replace")), "state")
                states = await pipe.execute(raise_on_error=False)
            unfinished = [raw.decode() for raw, state in zip(ids, states, strict=True) if state in _OPEN]
            records = await self._ledger.records(unfinished)
            await self._ledger.reopen([record for record in records if not record.state.terminal])
            offset += len(ids)
