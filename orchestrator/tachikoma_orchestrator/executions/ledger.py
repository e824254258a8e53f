"""The ledger: one record an execution in Redis, changed only by the scripts in `lua/`.

Every change is a compare-and-set that writes its audit event in the same script. What it says of an end is told to
callers through `evidence.py`, which verifies it; only `List` tells records as they stand.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum

import structlog
from redis.exceptions import ResponseError

from tachikoma.errors import RecordAltered
from tachikoma.identity.signed_messages import Receipt
from tachikoma.redis import keys
from tachikoma.redis.access import wrong_type
from tachikoma.redis.commands import Redis
from tachikoma.vocabulary.audit import AuditCode, AuditedRequest
from tachikoma.vocabulary.clock import duration_ms, optional_from_ms
from tachikoma.vocabulary.policies import RateLimitConfig
from tachikoma.vocabulary.requests import ExecRequest
from tachikoma.vocabulary.results import ExecResponse, ExecStatus, ExecTransition
from tachikoma.vocabulary.states import ExecState
from tachikoma_orchestrator.agents.revocations import parse
from tachikoma_orchestrator.audit.trail import AuditTrail, audited
from tachikoma_orchestrator.store.scripts import Call, Runner, Script

__all__ = ["FENCE", "Admission", "Dispatch", "Ledger", "Outcome", "Record", "receipt_fields"]

log = structlog.get_logger(__name__)

#: The claim's value when nobody may start the execution any more.
FENCE = "fence"
#: Records read in one round trip.
BATCH = 200


def _time(ms: bytes | None) -> datetime | None:
    return optional_from_ms(int(ms or 0))


class Outcome(StrEnum):
    """What the admission script answered; see `lua/admit.lua`."""

    ADMITTED = "ADMITTED"
    DUPLICATE = "DUPLICATE"
    CONFLICT = "CONFLICT"
    UNKNOWN = "UNKNOWN"
    OFFLINE = "OFFLINE"
    DRAINING = "DRAINING"
    REVOKED = "REVOKED"
    FULL = "FULL"
    APPROVALS = "APPROVALS"
    RATE = "RATE"
    CONCURRENT = "CONCURRENT"
    WAITING = "WAITING"


@dataclass(frozen=True, slots=True)
class Admission:
    """Everything the admission script needs of one request."""

    request: ExecRequest
    #: Its redacted argv.
    shown: tuple[str, ...]
    #: SHA-256 over all that would run and who asked.
    digest: str
    policy: str
    client_ip: str
    #: How long it may wait: on the agent's queue, or for its approval.
    wait: timedelta
    #: How long it may run, by the request or by policy.
    timeout: timedelta
    #: Limits by the name of what they count for.
    scopes: Mapping[str, RateLimitConfig]
    #: The signed request, where it needs an approval; else empty.
    parked: str = ""
    #: Patterns of those who may approve it.
    approvers: tuple[str, ...] = ()
    #: Whether its output waits for readers.
    waits: bool = False


@dataclass(frozen=True, slots=True)
class Dispatch:
    """An order for an agent's queue."""

    #: Of the request it is for, as in `Admission`.
    digest: str
    #: SHA-256 of the signed order.
    order_sha256: str
    #: name@digest of the policy that granted it.
    policy: str
    #: The Celery message.
    message: bytes


