"""The reaper: gives every execution a final state, whichever part of the system failed.

It runs in every orchestrator and needs no leader. Each pass handles every execution without a final state:
- A result that pub/sub missed is recorded.
- An execution past its queue deadline is fenced, so that its agent can never start it, and becomes EXPIRED. One that
  was not approved in time becomes EXPIRED too.
- An execution of a revoked agent is fenced and becomes CANCELLED, or LOST if it had started.
- An execution becomes LOST if the run of the agent that claimed it is gone, or if the agent sent no heartbeat for
  longer than the lease. Its result is unknown then.

Deadlines are measured by the clock of Redis, leases by the orchestrator's monotonic clock. If the clock of Redis is
changed, its keys expire at once, but no agent is gone. After an interruption of Redis, agents get a full lease to send
a heartbeat again.
"""

from __future__ import annotations

import asyncio
import time
from datetime import timedelta

import structlog
from redis.exceptions import RedisError, ResponseError

from tachikoma.errors import RecordAltered
from tachikoma.redis import keys
from tachikoma.redis.access import wrong_type
from tachikoma.redis.commands import Redis
from tachikoma.vocabulary.clock import duration_ms
from tachikoma.vocabulary.states import ExecState
from tachikoma_orchestrator.agents.registry import AgentState, Registry
from tachikoma_orchestrator.audit.trail import AuditTrail
from tachikoma_orchestrator.executions.collector import Collector
from tachikoma_orchestrator.executions.ledger import Ledger
from tachikoma_orchestrator.executions.record import Record
from tachikoma_orchestrator.executions.revocation import end_revoked
from tachikoma_orchestrator.executions.transitions import DISPATCHED, FENCE, TransitionOutcome

__all__ = ["Reaper"]

log = structlog.get_logger(__name__)

#: Executions handled in one step.
BATCH = 500
#: Retention is applied in every n-th pass.
TRIM_EVERY = 60
#: Time that an agent has to kill a command and report, after the queue timeout and the timeout.
OVERDUE_MS = 3600 * 1000
#: Age from which the result of an execution is looked for. The result of a younger one arrives over pub/sub.
SETTLE_MS = 2_000


