"""The ledger: one record for each execution in Redis, changed only by the scripts in `store/lua/`.

Each change is a compare-and-set that writes its audit event in the same script. Callers get the final state of an
execution through `evidence.py`, which verifies it. Only `List` shows records as they are stored.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import timedelta

import structlog
from redis.exceptions import ResponseError

from tachikoma.errors import RecordAltered
from tachikoma.identity.signed_messages import Receipt
from tachikoma.redis import keys
from tachikoma.redis.access import wrong_type
from tachikoma.redis.commands import Redis
from tachikoma.vocabulary.audit import AuditCode
from tachikoma.vocabulary.clock import LAST_MS, duration_ms, redis_ms, seconds_of_ms
from tachikoma.vocabulary.states import ExecState
from tachikoma_orchestrator.agents.revocations import parse
from tachikoma_orchestrator.audit.trail import AuditTrail
from tachikoma_orchestrator.executions.evidence import not_a_record
from tachikoma_orchestrator.executions.record import Record
from tachikoma_orchestrator.executions.settled import ReportedStates
from tachikoma_orchestrator.executions.transitions import (
    Admission,
    Dispatch,
    Outcome,
    Transition,
    TransitionOutcome,
    record_fields,
    scope_arguments,
)
from tachikoma_orchestrator.metrics import measure_admission, measure_end, measure_queue
from tachikoma_orchestrator.store.scripts import Call, Runner, Script, flat

__all__ = ["Ledger"]

log = structlog.get_logger(__name__)

#: Records read in one round trip.
BATCH = 200
#: Refusals for a limit.
LIMITS = (Outcome.FULL, Outcome.APPROVALS, Outcome.RATE, Outcome.CONCURRENT, Outcome.WAITING)


class Ledger:
    """Reads and changes records. All methods raise redis errors when Redis is unavailable."""

    def __init__(
        self, redis: Redis, trail: AuditTrail, *,
        queue_size: int, approvals_size: int, retention: timedelta, durable: bool,
    ) -> None:  # fmt: skip
        """Prepare a ledger.

        Args:
            redis: the connections.
            trail: the audit trail, to which the scripts append.
            queue_size: most orders on an agent's queue.
            approvals_size: most executions that wait for an approval.
            retention: how long completed executions are kept.
            durable: True if an execution's authorisation must be on the disk of Redis before its order is on the queue.
        """
        self._redis = redis
        self._queue_size = queue_size
        self._approvals_size = approvals_size
        self._retention = retention
        self._keep_seconds = round(retention.total_seconds())
        self._durable = durable
        self.trail = trail
        self._runner = Runner(redis)
        self._reported = ReportedStates(self._transition_call, self._keep_seconds)
        self._admit = Script("admit")
        self._dispatch = Script("dispatch")
        self._transition = Script("transition")
        self._late = Script("late")

    # --- changes ------------------------------------------------------------------------------------------------------

    async def admit(self, admission: Admission, dispatch: Dispatch | None) -> tuple[Outcome, float]:
        """Record, audit and dispatch a request, or refuse it. A second script dispatches after a needed confirmation.

        Args:
            admission: the request.
            dispatch: its order; None if it waits for an approval.

        Returns:
            The outcome; and after a refusal for a rate, the seconds after which a repetition may succeed, else 0.

        Raises:
            RecordAltered: the id has a value in Redis that is no record, so no repetition would succeed.
        """
        try:
            return (await self.admit_all([(admission, dispatch)]))[0]
        except ResponseError as error:
            if wrong_type(error):
                await self.record(admission.request.id)
            raise

    async def admit_all(self, requests: Sequence[tuple[Admission, Dispatch | None]]) -> list[tuple[Outcome, float]]:
        """Admit several requests in one round trip, each as `admit` does; a refusal of one does not affect others.

        Each request is decided by a script of its own. Returns as `admit` does, in the same order.
        """
        recorded = [self.trail.refusals.admits(admission.request.requested_by) for admission, _ in requests]
        admits, pushes = [], []
        apart = self._runner.waits_between(durable=self._durable)
        for (admission, dispatch), record in zip(requests, recorded, strict=True):
            admits.append(self._admit_call(admission, dispatch, recorded=record, apart=apart))
            if dispatch is not None and apart:
                pushes.append(self._dispatch_call(admission.request.agent_id, admission.request.id, dispatch))
        answers = await self._runner.run_all(admits, pushes, durable=self._durable)
        found = []
        for (admission, _), record, answer in zip(requests, recorded, answers, strict=True):
            outcome = Outcome(answer[0].decode())
            self._count_refusal(admission.request.requested_by, outcome, recorded=record)
            measure_admission(outcome, parked=bool(admission.approvers))
            found.append((outcome, seconds_of_ms(int(answer[2]))))
        return found

    def _count_refusal(self, requester: str, outcome: Outcome, *, recorded: bool) -> None:
        """Settle the budget of refusal events: give back what was not used, count what was left out."""
        refusals = self.trail.refusals
        if outcome in (Outcome.ADMITTED, Outcome.DUPLICATE, Outcome.HELD):
            if recorded:
                refusals.give_back(requester)
        elif not recorded:
            refusals.leave_out(requester, AuditCode.LIMITED if outcome in LIMITS else AuditCode.REFUSED)

    def _admit_call(self, admission: Admission, dispatch: Dispatch | None, *, recorded: bool, apart: bool) -> Call:
        """Return the call that admits a request; `apart` is True if another call sends its order."""
        agent, exec_id = admission.request.agent_id, admission.request.id
        event, refusal = self.trail.admission_fields(
            admission.request, admission.shown,
            policy=admission.policy, client_ip=admission.client_ip, batch=admission.batch,
        )  # fmt: skip
        record = record_fields(admission)
        requests = record.pop("request"), event.pop("request")
        sent = None if apart else dispatch
        queue = dispatch.queue if dispatch is not None and dispatch.queue else keys.queue(agent)
        return self._admit(
            keys=[
                keys.execution(exec_id), keys.info(agent), queue, keys.AUDIT, keys.AGENTS,
                keys.INDEX, keys.agent_index(agent), keys.OPEN, keys.APPROVALS, keys.parked(exec_id),
                keys.DRAINING, keys.REVOKED,
                *[key for name in admission.scopes for key in keys.scope(name)],
            ],
            args={
                "id": exec_id,
                "agent": agent,
                "digest": admission.digest,
                "queue_size": self._queue_size,
                "approvals_size": self._approvals_size,
                "wait_ms": duration_ms(admission.wait),
                "record_refusal": recorded,
                "unfit": admission.unfit,
                "batch": admission.batch,
                "scopes": scope_arguments(admission.scopes),
                "record": flat(record),
                "event": flat(event),
                "shorter_event": flat(refusal),
                "order": sent.arguments() if sent else {},
            },
            payloads=[admission.parked, *requests, sent.message if sent else b""],
        )  # fmt: skip

    def _dispatch_call(self, agent: str, exec_id: str, dispatch: Dispatch) -> Call:
        return self._dispatch(
            keys=[keys.execution(exec_id), dispatch.queue or keys.queue(agent), keys.AUDIT],
            args={"id": exec_id, "agent": agent, "digest": dispatch.digest, "order": dispatch.arguments()},
            payloads=[dispatch.message],
        )  # fmt: skip

    async def approve(
        self, agent: str, exec_id: str, dispatch: Dispatch, *,
        wait: timedelta, by: str, reason: str, digest: str, waits: bool = False,
    ) -> TransitionOutcome:  # fmt: skip
        """Put an execution that waits for its approval on the queue; one round trip.

        Args:
            agent, exec_id: the execution.
            dispatch: its order.
            wait: longest wait on the queue.
            by: SPIFFE ID of the approver.
            reason: the approver's reason.
            digest: digest of the approved request and its grant.
            waits: True if the command waits for readers of its output.

        Returns:
            DONE, STATE or MISSING.
        """
        move = self._transition_call(
            Transition.approval(agent, exec_id, wait=wait, by=by, reason=reason, digest=digest, waits=waits)
        )
        push = self._dispatch_call(agent, exec_id, dispatch)
        answer = (await self._runner.run_all([move], [push], durable=self._durable))[0]
        return TransitionOutcome(answer[0].decode())

    async def apply(self, transition: Transition) -> TransitionOutcome:
        """Apply one change, or return why it does not apply."""
        answer = await self._runner.run(self._transition_call(transition), confirmed=transition.confirmed)
        if (outcome := TransitionOutcome(answer[0].decode())) is TransitionOutcome.DONE:
            measure_end(transition.target, transition.agent)
            if "receipt" in transition.fields:
                measure_queue(int(answer[4]), transition.started_ms)
            self._reported.remember(transition, answer[3])
        return outcome

    def _transition_call(self, transition: Transition) -> Call:
        exec_id = transition.exec_id
        return self._transition(
            keys=[
                keys.execution(exec_id), keys.AUDIT, keys.OPEN, keys.ENDED, keys.claim(transition.agent, exec_id),
                keys.APPROVALS, keys.parked(exec_id), keys.APPROVED, keys.OUTPUTS,
            ],
            args=transition.arguments(keep_seconds=self._keep_seconds),
        )  # fmt: skip

    async def started(self, agent: str, exec_id: str, started_ms: int) -> bool:
        """Move an execution from QUEUED to STARTED. Return False if it was in another state."""
        return await self.apply(Transition.start(agent, exec_id, started_ms)) is TransitionOutcome.DONE

    async def complete(self, agent: str, exec_id: str, receipt: Receipt, token: str) -> TransitionOutcome:
        """Record the final state of a verified receipt. Return DONE, STATE, MISSING or ORDER."""
        return await self.apply(Transition.completion(agent, exec_id, receipt, token))

    async def settle(
        self, agent: str, exec_id: str, sources: Sequence[ExecState], target: ExecState, *,
        reason: str, by: str = "", fence: bool,
    ) -> TransitionOutcome:  # fmt: skip
        """Record a final state that has no receipt.

        Args:
            agent, exec_id: the execution.
            sources: states in which the change applies.
            target: the final state.
            reason: why; shown to callers and audited.
            by: SPIFFE ID of the caller that caused it; empty for none.
            fence: True to settle only an execution that its agent can never start.

        Returns:
            DONE, STATE, MISSING or CLAIMED.
        """
        return await self.apply(
            Transition.settlement(agent, exec_id, sources, target, reason=reason, by=by, fence=fence)
        )

    async def write_again(self, redis: Redis) -> None:
        """Record final states again that were reported, after Redis lost data. Raises redis errors.

        Args:
            redis: connections that need not wait for the new life of Redis.
        """
        await self._reported.write_again(redis)

    async def request_cancel(self, agent: str, exec_id: str, by: str, reason: str = "") -> TransitionOutcome:
        """Record that `by` requested the cancellation of an execution that may be running, for a reason."""
        return await self.apply(Transition.cancel_request(agent, exec_id, by, reason))

    async def audit_late(self, record: Record, receipt: Receipt, token: str) -> None:
        """Audit once that an agent reports an execution that had been given up; its final state stays."""
        digest = hashlib.sha256(token.encode()).hexdigest()
        event = {
            "event": AuditCode.LATE_RECEIPT, "id": record.exec_id, "agent_id": record.agent, "authorized": "1",
            "requested_by": record.requested_by, "exit_code": str(receipt.exit_code),
            "reason": f"the agent reports {receipt.state} after the execution was given up as {record.state}",
            "evidence_sha256": digest,
        }  # fmt: skip
        call = self._late(
            keys=[keys.execution(record.exec_id), keys.AUDIT],
            args={"receipt_sha256": digest, "event": flat(event)},
        )
        await self._runner.run(call)

    # --- reads --------------------------------------------------------------------------------------------------------

    async def record(self, exec_id: str) -> Record | None:
        """Return one record, or None if it does not exist.

        Raises:
            RecordAltered: the value in Redis is no record.
        """
        try:
            fields = await self._redis.hgetall(keys.execution(exec_id))
        except ResponseError as error:
            raise not_a_record(exec_id, error) from None
        return Record.parse(exec_id, fields) if fields else None

    async def records(self, exec_ids: Sequence[str]) -> list[Record]:
        """Return records in the given order, without those that are missing or cannot be read."""
        found: list[Record] = []
        for begin in range(0, len(exec_ids), BATCH):
            part = exec_ids[begin : begin + BATCH]
            async with self._redis.pipeline(transaction=False) as pipe:
                for exec_id in part:
                    pipe.hgetall(keys.execution(exec_id))
                answers = await pipe.execute(raise_on_error=False)
            for exec_id, fields in zip(part, answers, strict=True):
                try:
                    if isinstance(fields, ResponseError):
                        raise not_a_record(exec_id, fields)
                    if isinstance(fields, Exception):
                        raise fields
                    if fields:
                        found.append(Record.parse(exec_id, fields))
                except RecordAltered as error:
                    log.error("record.unreadable", id=exec_id, reason=str(error))
        return found

    async def readiness(self, agent: str, queue: str) -> Outcome:
        """Return whether an agent accepts orders now: ADMITTED, REVOKED, OFFLINE, DRAINING or FULL.

        Args:
            agent: the agent.
            queue: the queue that the order would be on.
        """
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.exists(keys.info(agent))
            pipe.hexists(keys.DRAINING, agent)
            pipe.llen(queue)
            pipe.hget(keys.REVOKED, agent)
            online, draining, waiting, revoked = await pipe.execute()
        if revoked is not None and parse(revoked).active:
            return Outcome.REVOKED
        if not online:
            return Outcome.OFFLINE
        if draining:
            return Outcome.DRAINING
        return Outcome.FULL if waiting >= self._queue_size else Outcome.ADMITTED

    async def parked(self, exec_id: str) -> str | None:
        """Return the signed request of an execution that waits for its approval; None if it is gone."""
        token: bytes | None = await self._redis.get(keys.parked(exec_id))
        return None if token is None else token.decode("ascii", "replace")

    async def approvals(self) -> list[Record]:
        """Return executions that wait for an approval, those with the nearest deadline first."""
        ids = await self._redis.zrange(keys.APPROVALS, 0, self._approvals_size - 1)
        records = await self.records([item.decode(errors="replace") for item in ids])
        return [record for record in records if record.state is ExecState.PENDING_APPROVAL]

    async def open_executions(self, *, offset: int, limit: int) -> list[str]:
        """Return ids of executions without a final state, those with the nearest queue deadline first."""
        ids: list[str] = []
        for item in await self._redis.zrange(keys.OPEN, offset, offset + limit - 1):
            try:
                ids.append(item.decode())
            except UnicodeDecodeError:
                # No execution has such an id. The entry is removed, or it would be read again on every pass.
                log.error("open.unreadable", id=repr(item)[:200])
                await self._redis.zrem(keys.OPEN, item)
        return ids

    async def reopen(self, records: Sequence[Record]) -> None:
        """Put executions without a final state back into the index that the reaper reads, if they are not there."""
        if not records:
            return
        try:
            await self._redis.zadd(keys.OPEN, {record.exec_id: record.deadline_ms for record in records}, nx=True)
        except ResponseError as error:
            if not wrong_type(error):
                raise

    async def due(self, after_ms: int, to_ms: int, *, limit: int) -> list[str]:
        """Return open executions whose deadline is in a range of times, both included; none without an index."""
        try:
            found = await self._redis.zrange(keys.OPEN, after_ms, to_ms, byscore=True, offset=0, num=limit)
        except ResponseError as error:
            if not wrong_type(error):
                raise
            return []
        return [item.decode(errors="replace") for item in found]

    async def newest(
        self, agent: str, *, ended: bool, before: tuple[int, int] | None, limit: int, since_ms: int = 0
    ) -> list[tuple[str, int]]:
        """Return ids and scores (ms) of executions, newest first.

        Args:
            agent: only executions of this agent, where an index allows it; empty for all.
            ended: True to include executions in a final state.
            before: the last score of the previous page, and how many executions of that score it returned.
            limit: largest number of executions to return.
            since_ms: only executions accepted at or after this time; ignored without `ended`.
        """
        # Executions without a final state are few. They have one index for all agents.
        index = keys.OPEN if not ended else keys.agent_index(agent) if agent else keys.INDEX
        # Other scores are not ours, and an infinite one has no number.
        top, skip = before or (LAST_MS, 0)
        bottom = since_ms if ended else 0
        found = await self._redis.zrevrangebyscore(index, top, bottom, start=skip, num=limit, withscores=True)
        return [(exec_id.decode(errors="replace"), int(score)) for exec_id, score in found]

    async def now_ms(self) -> int:
        """Return the time of Redis in milliseconds since the epoch; all times of the ledger come from this clock."""
        return redis_ms(*map(int, await self._redis.time()))

    async def trim(self, now_ms: int) -> None:
        """Remove index entries past their retention. Records expire in Redis."""
        oldest = now_ms - duration_ms(self._retention)
        agents = await self._redis.hkeys(keys.AGENTS)
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.zremrangebyscore(keys.INDEX, "-inf", oldest)
            pipe.zremrangebyscore(keys.BATCHES, "-inf", oldest)
            for agent in agents:
                pipe.zremrangebyscore(keys.agent_index(agent.decode(errors="replace")), "-inf", oldest)
            await pipe.execute()
