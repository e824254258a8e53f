"""The reaper: gives every execution a final state, whichever part of the system failed.

It runs in every orchestrator and needs no leader. Each pass handles every execution without a final state:
- A result that pub/sub missed is recorded.
- An execution past its queue deadline is fenced, so that its agent can never start it, and becomes EXPIRED. One that
  was not approved in time becomes EXPIRED too.
- An execution on the queue of an agent whose clock or formats are wrong is fenced and becomes EXPIRED.
- An execution that was queued before Redis lost data is fenced and becomes EXPIRED, once its agent has written its
  claims again.
- An execution of a revoked agent is fenced and becomes CANCELLED, or LOST if it had started.
- An interactive execution of a revoked person is cancelled.
- An execution becomes LOST if the run of the agent that claimed it is gone, or if the agent sent no heartbeat for
  longer than the lease. Its result is unknown then.

Deadlines are measured by the clock of Redis, leases by the orchestrator's monotonic clock. If the clock of Redis is
changed, its keys expire at once, but no agent is gone. After an interruption of Redis, agents get a full lease to send
a heartbeat again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
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
from tachikoma_orchestrator.agents.silence import Silence
from tachikoma_orchestrator.audit.trail import AuditTrail, TrailBounds
from tachikoma_orchestrator.executions.collector import Collector
from tachikoma_orchestrator.executions.ledger import Ledger
from tachikoma_orchestrator.executions.record import Record
from tachikoma_orchestrator.executions.restoration import OpenIndex
from tachikoma_orchestrator.executions.retained_output import RetainedOutput
from tachikoma_orchestrator.executions.revocation import ExecutionsOfMembers, end_revoked, revocation_of_session
from tachikoma_orchestrator.executions.transitions import DISPATCHED, FENCE, TransitionOutcome
from tachikoma_orchestrator.store.lives import Lives

__all__ = ["Reaper", "Retention"]

log = structlog.get_logger(__name__)

#: Executions handled in one step.
BATCH = 500
#: Retention is applied in every n-th pass.
TRIM_EVERY = 60
#: Time that an agent has to kill a command and report, after the queue timeout and the timeout.
OVERDUE_MS = duration_ms(timedelta(hours=1))
#: Seconds between two looks for executions whose deadline has passed.
DUE_SECONDS = 1.0
#: Age from which the result of an execution is looked for. The result of a younger one arrives over pub/sub.
SETTLE_MS = 2_000
#: Stands for a claim of another type than a string. No agent and no orchestrator writes it.
UNREADABLE = b"\0unreadable"


@dataclass(frozen=True, slots=True)
class Retention:
    """The stores whose old entries the reaper deletes, beside the ledger's own."""

    trail: AuditTrail
    #: The limits of the trail: age and number of its events.
    audit_bounds: TrailBounds
    #: Deletes output beyond the quotas; None for no quotas.
    outputs: RetainedOutput | None = None


