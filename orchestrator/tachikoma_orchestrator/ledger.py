"""The ledger: one record an execution in Redis, changed only by the two scripts in `lua/`.

Every change is a compare-and-set that writes its audit event in the same script. `Status` and `List` read nothing else.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any

from tachikoma import keys
from tachikoma.models import (
    ExecAuditLog,
    ExecRequest,
    ExecResponse,
    ExecState,
    ExecStatus,
    ExecTransition,
    OutputSummary,
    RateLimitConfig,
    ResourceUsage,
)
from tachikoma.redaction import command_line, redact
from tachikoma.redis_access import Redis
from tachikoma.signed import Receipt
from tachikoma_orchestrator import lua

__all__ = ["FENCE", "Admission", "Ledger", "Outcome", "Record"]

#: The claim's value when nobody may start the execution any more.
FENCE = "fence"
#: Records read in one round trip.
BATCH = 200


class Outcome(StrEnum):
    """What the admission script answered; see `lua/admit.lua`."""

    ADMITTED = "ADMITTED"
    DUPLICATE = "DUPLICATE"
    CONFLICT = "CONFLICT"
    UNKNOWN = "UNKNOWN"
    OFFLINE = "OFFLINE"
    FULL = "FULL"
    RATE = "RATE"
    CONCURRENT = "CONCURRENT"
    WAITING = "WAITING"


@dataclass(frozen=True, slots=True)
class Admission:
    """Everything the admission script needs of one request."""

    request: ExecRequest
    #: SHA-256 over all that would run and who asked.
    digest: str
    #: SHA-256 of the signed order.
    order_sha256: str
    #: The Celery message.
    message: bytes
    policy: str
    client_ip: str
    queue_timeout: timedelta
    #: Limits by the name of what they count for.
    scopes: Mapping[str, RateLimitConfig]


def from_milliseconds(value: int) -> datetime | None:
    """A time of the ledger or a receipt; None for 0, which stands for never."""
    return datetime.fromtimestamp(value / 1000, UTC) if value else None


def _time(milliseconds: bytes | None) -> datetime | None:
    return from_milliseconds(int(milliseconds or 0))


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
        """The record for callers."""
        request = json.loads(self._text("request"))
        history = []
        for step in self._text("history").split(";"):
            state, _, at = step.partition(" ")
            history.append(ExecTransition(state=ExecState(state), time=datetime.fromtimestamp(int(at) / 1000, UTC)))
        admitted = _time(self.fields[b"admitted_ms"])
        assert admitted is not None
        return ExecStatus(
            id=self.exec_id,
            agent_id=self.agent,
            state=self.state,
            command=tuple(request["command"]),
            requested_by=self.requested_by,
            request_time=admitted,
            start_time=_time(self.fields.get(b"started_ms")),
            end_time=_time(self.fields.get(b"ended_ms")) or _time(self.fields.get(b"settled_ms")),
            exit_code=int(self._text("exit_code") or -1),
            error=self._text("error"),
            policy_applied=self._text("policy"),
            cancel_requested_by=self._text("cancel_requested_by"),
            timeout=request["timeout"],
            user=request["user"],
            work_dir=request["workDir"],
            history=tuple(history),
        )

    def response(self, stdout: bytes = b"", stderr: bytes = b"") -> ExecResponse:
        """The end of the execution, with what there is of its output."""

        def summary(name: str, held: bytes) -> OutputSummary:
            total = int(self._text(f"{name}_bytes") or 0)
            return OutputSummary(total_bytes=total, sha256=self._text(f"{name}_sha256"), truncated=len(held) < total)

        return ExecResponse(
            id=self.exec_id,
            agent_id=self.agent,
            state=self.state,
            exit_code=int(self._text("exit_code") or -1),
            signal=int(self._text("signal") or 0),
            stdout=stdout,
            stderr=stderr,
            stdout_summary=summary("stdout", stdout),
            stderr_summary=summary("stderr", stderr),
            start_time=_time(self.fields.get(b"started_ms")),
            end_time=_time(self.fields.get(b"ended_ms")) or _time(self.fields.get(b"settled_ms")),
            duration=timedelta(microseconds=int(self._text("duration_us") or 0)),
            error=self._text("error"),
            cancelled=self.state is ExecState.CANCELLED,
            usage=ResourceUsage.model_validate_json(self._text("usage") or "{}"),
        )


class Ledger:
    """Reads and changes records. All methods raise redis errors when Redis is away."""

    def __init__(self, redis: Redis, *, queue_size: int, retention: timedelta) -> None:
        self._redis = redis
        self._queue_size = queue_size
        self._retention_seconds = round(retention.total_seconds())
        self._admit = redis.register_script(lua.load("admit"))
        self._transition = redis.register_script(lua.load("transition"))

    # --- changes ------------------------------------------------------------------------------------------------------

    async def admit(self, admission: Admission) -> tuple[Outcome, float]:
        """Record, audit and dispatch a request, or refuse it; one round trip.

        Returns:
            The outcome; and after a refusal for a rate, the seconds after which a repetition may succeed, else 0.
        """
        request = admission.request
        shown = redact(request.command)
        kept = {
            "command": shown,
            # Values may be secrets; the order carries them, the ledger does not.
            "environment": sorted(request.environment),
            "workDir": request.work_dir,
            "user": request.user,
            "timeout": request.timeout.total_seconds() if request.timeout else 0,
        }
        record: list[str | bytes] = [
            "request", json.dumps(kept, separators=(",", ":")),
            "requested_by", request.requested_by,
            "order_sha256", admission.order_sha256,
            "policy", admission.policy,
            "client_ip", admission.client_ip,
            "command", command_line(request.command),
        ]  # fmt: skip
        event = self._event(request, policy=admission.policy, client_ip=admission.client_ip, authorized=True, code=None)
        agent, exec_id = request.agent_id, request.id
        scopes: list[str | int] = []
        for name, limit in admission.scopes.items():
            scopes += (name, limit.requests_per_minute, limit.concurrent_limit, limit.queue_size)
        answer = await self._admit(
            keys=[
                keys.execution(exec_id), keys.info(agent), keys.queue(agent), keys.AUDIT, keys.AGENTS,
                keys.INDEX, keys.agent_index(agent), keys.OPEN,
                *[key for name in admission.scopes for key in keys.scope(name)],
            ],
            args=[
                exec_id, agent, admission.digest, self._queue_size,
                round(admission.queue_timeout.total_seconds() * 1000), admission.message,
                len(admission.scopes), *scopes,
                len(record) // 2, *record, *event,
            ],
        )  # fmt: skip
        return Outcome(answer[0].decode()), int(answer[2]) / 1000

    async def refuse(self, request: ExecRequest, code: str, *, policy: str, reason: str, client_ip: str) -> None:
        """Put a refusal on the record; it never becomes an execution."""
        event = self._event(request, policy=policy, client_ip=client_ip, authorized=False, code=code)
        await self.append_audit([*event, "reason", reason])

    async def append_audit(self, event: Sequence[str]) -> None:
        """Append an event, given as names and values."""
        names, values = event[::2], event[1::2]
        await self._redis.xadd(keys.AUDIT, dict(zip(names, values, strict=True)))

    async def started(self, agent: str, exec_id: str, started_ms: int) -> bool:
        """Move QUEUED to STARTED. False when it was in another state."""
        return await self._move(
            agent, exec_id, [ExecState.QUEUED], ExecState.STARTED, {"started_ms": str(started_ms)}, code="started"
        )

    async def ended(self, agent: str, exec_id: str, receipt: Receipt, token: str) -> str:
        """Fold a verified receipt. Returns the script's outcome: DONE, STATE, MISSING or ORDER."""
        fields = {
            "exit_code": str(receipt.exit_code),
            "signal": str(receipt.signal),
            "error": receipt.error,
            "executable": receipt.executable,
            "usage": receipt.usage.to_json(),
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
        return await self._transition_outcome(
            agent, exec_id, [ExecState.QUEUED, ExecState.STARTED], receipt.state, fields,
            code=receipt.state.lower(), order_sha256=receipt.order_sha256,
            extra={
                "exit_code": fields["exit_code"], "duration_us": fields["duration_us"],
                "start_ms": fields["started_ms"], "reason": receipt.error,
            },
        )  # fmt: skip

    async def settle(
        self, agent: str, exec_id: str, from_states: Sequence[ExecState], to: ExecState, *,
        reason: str, by: str = "", fence: bool,
    ) -> str:  # fmt: skip
        """End an execution without a receipt. With `fence`, only if its agent can never start it.

        Returns:
            The script's outcome: DONE, STATE, MISSING or CLAIMED.
        """
        fields = {"error": reason, **({"cancel_requested_by": by} if by else {})}
        return await self._transition_outcome(
            agent, exec_id, from_states, to, fields,
            code=to.lower(), fence=fence, extra={"reason": f"{reason}, by {by}" if by else reason},
        )  # fmt: skip

    async def request_cancel(self, agent: str, exec_id: str, by: str) -> str:
        """Note who asked for the end of an execution that may be running."""
        return await self._transition_outcome(
            agent, exec_id, [ExecState.QUEUED, ExecState.STARTED], None, {"cancel_requested_by": by},
            code="cancel_requested", extra={"reason": f"by {by}"},
        )  # fmt: skip

    async def _move(
        self, agent: str, exec_id: str, from_states: Sequence[ExecState], to: ExecState,
        fields: dict[str, str], *, code: str,
    ) -> bool:  # fmt: skip
        return await self._transition_outcome(agent, exec_id, from_states, to, fields, code=code) == "DONE"

    async def _transition_outcome(
        self, agent: str, exec_id: str, from_states: Sequence[ExecState], to: ExecState | None,
        fields: dict[str, str], *, code: str, fence: bool = False, order_sha256: str = "",
        extra: dict[str, str] | None = None,
    ) -> str:  # fmt: skip
        event = {"event": code, "id": exec_id, "agent_id": agent, "authorized": "1", **(extra or {})}
        answer = await self._transition(
            keys=[keys.execution(exec_id), keys.AUDIT, keys.OPEN, keys.ENDED, keys.claim(agent, exec_id)],
            args=[
                exec_id, ",".join(from_states), to or "", "1" if to and to.terminal else "0",
                FENCE if fence else "", self._retention_seconds, order_sha256,
                len(fields), *[part for pair in fields.items() for part in pair],
                *[part for pair in event.items() for part in pair],
            ],
        )  # fmt: skip
        return str(answer[0].decode())

    @staticmethod
    def _event(request: ExecRequest, *, policy: str, client_ip: str, authorized: bool, code: str | None) -> list[str]:
        event = [
            "id", request.id, "agent_id", request.agent_id, "requested_by", request.requested_by,
            "command", command_line(request.command), "client_ip", client_ip,
            "authorized", "1" if authorized else "0", "policy", policy,
        ]  # fmt: skip
        return event if code is None else ["event", code, *event]

    # --- reads --------------------------------------------------------------------------------------------------------

    async def record(self, exec_id: str) -> Record | None:
        """One record, or None where there is none."""
        fields = await self._redis.hgetall(keys.execution(exec_id))
        return Record(exec_id, fields) if fields else None

    async def records(self, exec_ids: Sequence[str]) -> list[Record]:
        """Records in the order asked for; missing ones are left out."""
        found: list[Record] = []
        for begin in range(0, len(exec_ids), BATCH):
            part = exec_ids[begin : begin + BATCH]
            async with self._redis.pipeline(transaction=False) as pipe:
                for exec_id in part:
                    pipe.hgetall(keys.execution(exec_id))
                answers = await pipe.execute()
            found += [Record(exec_id, fields) for exec_id, fields in zip(part, answers, strict=True) if fields]
        return found

    async def response(self, record: Record) -> ExecResponse:
        """How an ended execution ended, with its output while the agent's result is kept."""
        stdout, stderr = b"", b""
        raw = await self._redis.get(keys.result(record.agent, record.exec_id))
        if raw and b"receipt" in record.fields:
            result = json.loads(raw).get("result") or {}
            # The receipt in the record is the verified one; the result is only believed if it carries the same.
            if result.get("receipt", "").encode() == record.fields[b"receipt"]:
                stdout = base64.b64decode(result.get("stdout", ""))
                stderr = base64.b64decode(result.get("stderr", ""))
        return record.response(stdout, stderr)

    async def open_executions(self, *, offset: int, limit: int) -> list[str]:
        """Ids of executions that have not ended, those with the nearest queue deadline first."""
        ids = await self._redis.zrange(keys.OPEN, offset, offset + limit - 1)
        return [item.decode() for item in ids]

    async def newest(
        self, agent: str, *, ended: bool, before: tuple[int, int] | None, limit: int
    ) -> list[tuple[str, int]]:
        """Ids and scores (ms) of executions, newest first.

        Args:
            agent: only of this agent, where the index allows; empty for all.
            ended: also those that have ended.
            before: the score of the last one seen, and how many of that score were seen already.
            limit: most to return.
        """
        # Those that have not ended are few, and stand in an index of their own, of all agents.
        index = keys.OPEN if not ended else keys.agent_index(agent) if agent else keys.INDEX
        top, skip = (str(before[0]), before[1]) if before else ("+inf", 0)
        found = await self._redis.zrevrangebyscore(index, top, "-inf", start=skip, num=limit, withscores=True)
        return [(exec_id.decode(), int(score)) for exec_id, score in found]

    async def now_ms(self) -> int:
        """The clock of Redis, which all times of the ledger are told by."""
        seconds, micros = await self._redis.time()
        return int(seconds) * 1000 + int(micros) // 1000

    async def audit(self, *, after: str, limit: int, exec_id: str) -> list[ExecAuditLog]:
        """Events after a cursor, oldest first; without one, the latest.

        An execution's events all lie near its own times, but the trail is read from its end in bounded steps, so
        those of a very old execution are found by its cursor rather than by its id.
        """
        found: list[ExecAuditLog] = []
        if after:
            position = f"({after}"
            while len(found) < limit:
                entries = await self._redis.xrange(keys.AUDIT, position, "+", count=1000)
                found += [event for event in map(_audit_event, entries) if not exec_id or event.id == exec_id]
                if len(entries) < 1000:
                    break
                position = f"({entries[-1][0].decode()}"
            return found[:limit]
        position, steps = "+", 0
        while len(found) < limit and steps < 100:
            entries = await self._redis.xrevrange(keys.AUDIT, position, "-", count=1000)
            found += [event for event in map(_audit_event, entries) if not exec_id or event.id == exec_id]
            if len(entries) < 1000:
                break
            position, steps = f"({entries[-1][0].decode()}", steps + 1
        return found[:limit][::-1]

    async def trim(self, *, audit_retention: timedelta, audit_events: int) -> None:
        """Let go of what is past its retention. Records expire by themselves."""
        now = await self.now_ms()
        oldest = now - self._retention_seconds * 1000
        agents = await self._redis.hkeys(keys.AGENTS)
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.zremrangebyscore(keys.INDEX, "-inf", oldest)
            for agent in agents:
                pipe.zremrangebyscore(keys.agent_index(agent.decode()), "-inf", oldest)
            pipe.xtrim(keys.AUDIT, minid=now - round(audit_retention.total_seconds() * 1000), approximate=True)
            pipe.xtrim(keys.AUDIT, maxlen=audit_events, approximate=True)
            await pipe.execute()


def _audit_event(entry: tuple[bytes, dict[bytes, bytes]]) -> ExecAuditLog:
    cursor, raw = entry
    fields: dict[str, Any] = {name.decode(): value.decode() for name, value in raw.items()}
    return ExecAuditLog(
        cursor=cursor.decode(),
        time=datetime.fromtimestamp(int(cursor.partition(b"-")[0]) / 1000, UTC),
        event=fields["event"],
        id=fields.get("id", ""),
        agent_id=fields.get("agent_id", ""),
        requested_by=fields.get("requested_by", ""),
        command=fields.get("command", ""),
        exit_code=int(fields.get("exit_code", -1)),
        start_time=_time(fields.get("start_ms", "").encode()),
        duration=timedelta(microseconds=int(fields.get("duration_us", 0))),
        client_ip=fields.get("client_ip", ""),
        authorized=fields.get("authorized") == "1",
        policy_applied=fields.get("policy", ""),
        reason=fields.get("reason", ""),
    )