class Reaper:
    """Settles executions that no other part will settle."""

    def __init__(
        self,
        redis: Redis,
        ledger: Ledger,
        registry: Registry,
        collector: Collector,
        *,
        lease: timedelta,
        interval: timedelta,
        trail: AuditTrail,
        audit_retention: timedelta,
        audit_events: int,
        audit_closed: bool,
    ) -> None:
        """Prepare a reaper.

        Args:
            redis: the connections.
            ledger: the executions.
            registry: the agents.
            collector: records results that pub/sub missed.
            lease: time without a heartbeat after which an agent's executions are lost.
            interval: time between passes.
            trail: the audit trail, which the reaper trims.
            audit_retention, audit_events: how long, and how many, events are kept.
            audit_closed: True if events that a sink has not taken are kept longer.
        """
        self._redis = redis
        self._ledger = ledger
        self._registry = registry
        self._collector = collector
        self._lease_seconds = lease.total_seconds()
        self._interval_seconds = interval.total_seconds()
        self._trail = trail
        self._audit_retention = audit_retention
        self._audit_events = audit_events
        self._audit_closed = audit_closed
        #: Start of the time in which Redis answered without interruption, by the local monotonic clock.
        self._answering_since = time.monotonic()
        #: Start of the silence of agents with open executions, by the same clock.
        self._silent_since: dict[str, float] = {}

    async def run(self) -> None:
        """Make a pass in each interval, until cancelled."""
        passes = 0
        while True:
            # Counted before the work: an index that cannot be trimmed must not stop the passes after it.
            trim, passes = passes % TRIM_EVERY == 0, passes + 1
            try:
                if trim:
                    await self._trim()
                await self.sweep()
            except (RedisError, OSError) as error:
                log.warning("reaper.redis_unavailable", error=str(error))
                self._answering_since = time.monotonic()
                self._silent_since.clear()
            await asyncio.sleep(self._interval_seconds)

    async def _trim(self) -> None:
        now_ms = await self._ledger.now_ms()
        await self._ledger.trim(now_ms)
        await self._trail.trim(
            now_ms, retention=self._audit_retention, events=self._audit_events, closed=self._audit_closed
        )

    async def sweep(self) -> None:
        """Make one pass over all executions without a final state. Raises redis errors."""
        now_ms = await self._ledger.now_ms()
        agents = await self._registry.all()
        await self._registry.notice_departures(agents)
        for agent, state in agents.items():
            if state.online:
                self._silent_since.pop(agent, None)
        offset = 0
        while True:
            ids = await self._ledger.open_executions(offset=offset, limit=BATCH)
            if not ids:
                return
            records = await self._ledger.records(ids)
            for missing in set(ids) - {record.exec_id for record in records}:
                # Redis lost the record, for example after it was restored. Without it there is nothing to settle.
                await self._redis.zrem(keys.OPEN, missing)
            still_open = await self._settle_all(records, agents, now_ms)
            if len(ids) < BATCH:
                return
            # The settled ones have left the set.
            offset += still_open

    async def _settle_all(self, records: list[Record], agents: dict[str, AgentState], now_ms: int) -> int:
        """Settle the executions that need it, and return how many are still open."""
        async with self._redis.pipeline(transaction=False) as pipe:
            for record in records:
                pipe.get(keys.claim(record.agent, record.exec_id))
                pipe.exists(keys.result(record.agent, record.exec_id))
            answers = await pipe.execute(raise_on_error=False)
        still_open = 0
        for record, claim, has_result in zip(records, answers[::2], answers[1::2], strict=True):
            try:
                if isinstance(claim, Exception):
                    raise claim
                if not await self._settle(record, claim, bool(has_result), agents.get(record.agent), now_ms):
                    still_open += 1
            except (ResponseError, RecordAltered, ValueError) as error:
                if isinstance(error, ResponseError) and not wrong_type(error):
                    raise
                # An attacker with access to Redis wrote there. The other executions must still be settled.
                log.error("reaper.unreadable", id=record.exec_id, error=str(error)[:300])
                still_open += 1
            except (RedisError, OSError):
                raise
            except Exception:
                # The error ends the process, and would end the next one too: the log must name the record.
                log.critical("reaper.failed", id=record.exec_id, exc_info=True)
                raise
        return still_open

    async def _settle(
        self, record: Record, claim: bytes | None, has_result: bool, agent: AgentState | None, now_ms: int
    ) -> bool:
        """Settle one execution if it needs it. Return True if it has a final state now."""
        if record.state is ExecState.PENDING_APPROVAL:
            return now_ms >= record.deadline_ms and await self._expire(record, "not approved in time")
        revoked = self._registry.revocations.active(record.agent)
        if revoked is not None:
            # Most ended with the revocation. Another orchestrator may have sent one more order at the same time.
            return await end_revoked(self._ledger, record, revoked) is not None
        settling = now_ms - record.admitted_ms > SETTLE_MS
        if has_result and settling and await self._record_result(record):
            return True
        if claim is None or claim == FENCE.encode():
            if record.state is ExecState.QUEUED:
                return now_ms >= record.deadline_ms and await self._expire(
                    record, "not started before its queue timeout"
                )
            # It was claimed, but Redis no longer knows by which run of the agent.
            claim = b""
        if record.state is ExecState.QUEUED and settling:
            # The agent's notice was missed. The receipt will contain the exact start.
            await self._ledger.started(record.agent, record.exec_id, 0)
        reason = self._lost(record.agent, claim.decode(), agent) or _overdue(record, now_ms)
        return bool(reason) and await self._lose(record, reason)

    async def _record_result(self, record: Record) -> bool:
        raw = await self._redis.get(keys.result(record.agent, record.exec_id))
        return raw is not None and await self._collector.fold(record.agent, record.exec_id, raw)

    async def _expire(self, record: Record, reason: str) -> bool:
        outcome = await self._ledger.settle(
            record.agent, record.exec_id, [record.state], ExecState.EXPIRED,
            reason=reason, fence=record.state is ExecState.QUEUED,
        )  # fmt: skip
        if outcome is TransitionOutcome.DONE:
            log.info("execution.expired", id=record.exec_id, agent=record.agent, reason=reason)
        return outcome is TransitionOutcome.DONE

    async def _lose(self, record: Record, reason: str) -> bool:
        outcome = await self._ledger.settle(
            record.agent, record.exec_id, DISPATCHED, ExecState.LOST, reason=reason, fence=False
        )
        log.warning("execution.lost", id=record.exec_id, agent=record.agent, reason=reason)
        return outcome is TransitionOutcome.DONE

    def _lost(self, agent: str, boot: str, state: AgentState | None) -> str:
        """Return why a claimed execution must be given up; empty if it need not be."""
        now = time.monotonic()
        if now - self._answering_since < self._lease_seconds:
            return ""
        if state is not None and state.online:
            other = boot and state.heartbeat.boot != boot
            return "its agent lost its journal, so the result is unknown" if other else ""
        silent = now - self._silent_since.setdefault(agent, now)
        if silent < self._lease_seconds:
            return ""
        return f"its agent sent no heartbeat for {silent:.0f} s" if state is not None else "its agent is unknown"


def _overdue(record: Record, now_ms: int) -> str:
    """Return why an execution is overdue if its agent should have reported it long ago; else empty."""
    latest_ms = record.deadline_ms + duration_ms(record.status().timeout) + OVERDUE_MS
    return "its agent never reported a result" if now_ms > latest_ms else ""