class Reaper:
    """Settles executions that no other part will settle."""

    #: Deadline up to which due executions were settled, ms by the clock of Redis; 0 before the first look.
    _due_to_ms = 0

    def __init__(
        self,
        redis: Redis,
        ledger: Ledger,
        registry: Registry,
        collector: Collector,
        *,
        lease: timedelta,
        interval: timedelta,
        retention: Retention,
        executions: ExecutionsOfMembers,
        lives: Lives | None = None,
        on_recorded: Callable[[list[str]], None] = lambda _: None,
    ) -> None:
        """Prepare a reaper.

        Args:
            redis: the connections.
            ledger: the executions.
            registry: the agents.
            collector: records results that pub/sub missed.
            lease: time without a heartbeat after which an agent's executions are lost.
            interval: time between passes.
            retention: the stores that it trims.
            executions: cancels the sessions of revoked people.
            lives: the lives of Redis; None if no life may lose data.
            on_recorded: called in each pass with the open executions that are recorded.
        """
        self._lives = lives
        self._on_recorded = on_recorded
        self._index = OpenIndex(redis, ledger, lives)
        self._redis = redis
        self._ledger = ledger
        self._registry = registry
        self._collector = collector
        self._retention = retention
        self._executions = executions
        self._silence = Silence(lease)
        self._interval_seconds = interval.total_seconds()
        #: The open executions of the last pass. An entry that left the index without a final state is put back.
        self._open: dict[str, Record] = {}

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
                self._silence.restart_leases()
                self._silence.forget_agents()
            await self._expire_between_passes()

    async def _expire_between_passes(self) -> None:
        """Wait for the next pass, and expire executions meanwhile at their deadlines."""
        until = time.monotonic() + self._interval_seconds
        while (left := until - time.monotonic()) > 0:
            await asyncio.sleep(min(left, DUE_SECONDS))
            try:
                await self.expire_due()
            except (RedisError, OSError) as error:
                log.warning("reaper.redis_unavailable", error=str(error))

    async def expire_due(self) -> None:
        """Settle the executions whose deadline has passed since the last sweep. Raises redis errors."""
        now_ms = await self._ledger.now_ms()
        after_ms, self._due_to_ms = self._due_to_ms or now_ms, now_ms
        records = await self._ledger.records(await self._ledger.due(after_ms, now_ms, limit=BATCH))
        waiting = [record for record in records if record.state in (ExecState.QUEUED, ExecState.PENDING_APPROVAL)]
        await self._settle_all(waiting, now_ms)

    async def _trim(self) -> None:
        now_ms = await self._ledger.now_ms()
        await self._ledger.trim(now_ms)
        await self._retention.trail.trim(now_ms, self._retention.audit_bounds)

    async def sweep(self) -> None:
        """Make one pass over all executions without a final state. Raises redis errors."""
        await self._index.restore_if_needed()
        now_ms = await self._ledger.now_ms()
        await self._notice_departures()
        offset, found = 0, dict[str, Record]()
        while ids := await self._open_executions(offset):
            records = await self._ledger.records(ids)
            found |= {record.exec_id: record for record in records}
            for missing in set(ids) - found.keys():
                await self._forget(missing)
            still_open = await self._settle_all(records, now_ms)
            if len(ids) < BATCH:
                break
            # The settled ones have left the set.
            offset += still_open
        await self._restore_index(found)
        self._on_recorded([exec_id for exec_id, record in self._open.items() if record.recording])
        if self._retention.outputs is not None:
            await self._retention.outputs.enforce(now_ms)

    async def _agents_of(self, records: list[Record]) -> dict[str, AgentState]:
        """Return the agents of executions; none if their hash has another type, so that no agent counts as gone."""
        try:
            agents = await self._registry.states(record.agent for record in records)
        except ResponseError as error:
            if not wrong_type(error):
                raise
            log.error("reaper.agents_unreadable", error=str(error))
            self._silence.restart_leases()
            return {}
        self._silence.hear(agents)
        return agents

    async def _notice_departures(self) -> None:
        """Record the agents that have gone offline, unless their hash has another type."""
        try:
            await self._registry.notice_departures()
        except ResponseError as error:
            if not wrong_type(error):
                raise
            log.error("reaper.agents_unreadable", error=str(error))

    async def _open_executions(self, offset: int) -> list[str]:
        """Return a batch of the index of open executions. An index of another type is removed and made again."""
        try:
            return await self._ledger.open_executions(offset=offset, limit=BATCH)
        except ResponseError as error:
            if not wrong_type(error):
                raise
            log.error("reaper.index_recreated", key=keys.OPEN, error=str(error))
            await self._redis.expire(keys.OPEN, 0)
            self._index.note_damage()
            return []

    async def _forget(self, exec_id: str) -> None:
        """Remove an execution from the indexes whose record is gone or unreadable; there is nothing to settle."""
        await self._redis.zrem(keys.OPEN, exec_id)
        record = self._open.pop(exec_id, None)
        for name in record.scopes if record is not None else ():
            # Otherwise it would count against the limits of its scopes forever.
            _, running, waiting = keys.scope(name)
            for key in (running, waiting):
                with suppress(ResponseError):
                    await self._redis.srem(key, exec_id)

    async def _restore_index(self, found: dict[str, Record]) -> None:
        """Put executions back into the index that left it without a final state.

        Args:
            found: the open executions of this pass.
        """
        vanished = [exec_id for exec_id in self._open if exec_id not in found]
        records = {record.exec_id: record for record in await self._ledger.records(vanished)}
        for exec_id in vanished:
            if exec_id not in records:
                await self._forget(exec_id)
        lost = [record for record in records.values() if not record.state.terminal]
        if lost:
            await self._ledger.reopen(lost)
            self._index.note_damage()
        self._open = found | {record.exec_id: record for record in lost}
        self._silence.keep(self._open, {record.agent for record in self._open.values()})

    async def _settle_all(self, records: list[Record], now_ms: int) -> int:
        """Settle the executions that need it, and return how many are still open."""
        if not records:
            return 0
        # Read before the claims: a worker that claims afterwards is alive.
        agents = await self._agents_of(records)
        async with self._redis.pipeline(transaction=False) as pipe:
            for record in records:
                pipe.get(keys.claim(record.agent, record.exec_id))
                pipe.exists(keys.result(record.agent, record.exec_id))
            # Read last: a record that was restored after a loss is there only in the life that knows of the loss.
            pipe.get(keys.LIFE)
            *answers, life = await pipe.execute(raise_on_error=False)
        latest = self._lives is None or self._lives.is_latest(life)
        still_open = 0
        for record, claim, has_result in zip(records, answers[::2], answers[1::2], strict=True):
            try:
                if isinstance(claim, Exception):
                    if not wrong_type(claim):
                        raise claim
                    log.error("reaper.claim_unreadable", id=record.exec_id, error=str(claim))
                    claim = UNREADABLE
                if claim is None and record.state is ExecState.QUEUED and not latest:
                    # Its agent reports in the new life whether it has started it.
                    still_open += 1
                elif not await self._settle(record, claim, bool(has_result), agents.get(record.agent), now_ms):
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
                # It would end the next process too, so one record must not end this one.
                log.exception("reaper.failed", id=record.exec_id)
                still_open += 1
        return still_open

    async def _settle(
        self, record: Record, claim: bytes | None, has_result: bool, agent: AgentState | None, now_ms: int
    ) -> bool:
        """Settle one execution if it needs it. Return True if it has a final state now."""
        if record.state.terminal:
            # Its change met an index that was no index, or it was put back while it ended.
            await self._redis.zrem(keys.OPEN, record.exec_id)
            return True
        ending = revocation_of_session(record, self._registry.revocations)
        if ending is not None and await self._executions.end_session(record, ending):
            return True
        if record.state is ExecState.PENDING_APPROVAL:
            return now_ms >= record.deadline_ms and await self._expire(record, "not approved in time")
        revoked = self._registry.revocations.active(record.agent)
        if revoked is not None:
            # Most ended with the revocation. Another orchestrator may have sent one more order at the same time.
            return await end_revoked(self._ledger, record, revoked) is not None
        settling = now_ms - record.admitted_ms > SETTLE_MS
        if has_result and settling and await self._record_result(record):
            return True
        if claim == UNREADABLE and record.state is ExecState.QUEUED:
            late = now_ms >= record.deadline_ms
            return late and await self._lose(record, "its claim cannot be read, so whether it started is unknown")
        if claim is None or claim in (UNREADABLE, FENCE.encode()):
            if record.state is ExecState.QUEUED:
                return await self._settle_unclaimed(record, agent, now_ms, settling=settling)
            # It was claimed, but Redis no longer knows by which run of the agent.
            claim = b""
        if record.state is ExecState.QUEUED and settling:
            # The agent's notice was missed. The receipt will contain the exact start.
            await self._ledger.started(record.agent, record.exec_id, 0)
        reason = (
            self._silence.lost(record.agent, claim.decode("utf-8", "replace"), agent, claimed=record.exec_id)
            or self._silence.without_result(record.exec_id, agent, has_result=has_result)
            or _overdue(record, now_ms)
        )
        return bool(reason) and await self._lose(record, reason)

    async def _settle_unclaimed(self, record: Record, agent: AgentState | None, now_ms: int, *, settling: bool) -> bool:
        """Settle a queued execution that no agent has claimed. Return True if it has a final state now."""
        if self._is_void(record, now_ms):
            return await self._settle_void(record, agent, now_ms)
        if self._lacks_claim(record, agent):
            return False
        obstacle = self._registry.observations.obstacle(record.agent)
        if obstacle and settling:
            return await self._expire(record, f"not started by agent {record.agent}: {obstacle}")
        return now_ms >= record.deadline_ms and await self._expire(record, "not started before its queue timeout")

    def _lacks_claim(self, record: Record, agent: AgentState | None) -> bool:
        """Return True if Redis may lack the claim of an execution, and its agent has not written it again yet.

        Also a life that is not known to have lost anything may lack the last claims of the one before: they leave no
        event in the audit trail. Without a report, the execution waits for the lease of the agent.
        """
        if self._lives is None or agent is None or not record.order_sha256 or record.life >= self._lives.number:
            return False
        if not agent.online:
            return not self._silence.lost(record.agent, "", agent)
        return _writes_again(agent) and not self._has_written_again(agent)

    def _has_written_again(self, agent: AgentState) -> bool:
        """Return True if an agent has written its claims again in the current life of Redis.

        A life without a known loss may lack the claims that were written to an earlier one.
        """
        assert self._lives is not None
        return self._lives.number_of(agent.heartbeat.life) >= self._lives.number

    def _is_void(self, record: Record, now_ms: int) -> bool:
        """Return True if an execution was queued before Redis lost data, so that no agent starts it."""
        if self._lives is None:
            return False
        if record.order_sha256:
            return record.life < self._lives.valid_from
        # Its order followed the admission, or the approval, in the part that Redis lost. A young one may get it yet.
        queued_ms = record.history[-1].at_ms
        return queued_ms <= self._lives.lost_ms and now_ms - queued_ms > SETTLE_MS

    async def _settle_void(self, record: Record, agent: AgentState | None, now_ms: int) -> bool:
        """Settle an execution that no agent will start any more, and that no agent has claimed according to Redis.

        Its agent may have claimed it in the part that Redis lost. It writes its claims again, and says so in its
        heartbeat. Without that, the execution waits for the lease of the agent.
        """
        if agent is not None and agent.online and self._has_written_again(agent):
            return await self._expire(record, "not started: Redis went back to an older state while it was queued")
        if silent := self._silence.lost(record.agent, "", agent):
            return await self._lose(record, f"{silent}, and Redis lost whether it was started")
        if agent is not None and agent.online and not _writes_again(agent):
            return now_ms >= record.deadline_ms and await self._expire(record, "not started before its queue timeout")
        reason = _overdue(record, now_ms)
        return bool(reason) and await self._lose(record, f"{reason}, and Redis lost whether it was started")

    async def _record_result(self, record: Record) -> bool:
        try:
            raw = await self._redis.get(keys.result(record.agent, record.exec_id))
        except ResponseError as error:
            if not wrong_type(error):
                raise
            return False
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


def _writes_again(agent: AgentState) -> bool:
    """Return False for a worker of version 0.2.0, which writes nothing again. Another one may have just started."""
    return bool(agent.heartbeat.life or agent.heartbeat.queues)


def _overdue(record: Record, now_ms: int) -> str:
    """Return why an execution is overdue if its agent should have reported it long ago; else empty."""
    latest_ms = record.deadline_ms + duration_ms(record.status().timeout) + OVERDUE_MS
    return "its agent never reported a result" if now_ms > latest_ms else ""
