"""A regular look at the executions that callers wait for, so that no caller waits for a record that is gone.

Pub/sub delivers final states at once. A look finds what pub/sub missed, and what can no longer come: the record of an
awaited execution was deleted, has expired, is no record any more, or was replaced by one of another order. The callers
then get the agent's receipt if Redis still has it, and ResultUnknown at the second look. A caller whose record is gone
is therefore answered within `2 * LOOK_SECONDS` and the time of the looks: 15 s at the latest.
"""

from __future__ import annotations

import asyncio

import structlog
from redis.exceptions import RedisError, ResponseError

from tachikoma.errors import RecordAltered
from tachikoma.redis import keys
from tachikoma.redis.access import wrong_type
from tachikoma.redis.commands import Redis
from tachikoma.vocabulary.states import ExecState
from tachikoma_orchestrator.executions.collector import Collector
from tachikoma_orchestrator.executions.ledger import Ledger
from tachikoma_orchestrator.executions.record import Record
from tachikoma_orchestrator.executions.waiters import AwaitedOrder, Completions

__all__ = ["LOOK_SECONDS", "WaitingCallers"]

log = structlog.get_logger(__name__)

#: Seconds between two looks.
LOOK_SECONDS = 5.0


class WaitingCallers:
    """Answers the callers whose answer pub/sub does not bring."""

    def __init__(self, redis: Redis, ledger: Ledger, completions: Completions, collector: Collector) -> None:
        """Prepare it.

        Args:
            redis: the connections.
            ledger: the executions.
            completions: the waiting callers.
            collector: records results that pub/sub missed, and delivers final states.
        """
        self._redis = redis
        self._ledger = ledger
        self._completions = completions
        self._collector = collector
        #: Executions whose record was gone at the last look.
        self._missed: set[str] = set()

    async def run(self) -> None:
        """Look at all awaited executions in each interval, until cancelled."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                missing = await self._look(missed_results=False)
            except (RedisError, OSError) as error:
                # Nothing is known to be gone while Redis is unavailable.
                log.warning("waiting_callers.redis_unavailable", error=str(error))
                continue
            for exec_id in missing & self._missed:
                why = "the ledger has lost its record, and no receipt of its agent came"
                if self._completions.give_up(exec_id, await self._current_order(exec_id), why):
                    log.error("execution.record_lost", id=exec_id)
            self._missed = missing

    async def check(self) -> None:
        """Deliver what pub/sub may have missed. Raises redis errors if Redis is unavailable."""
        await self._look(missed_results=True)

    async def _look(self, *, missed_results: bool) -> set[str]:
        """Look at every awaited execution once, and return those whose record is gone.

        Args:
            missed_results: True to look for the results of all. Otherwise only for those that agents report to another
                process, which may be gone; the reaper finds the others a little later.
        """
        for exec_id in self._completions.approvals.all_awaited():
            record = await self._record(exec_id)
            if record is None or record.state is not ExecState.PENDING_APPROVAL:
                self._completions.approvals.resolve(exec_id, None)
        awaited = [exec_id for exec_id in self._completions.all_awaited() if self._completions.awaited(exec_id)]
        records = {record.exec_id: record for record in await self._ledger.records(awaited)}
        await self._ledger.reopen([record for record in records.values() if not record.state.terminal])
        missing = set()
        for exec_id in awaited:
            try:
                if not await self._settle(exec_id, records.get(exec_id), missed_results=missed_results):
                    missing.add(exec_id)
            except (RecordAltered, ValueError) as error:
                # One value of an attacker must not keep other callers waiting.
                log.error("waiting_callers.unreadable", id=exec_id, error=str(error)[:300])
                missing.add(exec_id)
            except ResponseError as error:
                if not wrong_type(error):
                    raise
                missing.add(exec_id)
        return missing

    async def _settle(self, exec_id: str, record: Record | None, *, missed_results: bool) -> bool:
        """Deliver the final state of an execution if there is one. Return False if its callers' record is gone."""
        if record is not None:
            self._completions.note_order(exec_id, AwaitedOrder(record.agent, record.order_sha256))
            if record.state.terminal:
                await self._collector.deliver(exec_id)
        orders = self._completions.orders(exec_id)
        lost = record is None or any(order.order_sha256 not in ("", record.order_sha256) for order in orders)
        if lost or missed_results or any(not order.reports_here for order in orders):
            for agent in {order.agent for order in orders}:
                await self._take_result(agent, exec_id)
        return not (lost and self._completions.orders(exec_id))

    async def _take_result(self, agent: str, exec_id: str) -> None:
        """Record and deliver the Celery result of an execution, if there is one."""
        try:
            raw = await self._redis.get(keys.result(agent, exec_id))
        except ResponseError as error:
            if not wrong_type(error):
                raise
            return
        if raw is not None:
            await self._collector.fold(agent, exec_id, raw)

    async def _record(self, exec_id: str) -> Record | None:
        """Return the record of an execution; None if it is gone or no record."""
        try:
            return await self._ledger.record(exec_id)
        except RecordAltered:
            return None

    async def _current_order(self, exec_id: str) -> str:
        record = await self._record(exec_id)
        return record.order_sha256 if record is not None else ""
