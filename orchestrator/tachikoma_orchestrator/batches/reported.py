"""The batches that were accepted, approved or halted here, to be recorded again if Redis forgets that."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import structlog

from tachikoma.redis.commands import Redis
from tachikoma.vocabulary.clock import duration_ms
from tachikoma_orchestrator.store.remembered import Remembered
from tachikoma_orchestrator.store.scripts import Call, Runner

__all__ = ["ReportedBatches"]

log = structlog.get_logger(__name__)

#: Time for which an accepted batch is remembered, in seconds, and largest number of them. Agents publish their orders
#: of the same time, so the targets that ran are known again before another one is started.
KEEP_ACCEPTED_SECONDS, MAX_ACCEPTED = 900, 64
#: The same for halted batches, whose entries are small.
KEEP_HALTED_SECONDS, MAX_HALTED = 24 * 3600, 10_000


class ReportedBatches:
    """Remembers accepted, approved and halted batches."""

    def __init__(self) -> None:
        #: The calls of scripts, by batch.
        self._accepted: Remembered[str, Call] = Remembered(KEEP_ACCEPTED_SECONDS, MAX_ACCEPTED)
        self._approved: Remembered[str, Call] = Remembered(KEEP_ACCEPTED_SECONDS, MAX_ACCEPTED)
        self._halted: Remembered[str, Call] = Remembered(KEEP_HALTED_SECONDS, MAX_HALTED)

    def accepted(self, batch_id: str, call: Call) -> None:
        """Remember the call that recorded a batch."""
        self._accepted.put_first(batch_id, call)

    def approved(self, batch_id: str, call: Call) -> None:
        """Remember the call that let the targets of a batch start."""
        self._approved.put_first(batch_id, call)

    def halted(self, batch_id: str, call: Call) -> None:
        """Remember the call that halted a batch."""
        self._halted.put_first(batch_id, call)

    async def write_again(self, redis: Redis) -> None:
        """Record and halt the batches again after Redis lost data. Change nothing without a loss. Raises redis errors.

        Args:
            redis: connections that need not wait for the new life of Redis.
        """
        runner = Runner(redis)
        for _, call, age in self._accepted:
            if await runner.run(_later(call, age)) == b"ADMITTED":
                log.warning("batch.written_again", batch=call.args["id"])
        for _, call, age in self._approved:
            if await runner.run(_later(call, age)):
                log.warning("batch.approved_again", batch=call.args["id"])
        for _, call, _ in self._halted:
            if await runner.run(call):
                log.warning("batch.halted_again", batch=call.args["id"])


def _later(call: Call, age_seconds: float) -> Call:
    """Return the call with the time left now, so that it does not move the deadline."""
    wait = call.args["wait_ms"]
    assert isinstance(wait, int)
    return replace(call, args={**call.args, "wait_ms": max(0, wait - duration_ms(timedelta(seconds=age_seconds)))})