@dataclass(frozen=True, slots=True)
class Record:
    """An execution as the ledger has it."""

    exec_id: str
    fields: Mapping[bytes, bytes]

    def _text(self, name: str) -> str:
        return self.fields.get(name.encode(), b"").decode()

    @property
    def state(self) -> ExecState:
        return ExecState(self._text("state"))

    @property
    def agent(self) -> str:
        return self._text("agent")

    @property
    def requested_by(self) -> str:
        return self._text("requested_by")

    @property
    def order_sha256(self) -> str:
        return self._text("order_sha256")

    @property
    def receipt(self) -> str:
        """The signed receipt it ended with; empty where there is none."""
        return self._text("receipt")

    @property
    def history(self) -> list[tuple[ExecState, int]]:
        """The states it came through, and when (ms), the present one last."""
        steps = [step.partition(" ") for step in self._text("history").split(";")]
        return [(ExecState(state), int(at)) for state, _, at in steps]

    @property
    def passed(self) -> list[ExecState]:
        """The states it came through, the present one last."""
        return [state for state, _ in self.history]

    @property
    def command(self) -> str:
        """Its redacted argv as one line."""
        return self._text("command")

    @property
    def policy(self) -> str:
        """name@digest of the policy that granted it."""
        return self._text("policy")

    @property
    def error(self) -> str:
        """Why it ended as it did, where its exit code does not say it all."""
        return self._text("error")

    @property
    def cancel_requested_by(self) -> str:
        """Who asked for its end; empty where nobody did."""
        return self._text("cancel_requested_by")

    @property
    def waits(self) -> bool:
        """Whether its output waits for readers."""
        return self._text("waits") == "1"

    @property
    def digest(self) -> str:
        """Of the request; see `Admission`."""
        return self._text("digest")

    @property
    def client_ip(self) -> str:
        return self._text("client_ip")

    @property
    def admitted_ms(self) -> int:
        """When it was asked for, by the clock of Redis."""
        return int(self._text("admitted_ms"))

    @property
    def deadline_ms(self) -> int:
        return int(self._text("deadline_ms"))

    @property
    def chunks(self) -> int | None:
        """Number of the last chunk of output, once a receipt said so."""
        return int(self._text("chunks")) if b"chunks" in self.fields else None

    @property
    def output_bytes(self) -> int:
        """Bytes of both streams, once a receipt said so."""
        return int(self._text("stdout_bytes") or 0) + int(self._text("stderr_bytes") or 0)

    def status(self) -> ExecStatus:
        """The record for callers, as it stands.

        Raises:
            RecordAltered: it is none that this program wrote.
        """
        try:
            return self._status()
        except (ValueError, KeyError, TypeError, OverflowError, OSError) as error:
            raise self._unreadable(error) from None

    def check(self) -> Record:
        """Itself, if what everybody looks at in it can be read.

        Raises:
            RecordAltered: it cannot: somebody else wrote it.
        """
        try:
            _ = (
                self.state,
                self.passed,
                self.agent,
                self.requested_by,
                self.receipt,
                self.admitted_ms,
                self.deadline_ms,
            )
        except (ValueError, OverflowError) as error:
            raise self._unreadable(error) from None
        return self

    def _unreadable(self, error: Exception) -> RecordAltered:
        why = f"its record in the ledger cannot be read: {str(error)[:200]}"
        return RecordAltered(f"what became of {self.exec_id} cannot be told: {why}", metadata={"id": self.exec_id})

    def _status(self) -> ExecStatus:
        request = AuditedRequest.model_validate_json(self._text("request"))
        history = [
            ExecTransition(state=state, time=datetime.fromtimestamp(at / 1000, UTC)) for state, at in self.history
        ]
        admitted = _time(self.fields[b"admitted_ms"])
        assert admitted is not None
        return ExecStatus(
            id=self.exec_id,
            agent_id=self.agent,
            state=self.state,
            command=request.command,
            requested_by=self.requested_by,
            request_time=admitted,
            start_time=_time(self.fields.get(b"started_ms")),
            end_time=_time(self.fields.get(b"ended_ms")) or _time(self.fields.get(b"settled_ms")),
            exit_code=int(self._text("exit_code") or -1),
            error=self.error,
            policy_applied=self.policy,
            cancel_requested_by=self.cancel_requested_by,
            timeout=timedelta(seconds=request.timeout or 0),
            user=request.user,
            work_dir=request.work_dir,
            history=tuple(history),
            deadline=optional_from_ms(self.deadline_ms),
            approvers=tuple(json.loads(self._text("approvers") or "[]")),
            approved_by=self._text("approved_by"),
            approval_reason=self._text("approval_reason"),
        )

    def response(self) -> ExecResponse:
        """The end of an execution that has no receipt: nothing is known of an exit code or an output."""
        return ExecResponse(
            id=self.exec_id,
            agent_id=self.agent,
            state=self.state,
            exit_code=-1,
            start_time=_time(self.fields.get(b"started_ms")),
            end_time=_time(self.fields.get(b"settled_ms")),
            error=self.error,
            cancelled=self.state is ExecState.CANCELLED,
        )


def _not_a_record(exec_id: str, error: ResponseError) -> Exception:
    """What Redis answered instead of a record: that it is something else, or that it does not answer now."""
    return Record(exec_id, {})._unreadable(error) if wrong_type(error) else error


def receipt_fields(receipt: Receipt, token: str) -> dict[str, str]:
    """What a record holds of a receipt."""
    return {
        "exit_code": str(receipt.exit_code),
        "signal": str(receipt.signal),
        "error": receipt.error,
        "executable": receipt.executable,
        "usage": receipt.usage.to_json(),
        "kill": receipt.kill.to_json() if receipt.kill else "",
        "started_ms": str(receipt.started_ms),
        "ended_ms": str(receipt.ended_ms),
        "duration_us": str(receipt.duration_us),
        "chunks": str(receipt.chunks),
        "stdout_bytes": str(receipt.stdout.total_bytes),
        "stdout_sha256": receipt.stdout.sha256,
        "stderr_bytes": str(receipt.stderr.total_bytes),
        "stderr_sha256": receipt.stderr.sha256,
        "receipt": token,
    }


