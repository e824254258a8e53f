"""An execution's record: parsed once from what Redis returns, frozen afterwards.

Any text can be in Redis, because a writer other than the orchestrator may have put it there. `Record.parse` is strict
about the fields that every reader needs. Facts that only some readers need are parsed at their first use. So a record
in which only those are altered can still be completed, and its receipt can still be shown.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import NamedTuple

from tachikoma.errors import RecordAltered
from tachikoma.vocabulary.audit import AuditedRequest
from tachikoma.vocabulary.clock import from_ms, now_ms, optional_from_ms
from tachikoma.vocabulary.results import ExecStatus, ExecTransition
from tachikoma.vocabulary.states import ExecState

__all__ = ["REPORTED", "Record", "ReportedResult", "Step", "record_altered"]

#: Fields that are copies of fields of the receipt, by their names in Redis.
REPORTED = (
    "exit_code", "signal", "error", "executable", "usage", "kill", "started_ms", "ended_ms", "duration_us", "chunks",
    "stdout_bytes", "stdout_sha256", "stderr_bytes", "stderr_sha256", "receipt",
)  # fmt: skip
#: Longest part of a parse error that is shown.
MAX_REASON = 200
#: Errors of parsing that a text from another writer can cause.
_UNREADABLE = (ValueError, KeyError, TypeError, OverflowError, OSError)


def record_altered(exec_id: str, reason: str) -> RecordAltered:
    """Return the error for an execution whose record cannot be trusted."""
    return RecordAltered(f"the state of execution {exec_id} cannot be verified: {reason}", metadata={"id": exec_id})


class Step(NamedTuple):
    """One state of an execution's history."""

    state: ExecState
    #: When the ledger recorded it, in milliseconds since the epoch by the clock of Redis.
    at_ms: int


@dataclass(frozen=True, slots=True)
class ReportedResult:
    """Numbers of a record's final state; each is None until it is known."""

    #: When the agent started the command, ms since the epoch.
    started_ms: int | None
    #: When the command ended by the agent's clock, ms since the epoch.
    ended_ms: int | None
    #: When the ledger recorded the final state, ms since the epoch by the clock of Redis.
    settled_ms: int | None
    #: Exit code; -1 if the command ended without one.
    exit_code: int | None
    #: Number of the signal that ended the command; 0 for none.
    signal: int | None
    duration_us: int | None
    #: Number of the last chunk of output.
    chunks: int | None
    stdout_bytes: int | None
    stderr_bytes: int | None

    @property
    def start_time(self) -> datetime | None:
        """When the command started; None if that is unknown."""
        return optional_from_ms(self.started_ms or 0)

    @property
    def end_time(self) -> datetime | None:
        """When the execution reached its final state: by its agent if it reported, else by the ledger."""
        return optional_from_ms(self.ended_ms or 0) or self.settle_time

    @property
    def settle_time(self) -> datetime | None:
        """When the ledger recorded the final state; None before that."""
        return optional_from_ms(self.settled_ms or 0)


