"""A regular check of the executions that callers wait for, so that no caller waits for a lost record.

Pub/sub delivers final states at once. The check finds those that pub/sub missed. It also finds awaited executions that
can have no final state any more: their record was deleted, has expired, is unreadable, or is that of another order. The
callers then get the agent's receipt if Redis still has it, and ResultUnknown at the second check. So a caller without a
record gets its answer within `2 * LOOK_SECONDS` and the time of the checks: 15 s at the latest.

Callers that wait across the beginning of a new life of Redis, for an agent that does not report in it, get Unavailable
after the same time. The execution goes on, and they may attach again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable

import structlog
from redis.exceptions import RedisError, ResponseError

from tachikoma.errors import RecordAltered
from tachikoma.redis import keys
from tachikoma.redis.access import wrong_type
from tachikoma.redis.commands import Redis
from tachikoma.vocabulary.states import ExecState
from tachikoma_orchestrator.agents.registry import Registry
from tachikoma_orchestrator.executions.collector import Collector
from tachikoma_orchestrator.executions.ledger import Ledger
from tachikoma_orchestrator.executions.record import Record
from tachikoma_orchestrator.executions.transitions import DISPATCHED
from tachikoma_orchestrator.executions.waiters import AwaitedOrder, Completions
from tachikoma_orchestrator.store.lives import Lives

__all__ = ["LOOK_SECONDS", "WaitingCallers"]

log = structlog.get_logger(__name__)

#: Seconds between two looks.
LOOK_SECONDS = 4.0
#: Silence of an agent in a new life of Redis, from the first look on, after which its callers are answered.
SILENT_SECONDS = 8.0


class WaitingCallers:
    """Answers the callers whose answer pub/sub does not bring."""

    def __init__(
        self, redis: Redis, ledger: Ledger, completions: Completions, collector: Collector,
        registry: Registry, lives: Lives | None = None,
    ) -> None:  # fmt: skip
        """Prepare the regular check.

        Args:
            redis: the connections.
            ledger: the executions.
            completions: the waiting callers.
            collector: records results that pub/sub missed, and delivers final states.
            registry: the agents.
            lives: the lives of Redis; None for only one.
        """
        self._redis = redis
        self._ledger = ledger
        self._completions = completions
        self._collector = collector
        #: Executions whose record was gone at the last look.
        self._missed: set[str] = set()
        self._registry, self._lives = registry, lives
        #: First look at which the agent of an execution of an earlier life was silent, by the monotonic clock.
        self._silent_since: dict[str, float] = {}
        #: Open executions of the last look.
        self._open: list[Record] = []

    async def run(self) -> None:
        """Check all awaited executions in each interval, until cancelled."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                missing = await self._look(missed_results=False)
                await self._answer_for_silent_agents()
                await self._give_up(missing & self._missed)
            except (RedisError, OSError) as error:
                # Nothing is known to be gone while Redis is unavailable.
                log.warning("waiting_callers.redis_unavailable", error=str(error))
                continue
            self._missed = missing

    async def _give_up(self, gone: set[str]) -> None:
        """Answer the callers of executions whose record was missing in two checks. Raises redis errors."""
        for exec_id in gone:
            why = "the ledger has lost its record, and no receipt of its agent came"
            if self._completions.give_up(exec_id, await self._current_order(exec_id), why):
                log.error("execution.record_lost", id=exec_id)

    async def _answer_for_silent_agents(self) -> None:
        """Answer the callers whose agents have been silent in a new life of Redis. Raises redis errors."""
        if self._lives is None or self._lives.number <= 1:
            # The first life replaces no other one. Orchestrators of 0.2.0 wrote records without a life, so 0 is less.
            return
        number, now = self._lives.number, time.monotonic()
        earlier = [record for record in self._open if record.life < number and record.state in DISPATCHED]
        silent = {record.exec_id: record.agent for record in earlier}
        if silent:
            reported = await self._reported_in(number, set(silent.values()))
            silent = {exec_id: agent for exec_id, agent in silent.items() if agent not in reported}
        self._silent_since = {exec_id: self._silent_since.get(exec_id, now) for exec_id in silent}
        for exec_id, agent in silent.items():
            if now - self._silent_since[exec_id] < SILENT_SECONDS:
                continue
            # Callers that attach again get the same time.
            del self._silent_since[exec_id]
            if self._completions.interrupt(exec_id, f"agent {agent} is silent since Redis was restarted or replaced"):
                log.warning("execution.agent_silent", id=exec_id, agent=agent)

    async def _reported_in(self, number: int, agents: Iterable[str]) -> set[str]:
        """Return the agents that have written their reports to a life of Redis."""
        assert self._lives is not None
        states = await self._registry.states(agents)
        return {
            agent
            for agent, state in states.items()
            if state.online and self._lives.number_of(state.heartbeat.life) >= number
        }

    async def check(self) -> None:
        """Deliver final states that pub/sub may have missed. Raises redis errors if Redis is unavailable."""
        await self._look(missed_results=True)

    async def _look(self, *, missed_results: bool) -> set[str]:
        """Check every awaited execution once, and return those whose record is missing.

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
        self._open = [record for record in records.values() if not record.state.terminal]
        await self._ledger.reopen(self._open)
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