class Ledger:
    """Reads and changes records. All methods raise redis errors when Redis is away."""

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
            retention: how long ended executions are kept.
            durable: whether what authorises an execution is on the disk of Redis before its order is on the queue.
        """
        self._redis = redis
        self._queue_size = queue_size
        self._approvals_size = approvals_size
        self._retention_seconds = round(retention.total_seconds())
        self._durable = durable
        self.trail = trail
        self._runner = Runner(redis)
        self._admit = Script("admit")
        self._dispatch = Script("dispatch")
        self._transition = Script("transition")
        self._late = Script("late")

    # --- changes ------------------------------------------------------------------------------------------------------

    async def admit(self, admission: Admission, dispatch: Dispatch | None) -> tuple[Outcome, float]:
        """Record, audit and dispatch a request, or refuse it; one round trip.

        Args:
            admission: the request.
            dispatch: its order; None where it waits for an approval.

        Returns:
            The outcome; and after a refusal for a rate, the seconds after which a repetition may succeed, else 0.
        """
        request, shown = admission.request, admission.shown
        kept = audited(request, shown).model_copy(update={"timeout": admission.timeout.total_seconds()})
        record: list[str | bytes] = [
            "request", kept.to_json(),
            "requested_by", request.requested_by,
            "policy", admission.policy,
            "client_ip", admission.client_ip,
            "command", shlex.join(shown),
        ]  # fmt: skip
        if admission.approvers:
            record += ("approvers", json.dumps(admission.approvers))
        if admission.waits:
            record += ("waits", "1")
        event = self.trail.request_fields(
            request, policy=admission.policy, client_ip=admission.client_ip, authorized=True, shown=shown
        )
        agent, exec_id = request.agent_id, request.id
        scopes: list[str | int] = []
        for name, limit in admission.scopes.items():
            scopes += (name, limit.requests_per_minute, limit.concurrent_limit, limit.queue_size)
        admit = self._admit(
            keys=[
                keys.execution(exec_id), keys.info(agent), keys.queue(agent), keys.AUDIT, keys.AGENTS,
                keys.INDEX, keys.agent_index(agent), keys.OPEN, keys.APPROVALS, keys.parked(exec_id),
                keys.DRAINING, keys.REVOKED,
                *[key for name in admission.scopes for key in keys.scope(name)],
            ],
            args=[
                exec_id, agent, admission.digest, self._queue_size, duration_ms(admission.wait),
                admission.parked, self._approvals_size,
                len(admission.scopes), *scopes,
                len(record) // 2, *record, *event,
            ],
        )  # fmt: skip
        if dispatch is None:
            answer = await self._runner.run(admit)
        else:
            push = self._dispatch_call(agent, exec_id, dispatch)
            answer, _ = await self._runner.run_both(admit, push, durable=self._durable)
        return Outcome(answer[0].decode()), int(answer[2]) / 1000

    def _dispatch_call(self, agent: str, exec_id: str, dispatch: Dispatch) -> Call:
        return self._dispatch(
            keys=[keys.execution(exec_id), keys.queue(agent), keys.AUDIT],
            args=[
                exec_id, agent, dispatch.digest, dispatch.order_sha256, dispatch.policy, dispatch.message,
            ],
        )  # fmt: skip

    async def approve(
        self, agent: str, exec_id: str, dispatch: Dispatch, *,
        wait: timedelta, by: str, reason: str, digest: str, waits: bool = False,
    ) -> str:  # fmt: skip
        """Let an execution that waits for its approval go on the queue; one round trip.

        Args:
            agent, exec_id: the execution.
            dispatch: its order.
            wait: how long it may wait on the queue.
            by: SPIFFE ID of who approved it.
            reason: why.
            digest: of what was approved.
            waits: whether its output waits for readers.

        Returns:
            The script's outcome: DONE, STATE or MISSING.
        """
        move = self._transition_call(
            agent, exec_id, [ExecState.PENDING_APPROVAL], ExecState.QUEUED,
            {"approved_by": by, "approval_reason": reason, "waits": "1" if waits else ""},
            code=AuditCode.APPROVED, wait=wait, extra={"actor": by, "reason": reason, "evidence_sha256": digest},
        )  # fmt: skip
        push = self._dispatch_call(agent, exec_id, dispatch)
        answer, _ = await self._runner.run_both(move, push, durable=self._durable)
        return str(answer[0].decode())

    async def started(self, agent: str, exec_id: str, started_ms: int) -> bool:
        """Move QUEUED to STARTED. False when it was in another state."""
        return await self._move(
            agent,
            exec_id,
            [ExecState.QUEUED],
            ExecState.STARTED,
            {"started_ms": str(started_ms)},
            code=AuditCode.STARTED,
        )

    async def ended(self, agent: str, exec_id: str, receipt: Receipt, token: str) -> str:
        """Fold a verified receipt. Returns the script's outcome: DONE, STATE, MISSING or ORDER."""
        fields = receipt_fields(receipt, token)
        return await self._transition_outcome(
            agent, exec_id, [ExecState.QUEUED, ExecState.STARTED], receipt.state, fields,
            code=AuditCode(receipt.state.lower()), order_sha256=receipt.order_sha256,
            started_ms=str(receipt.started_ms) if receipt.started_ms else "",
            extra={
                "exit_code": fields["exit_code"], "duration_us": fields["duration_us"],
                "start_ms": fields["started_ms"], "reason": receipt.error,
                "evidence_sha256": hashlib.sha256(token.encode()).hexdigest(),
            },
        )  # fmt: skip

    async def late(self, record: Record, receipt: Receipt, token: str) -> None:
        """Put on the record, once, that an agent reports the end of what had been given up; that end stands."""
        digest = hashlib.sha256(token.encode()).hexdigest()
        event = {
            "event": AuditCode.LATE_RECEIPT, "id": record.exec_id, "agent_id": record.agent, "authorized": "1",
            "requested_by": record.requested_by, "exit_code": str(receipt.exit_code),
            "reason": f"the agent reports {receipt.state} after it was given up as {record.state}",
            "evidence_sha256": digest,
        }  # fmt: skip
        call = self._late(
            keys=[keys.execution(record.exec_id), keys.AUDIT],
            args=[digest, *[part for pair in event.items() for part in pair]],
        )
        await self._runner.run(call)

    async def settle(
        self, agent: str, exec_id: str, from_states: Sequence[ExecState], to: ExecState, *,
        reason: str, by: str = "", fence: bool,
    ) -> str:  # fmt: skip
        """End an execution without a receipt. With `fence`, only if its agent can never start it.

        Returns:
            The script's outcome: DONE, STATE, MISSING or CLAIMED.
        """
        fields = {"error": reason, **({"cancel_requested_by": by} if by and to is ExecState.CANCELLED else {})}
        return await self._transition_outcome(
            agent, exec_id, from_states, to, fields,
            code=AuditCode(to.lower()), fence=fence, extra={"reason": reason, "actor": by},
        )  # fmt: skip

    async def request_cancel(self, agent: str, exec_id: str, by: str) -> str:
        """Note who asked for the end of an execution that may be running."""
        return await self._transition_outcome(
            agent, exec_id, [ExecState.QUEUED, ExecState.STARTED], None, {"cancel_requested_by": by},
            code=AuditCode.CANCEL_REQUESTED, extra={"actor": by},
        )  # fmt: skip

    async def _move(
        self, agent: str, exec_id: str, from_states: Sequence[ExecState], to: ExecState,
        fields: dict[str, str], *, code: AuditCode,
    ) -> bool:  # fmt: skip
        return await self._transition_outcome(agent, exec_id, from_states, to, fields, code=code) == "DONE"

    async def _transition_outcome(
        self, agent: str, exec_id: str, from_states: Sequence[ExecState], to: ExecState | None,
        fields: dict[str, str], *, code: AuditCode, fence: bool = False, order_sha256: str = "",
        started_ms: str = "", extra: dict[str, str] | None = None,
    ) -> str:  # fmt: skip
        call = self._transition_call(
            agent, exec_id, from_states, to, fields,
            code=code, fence=fence, order_sha256=order_sha256, started_ms=started_ms, extra=extra,
        )  # fmt: skip
        return str((await self._runner.run(call))[0].decode())

    def _transition_call(
        self, agent: str, exec_id: str, from_states: Sequence[ExecState], to: ExecState | None,
        fields: dict[str, str], *, code: AuditCode, fence: bool = False, order_sha256: str = "",
        wait: timedelta = timedelta(0), started_ms: str = "", extra: dict[str, str] | None = None,
    ) -> Call:  # fmt: skip
        event = {"event": code, "id": exec_id, "agent_id": agent, "authorized": "1", **(extra or {})}
        return self._transition(
            keys=[
                keys.execution(exec_id), keys.AUDIT, keys.OPEN, keys.ENDED, keys.claim(agent, exec_id),
                keys.APPROVALS, keys.parked(exec_id), keys.APPROVED,
            ],
            args=[
                exec_id, ",".join(from_states), to or "", "1" if to and to.terminal else "0",
                FENCE if fence else "", self._retention_seconds, order_sha256, duration_ms(wait), started_ms,
                agent, secrets.token_hex(8), len(fields), *[part for pair in fields.items() for part in pair],
                *[part for pair in event.items() for part in pair],
            ],
        )  # fmt: skip

    # --- reads --------------------------------------------------------------------------------------------------------

    async def record(self, exec_id: str) -> Record | None:
        """One record, or None where there is none.

        Raises:
            RecordAltered: what stands there is no record.
        """
        try:
            fields = await self._redis.hgetall(keys.execution(exec_id))
        except ResponseError as error:
            raise _not_a_record(exec_id, error) from None
        return Record(exec_id, fields).check() if fields else None

    async def records(self, exec_ids: Sequence[str]) -> list[Record]:
        """Records in the order asked for; those that are missing, or are none, are left out."""
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
                        raise _not_a_record(exec_id, fields)
                    if isinstance(fields, Exception):
                        raise fields
                    if fields:
                        found.append(Record(exec_id, fields).check())
                except RecordAltered as error:
                    log.error("record.unreadable", id=exec_id, reason=str(error))
        return found

    async def readiness(self, agent: str) -> Outcome:
        """Whether an agent takes orders now: ADMITTED, REVOKED, OFFLINE, DRAINING or FULL."""
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.exists(keys.info(agent))
            pipe.hexists(keys.DRAINING, agent)
            pipe.llen(keys.queue(agent))
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
        """The signed request of an execution that waits for its approval."""
        token: bytes | None = await self._redis.get(keys.parked(exec_id))
        return None if token is None else token.decode("ascii", "replace")

    async def approvals(self) -> list[Record]:
        """Executions that wait for an approval, those with the nearest deadline first."""
        ids = await self._redis.zrange(keys.APPROVALS, 0, self._approvals_size - 1)
        records = await self.records([item.decode(errors="replace") for item in ids])
        return [record for record in records if record.state is ExecState.PENDING_APPROVAL]

    async def open_executions(self, *, offset: int, limit: int) -> list[str]:
        """Ids of executions that have not ended, those with the nearest queue deadline first."""
        ids: list[str] = []
        for item in await self._redis.zrange(keys.OPEN, offset, offset + limit - 1):
            try:
                ids.append(item.decode())
            except UnicodeDecodeError:
                # No execution has such an id; what others put there must not be looked at again and again.
                log.error("open.unreadable", id=repr(item)[:200])
                await self._redis.zrem(keys.OPEN, item)
        return ids

    async def newest(
        self, agent: str, *, ended: bool, before: tuple[int, int] | None, limit: int, since_ms: int = 0
    ) -> list[tuple[str, int]]:
        """Ids and scores (ms) of executions, newest first.

        Args:
            agent: only of this agent, where the index allows; empty for all.
            ended: also those that have ended.
            before: the score of the last one seen, and how many of that score were seen already.
            limit: most to return.
            since_ms: none accepted before that; not looked at where only those are asked for that have not ended.
        """
        # Those that have not ended are few, and stand in an index of their own, of all agents.
        index = keys.OPEN if not ended else keys.agent_index(agent) if agent else keys.INDEX
        top, skip = (str(before[0]), before[1]) if before else ("+inf", 0)
        bottom = since_ms if ended else "-inf"
        found = await self._redis.zrevrangebyscore(index, top, bottom, start=skip, num=limit, withscores=True)
        return [(exec_id.decode(errors="replace"), int(score)) for exec_id, score in found]

    async def now_ms(self) -> int:
        """The clock of Redis, which all times of the ledger are told by."""
        seconds, micros = await self._redis.time()
        return int(seconds) * 1000 + int(micros) // 1000

    async def trim(self, now_ms: int) -> None:
        """Let go of what is past its retention. Records expire by themselves."""
        oldest = now_ms - self._retention_seconds * 1000
        agents = await self._redis.hkeys(keys.AGENTS)
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.zremrangebyscore(keys.INDEX, "-inf", oldest)
            for agent in agents:
                pipe.zremrangebyscore(keys.agent_index(agent.decode(errors="replace")), "-inf", oldest)
            await pipe.execute()