@dataclass(frozen=True, slots=True)
class Record:
    """An execution as the ledger holds it."""

    exec_id: str
    state: ExecState
    agent: str
    #: SPIFFE ID of the requester.
    requested_by: str
    #: Every state of the execution with its time, the current one last.
    history: tuple[Step, ...]
    #: When the request was accepted, in milliseconds since the epoch by the clock of Redis.
    admitted_ms: int
    #: When its wait ends, for its approval or on the queue; same unit and clock.
    deadline_ms: int
    #: The signed receipt of its final state; empty if there is none.
    receipt: str
    #: SHA-256 of the order on the agent's queue; empty before there is one.
    order_sha256: str
    #: Number of the life of Redis that the order names; 0 before there is an order, and from older orchestrators.
    life: int
    #: SHA-256 over everything that would run, and the requester.
    digest: str
    #: name@digest of the policy that granted it.
    policy: str
    #: Redacted argv as one line.
    command: str
    client_ip: str
    #: Why it reached its final state, unless the exit code explains it; empty if there is nothing to add.
    error: str
    #: SPIFFE ID of the caller that requested its cancellation; empty if none did.
    cancel_requested_by: str
    #: SPIFFE ID of the approver; empty without an approval.
    approved_by: str
    approval_reason: str
    #: True if the command waits for readers of its output.
    waits: bool
    #: Scopes whose limits the execution counts for.
    scopes: tuple[str, ...]
    #: `AuditedRequest` as JSON; parsed by `status`.
    request: str
    #: Patterns of the subjects that may approve it, as a JSON list; parsed by `status`.
    approvers: str
    #: Time of the request by the caller's clock, ms; parsed by `status`.
    caller_ms: str
    #: SPIFFE ID of the attached caller of an interactive execution; empty for none.
    attached_by: str
    #: When the record names that caller no longer, unless it is reported again, ms; parsed by `status`.
    attached_until: str
    #: Its observers as JSON: a name, the SPIFFE ID and the end of the entry, ms; parsed by `status`.
    observers: str
    #: Sizes of its terminal until now; parsed by `sessions.sizes`.
    sizes: str
    #: `RecordRule` of policy; empty if the execution is not recorded.
    recording: str
    #: When the ledger recorded the final state, ms; parsed by `result`.
    settled: str
    #: The receipt's facts as text, by the names in `REPORTED`; parsed by `result`.
    reported: Mapping[str, str]

    @classmethod
    def parse(cls, exec_id: str, fields: Mapping[bytes, bytes]) -> Record:
        """Parse the fields of a record's hash. Raises RecordAltered if one is malformed, or a necessary one missing."""
        text = partial(_text, fields)
        try:
            return cls(
                exec_id=exec_id,
                state=ExecState(fields[b"state"].decode()),
                agent=fields.get(b"agent", b"").decode(),
                requested_by=fields.get(b"requested_by", b"").decode(),
                history=_history(fields[b"history"].decode()),
                admitted_ms=int(fields[b"admitted_ms"]),
                deadline_ms=int(fields[b"deadline_ms"]),
                receipt=fields.get(b"receipt", b"").decode(),
                order_sha256=text("order_sha256"),
                life=int(fields.get(b"life", b"0")),
                digest=text("digest"),
                policy=text("policy"),
                command=fields.get(b"command", b"").decode(),
                client_ip=text("client_ip"),
                error=text("error"),
                cancel_requested_by=text("cancel_requested_by"),
                approved_by=text("approved_by"),
                approval_reason=text("approval_reason"),
                waits=text("waits") == "1",
                scopes=tuple(text("scopes").split()),
                request=text("request"),
                approvers=text("approvers"),
                caller_ms=text("caller_ms"),
                attached_by=text("attached_by"),
                attached_until=text("attached_until_ms"),
                observers=text("observers"),
                sizes=text("sizes"),
                recording=text("recording"),
                settled=text("settled_ms"),
                reported={name: text(name) for name in REPORTED if name.encode() in fields},
            )
        except _UNREADABLE as error:
            raise _unreadable(exec_id, error) from None

    @property
    def states(self) -> list[ExecState]:
        """Every state of the execution, the current one last."""
        return [step.state for step in self.history]

    def result(self) -> ReportedResult:
        """Parse the numbers of the final state.

        Raises:
            RecordAltered: one of them is no number, or no possible time.
        """

        def number(name: str) -> int | None:
            return int(self.reported[name]) if self.reported.get(name) else None

        try:
            result = ReportedResult(
                started_ms=number("started_ms"),
                ended_ms=number("ended_ms"),
                settled_ms=int(self.settled) if self.settled else None,
                exit_code=number("exit_code"),
                signal=number("signal"),
                duration_us=number("duration_us"),
                chunks=number("chunks"),
                stdout_bytes=number("stdout_bytes"),
                stderr_bytes=number("stderr_bytes"),
            )
            # Each must be a time that can be shown.
            _ = result.start_time, result.end_time, result.settle_time
            return result
        except _UNREADABLE as error:
            raise _unreadable(self.exec_id, error) from None

    def status(self) -> ExecStatus:
        """Return the record for callers as it is stored; nothing signed is verified.

        Raises:
            RecordAltered: this program did not write the record.
        """
        result = self.result()
        try:
            request = AuditedRequest.model_validate_json(self.request)
            return ExecStatus(
                id=self.exec_id,
                agent_id=self.agent,
                state=self.state,
                command=request.command,
                requested_by=self.requested_by,
                request_time=from_ms(self.admitted_ms),
                start_time=result.start_time,
                end_time=result.end_time,
                exit_code=-1 if result.exit_code is None else result.exit_code,
                error=self.error,
                policy_applied=self.policy,
                cancel_requested_by=self.cancel_requested_by,
                timeout=timedelta(seconds=request.timeout or 0),
                user=request.user,
                work_dir=request.work_dir,
                history=tuple(ExecTransition(state=state, time=from_ms(at_ms)) for state, at_ms in self.history),
                deadline=optional_from_ms(self.deadline_ms),
                approvers=tuple(json.loads(self.approvers or "[]")),
                approved_by=self.approved_by,
                approval_reason=self.approval_reason,
                caller_time=optional_from_ms(int(self.caller_ms or 0)),
                interactive=request.interactive,
                tty=request.tty,
                attached_by="" if self.state.terminal else self._attached_by(),
                recorded=bool(self.recording),
                observers=() if self.state.terminal else _observers(self.observers),
            )
        except (*_UNREADABLE, RecursionError) as error:
            raise _unreadable(self.exec_id, error) from None

    def _attached_by(self) -> str:
        """Return the attached caller. One of a killed orchestrator expires."""
        return self.attached_by if not self.attached_until or int(self.attached_until) > now_ms() else ""


def _observers(text: str) -> tuple[str, ...]:
    """Return the observers whose entries have not ended. An entry of a killed orchestrator expires."""
    now = now_ms()
    entries = dict(json.loads(text or "{}")).values()
    return tuple(sorted({str(observer) for observer, end_ms in entries if int(end_ms) > now}))


def _history(text: str) -> tuple[Step, ...]:
    steps = [step.partition(" ") for step in text.split(";")]
    return tuple(Step(ExecState(state), int(at_ms)) for state, _, at_ms in steps)


def _text(fields: Mapping[bytes, bytes], name: str) -> str:
    """Return an optional field of a record's hash; empty without it."""
    return fields.get(name.encode(), b"").decode(errors="replace")


def _unreadable(exec_id: str, error: Exception) -> RecordAltered:
    return record_altered(exec_id, f"its record in the ledger cannot be read: {str(error)[:MAX_REASON]}")
