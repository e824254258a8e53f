"""The reaper: gives every execution an end, whatever died. It runs in every orchestrator and needs no leader.

Each look, for every execution that has not ended:
- a result that pub/sub missed is folded;
- one that waited past its queue deadline is fenced, so that its agent can never start it, and ends EXPIRED; so does one
  that nobody approved in time;
- one of an agent that is revoked is fenced and ends CANCELLED, or LOST where it had started;
- one that was claimed by a run of the agent that is gone, or whose agent was not heard of for longer than the lease,
  ends LOST: nobody knows how it ended.
Deadlines are told by the clock of Redis, leases by the orchestrator's monotonic one: where the clock of Redis is set,
its keys expire at once, and no agent is gone for that. After Redis was away agents get a full lease to be heard again.
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

#: Executions looked at in one step.
BATCH = 500
#: Retention is applied once in so many looks.
TRIM_EVERY = 60
#: After queue timeout and timeout, how long an agent may take to kill and report.
OVERDUE_MS = 3600 * 1000
#: A result is looked for only when the execution is older: younger ones come over pub/sub.
SETTLE_MS = 2_000


def _overdue(record: Record, now_ms: int) -> str:
    """Whether its agent should have reported its end long ago, whatever became of the report."""
    longest_ms = record.status().timeout.total_seconds() * 1000
    return "its end was never reported" if now_ms > record.deadline_ms + longest_ms + OVERDUE_MS else ""


class Reaper:
    """Looks after executions that nobody else will end."""

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
        #: Since when Redis answered without a break, by the local monotonic clock.
        self._answering_since = time.monotonic()
        #: Since when agents with open executions are not heard of, by the same clock.
        self._unheard_since: dict[str, float] = {}

    async def run(self) -> None:
        """Look for ever."""
        looks = 0
        while True:
            # Counted first: what cannot be trimmed must not keep executions from their ends.
            due, looks = looks % TRIM_EVERY == 0, looks + 1
            try:
                if due:
                    now_ms = await self._ledger.now_ms()
                    await self._ledger.trim(now_ms)
                    await self._trail.trim(
                        now_ms, retention=self._audit_retention, events=self._audit_events, closed=self._audit_closed
                    )
                await self.look()
            except (RedisError, OSError) as error:
                log.warning("reaper.redis_away", error=str(error))
                self._answering_since = time.monotonic()
                self._unheard_since.clear()
            await asyncio.sleep(self._interval_seconds)

    async def look(self) -> None:
        """Look once at everything that has not ended."""
        now_ms = await self._ledger.now_ms()
        agents = await self._registry.all()
        await self._registry.notice_departures(agents)
        for agent, state in agents.items():
            if state.online:
                self._unheard_since.pop(agent, None)
        offset = 0
        while True:
            ids = await self._ledger.open_executions(offset=offset, limit=BATCH)
            before = len(ids)
            if not ids:
                return
            records = await self._ledger.records(ids)
            for missing in set(ids) - {record.exec_id for record in records}:
                # A record that Redis lost (it went back to an older state) cannot be ended, only let go of.
                await self._redis.zrem(keys.OPEN, missing)
            still_open = await self._look_at(records, agents, now_ms)
            if before < BATCH:
                return
            # Those that ended now have left the set.
            offset += still_open

    async def _look_at(self, records: list[Record], agents: dict[str, AgentState], now_ms: int) -> int:
        async with self._redis.pipeline(transaction=False) as pipe:
            for record in records:
                pipe.get(keys.claim(record.agent, record.exec_id))
                pipe.exists(keys.result(record.agent, record.exec_id))
            answers = await pipe.execute(raise_on_error=False)
        still_open = 0
        for index, record in enumerate(records):
            claim, has_result = answers[2 * index : 2 * index + 2]
            try:
                if isinstance(claim, Exception):
                    raise claim
                if not await self._end(record, claim, bool(has_result), agents.get(record.agent), now_ms):
                    still_open += 1
            except (ResponseError, RecordAltered, ValueError) as error:
                if isinstance(error, ResponseError) and not wrong_type(error):
                    raise
                # Whoever owns Redis may have put anything there; one execution must not cost the others their ends.
                log.error("reaper.unreadable", id=record.exec_id, error=str(error)[:300])
                still_open += 1
            except (RedisError, OSError):
                raise
            except Exception:
                # It ends the process, and would end the next one: which record it was must be known.
                log.critical("reaper.failed", id=record.exec_id, exc_info=True)
                raise
        return still_open

    async def _end(
        self, record: Record, claim: bytes | None, has_result: bool, agent: AgentState | None, now_ms: int
    ) -> bool:
        """Whether the execution has ended now."""
        exec_id = record.exec_id
        if record.state is ExecState.PENDING_APPROVAL:
            return now_ms >= record.deadline_ms and await self._expire(record, "nobody approved it in time")
        revoked = self._registry.revocations.active(record.agent)
        if revoked is not None:
            # Most were ended when it was cut off; an orchestrator may have been on the way with another order.
            return await end_revoked(self._ledger, record, revoked) is not None
        if has_result and now_ms - record.admitted_ms > SETTLE_MS:
            raw = await self._redis.get(keys.result(record.agent, exec_id))
            if raw is not None and await self._collector.fold(record.agent, exec_id, raw):
                return True
        if claim is None or claim == FENCE.encode():
            if record.state is ExecState.QUEUED:
                return now_ms >= record.deadline_ms and await self._expire(
                    record, "not started before its queue timeout"
                )
            # It was claimed, and Redis does not know any more by whom.
            claim = b""
        if record.state is ExecState.QUEUED and now_ms - record.admitted_ms > SETTLE_MS:
            # The agent's notice was missed; when exactly it started, the receipt will say.
            await self._ledger.started(record.agent, exec_id, 0)
        why = self._lost(record.agent, claim.decode(), agent) or _overdue(record, now_ms)
        if why:
            outcome = await self._ledger.settle(
                record.agent, exec_id, DISPATCHED, ExecState.LOST,
                reason=why, fence=False,
            )  # fmt: skip
            log.warning("execution.lost", id=exec_id, agent=record.agent, reason=why)
            return outcome is TransitionOutcome.DONE
        return False

    async def _expire(self, record: Record, reason: str) -> bool:
        outcome = await self._ledger.settle(
            record.agent, record.exec_id, [record.state], ExecState.EXPIRED,
            reason=reason, fence=record.state is ExecState.QUEUED,
        )  # fmt: skip
        if outcome is TransitionOutcome.DONE:
            log.info("execution.expired", id=record.exec_id, agent=record.agent, reason=reason)
        return outcome is TransitionOutcome.DONE

    def _lost(self, agent: str, boot: str, state: AgentState | None) -> str:
        """Why a claimed execution must be given up, or nothing."""
        now = time.monotonic()
        if now - self._answering_since < self._lease_seconds:
            return ""
        if state is not None and state.online:
            other = boot and state.heartbeat.boot != boot
            return "its agent lost its journal, and does not know how it ended" if other else ""
        silent = now - self._unheard_since.setdefault(agent, now)
        if silent < self._lease_seconds:
            return ""
        return f"its agent was not heard of for {silent:.0f} s" if state is not None else "its agent is not known"
