"""The changes of an execution's record, as values: what `lua/admit.lua`, `dispatch.lua` and `transition.lua` take.

A value says what changes and under which condition. The ledger turns it into a call of its script; see `ledger.py`.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum

from tachikoma.identity.signed_messages import Receipt
from tachikoma.vocabulary.audit import AuditCode
from tachikoma.vocabulary.clock import duration_ms, to_ms
from tachikoma.vocabulary.policies import RateLimitConfig
from tachikoma.vocabulary.recordings import NOT_RECORDED, RecordRule
from tachikoma.vocabulary.requests import ExecRequest
from tachikoma.vocabulary.states import ExecState
from tachikoma_orchestrator.audit.requests import audited
from tachikoma_orchestrator.store.scripts import JsonObject, flat

__all__ = [
    "DISPATCHED",
    "FENCE",
    "Admission",
    "Dispatch",
    "Outcome",
    "Transition",
    "TransitionOutcome",
    "receipt_fields",
    "record_fields",
]

#: Value of an execution's claim that keeps every agent from starting it.
FENCE = "fence"

#: States of an execution that its agent may have started.
DISPATCHED = (ExecState.QUEUED, ExecState.STARTED)


class Outcome(StrEnum):
    """Answers of the admission script."""

    ADMITTED = "ADMITTED"
    #: The same id with the same request was admitted before.
    DUPLICATE = "DUPLICATE"
    #: The id was used for another request.
    CONFLICT = "CONFLICT"
    #: The agent never joined.
    UNKNOWN = "UNKNOWN"
    OFFLINE = "OFFLINE"
    DRAINING = "DRAINING"
    REVOKED = "REVOKED"
    #: The clocks of the agent and the orchestrator differ too much, or their formats differ.
    UNFIT = "UNFIT"
    #: The agent's queue is full.
    FULL = "FULL"
    #: Too many executions wait for an approval.
    APPROVALS = "APPROVALS"
    #: Limits of a scope: requests per minute, executions in progress, executions not started.
    RATE = "RATE"
    CONCURRENT = "CONCURRENT"
    WAITING = "WAITING"
    #: Its batch does not let it start now: it has ended, its limit is reached, or the target has had its turn.
    HELD = "HELD"


class TransitionOutcome(StrEnum):
    """Answers of the transition script."""

    DONE = "DONE"
    #: The agent has no such execution.
    MISSING = "MISSING"
    #: The execution is in another state than the change requires.
    STATE = "STATE"
    #: The agent claimed the execution before the fence was set.
    CLAIMED = "CLAIMED"
    #: The receipt answers another order.
    ORDER = "ORDER"


@dataclass(frozen=True, slots=True)
class Admission:
    """Everything the admission script needs of one request."""

    request: ExecRequest
    #: The request's redacted argv.
    shown: tuple[str, ...]
    #: SHA-256 over everything that would run, and the requester.
    digest: str
    #: name@digest of the policy that granted it.
    policy: str
    client_ip: str
    #: Longest wait on the agent's queue, or for an approval.
    wait: timedelta
    #: Longest run time, by the request or by policy.
    timeout: timedelta
    #: Limits by the name of the scope that they count for.
    scopes: Mapping[str, RateLimitConfig]
    #: The signed request if it needs an approval; else empty.
    parked: str = ""
    #: Patterns of the subjects that may approve it.
    approvers: tuple[str, ...] = ()
    #: SPIFFE ID of the approver of its batch, and the approver's reason; empty without an approval.
    approved_by: str = ""
    approval_reason: str = ""
    #: True if the command waits for readers of its output.
    waits: bool = False
    #: Why the agent can run nothing, in words: its clock or its formats; empty if it can.
    unfit: str = ""
    #: Id of the batch that the request is a part of; empty for none.
    batch: str = ""
    #: Whether it is recorded.
    recording: RecordRule = NOT_RECORDED


@dataclass(frozen=True, slots=True)
class Dispatch:
    """An order for an agent's queue."""

    #: Digest of the request that the order is for, as in `Admission`.
    digest: str
    #: SHA-256 of the signed order.
    order_sha256: str
    #: name@digest of the policy that granted it.
    policy: str
    #: The Celery message.
    message: bytes
    #: Number of the life of Redis that the order names; 0 for none.
    life: int = 0
    #: The queue for its requester; empty for the agent's main queue.
    queue: str = ""

    def arguments(self) -> JsonObject:
        """Return the argument `order` of `lua/dispatch.lua`."""
        return {"sha256": self.order_sha256, "policy": self.policy, "life": str(self.life)}


def record_fields(admission: Admission) -> dict[str, str]:
    """Return the fields of a new record that the admission script does not set itself."""
    request, shown = admission.request, admission.shown
    fields = {
        "request": audited(request, shown).model_copy(update={"timeout": admission.timeout.total_seconds()}).to_json(),
        "requested_by": request.requested_by,
        "policy": admission.policy,
        "client_ip": admission.client_ip,
        "command": shlex.join(shown),
        "caller_ms": str(to_ms(request.request_time)),
    }
    if admission.approvers:
        fields["approvers"] = json.dumps(admission.approvers)
    if admission.approved_by:
        fields |= {"approved_by": admission.approved_by, "approval_reason": admission.approval_reason}
    if admission.waits:
        fields["waits"] = "1"
    if recording := admission.recording.encode():
        fields["recording"] = recording
    return fields


def scope_arguments(scopes: Mapping[str, RateLimitConfig]) -> list[JsonObject]:
    """Return the scopes of an admission with their limits, as `lua/admit.lua` takes them."""
    return [
        {
            "name": name, "per_minute": limit.requests_per_minute,
            "concurrent": limit.concurrent_limit, "waiting": limit.queue_size,
        }
        for name, limit in scopes.items()
    ]  # fmt: skip


def receipt_fields(receipt: Receipt, token: str) -> dict[str, str]:
    """Return the fields of a record that copy a receipt; `record.REPORTED` lists their names."""
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


@dataclass(frozen=True, slots=True)
class Transition:
    """One change of an execution's record by compare-and-set, with its audit event."""

    agent: str
    exec_id: str
    #: States in which the change applies.
    sources: Sequence[ExecState]
    #: The new state; None leaves the state as it is.
    target: ExecState | None
    #: Code of its audit event.
    code: AuditCode
    #: Fields of the record to set.
    fields: Mapping[str, str] = field(default_factory=dict)
    #: Further fields of the audit event.
    event: Mapping[str, str] = field(default_factory=dict)
    #: True to take the claim first, so that the agent can never start the execution.
    fence: bool = False
    #: SHA-256 of the order that the change answers; empty to not compare.
    order_sha256: str = ""
    #: Longest wait from now on; zero leaves the deadline as it is.
    wait: timedelta = timedelta(0)
    #: Time of the start that the agent reports, in milliseconds since the epoch by its clock; 0 for none. The start is
    #: recorded first if the agent's own notice was missed.
    started_ms: int = 0
    #: Bytes of output that the agent reports; 0 for none.
    output_bytes: int = 0
    #: True if the change is reported to a caller as done, so that the replicas must have it first.
    confirmed: bool = False
    #: Random id of this change, by which the script recognises a repetition.
    change_id: str = field(default_factory=lambda: secrets.token_hex(8))
    #: True if the changed record is returned, so that it can be written again after a loss.
    show: bool = False

    @classmethod
    def approval(
        cls, agent: str, exec_id: str, *, wait: timedelta, by: str, reason: str, digest: str, waits: bool
    ) -> Transition:
        """Release an execution that waits for its approval; the arguments are those of `Ledger.approve`."""
        return cls(
            agent, exec_id, (ExecState.PENDING_APPROVAL,), ExecState.QUEUED, AuditCode.APPROVED,
            fields={"approved_by": by, "approval_reason": reason, "waits": "1" if waits else ""},
            event={"actor": by, "reason": reason, "evidence_sha256": digest},
            wait=wait,
        )  # fmt: skip

    @classmethod
    def start(cls, agent: str, exec_id: str, started_ms: int) -> Transition:
        """Record the agent's notice that it started the execution."""
        return cls(
            agent, exec_id, (ExecState.QUEUED,), ExecState.STARTED, AuditCode.STARTED,
            fields={"started_ms": str(started_ms)},
            event={"start_ms": str(started_ms)} if started_ms else {},
        )  # fmt: skip

    @classmethod
    def completion(cls, agent: str, exec_id: str, receipt: Receipt, token: str) -> Transition:
        """Record the final state that a verified receipt reports."""
        fields = receipt_fields(receipt, token)
        return cls(
            agent, exec_id, DISPATCHED, receipt.state, AuditCode(receipt.state.lower()),
            fields=fields,
            event={
                "exit_code": fields["exit_code"], "duration_us": fields["duration_us"],
                "start_ms": fields["started_ms"], "reason": receipt.error,
                "evidence_sha256": hashlib.sha256(token.encode()).hexdigest(),
            },
            order_sha256=receipt.order_sha256,
            started_ms=receipt.started_ms,
            output_bytes=receipt.stdout.total_bytes + receipt.stderr.total_bytes,
        )  # fmt: skip

    @classmethod
    def settlement(
        cls, agent: str, exec_id: str, sources: Sequence[ExecState], target: ExecState, *,
        reason: str, by: str = "", fence: bool,
    ) -> Transition:  # fmt: skip
        """Record a final state that has no receipt, with its reason; the arguments are those of `Ledger.settle`."""
        fields = {"error": reason}
        if by and target is ExecState.CANCELLED:
            fields["cancel_requested_by"] = by
        return cls(
            agent, exec_id, sources, target, AuditCode(target.lower()),
            fields=fields, event={"reason": reason, "actor": by}, fence=fence, confirmed=bool(by), show=True,
        )  # fmt: skip

    @classmethod
    def cancel_request(cls, agent: str, exec_id: str, by: str, reason: str = "") -> Transition:
        """Record a request to cancel an execution that may be running, and its reason; its state stays."""
        return cls(
            agent, exec_id, DISPATCHED, None, AuditCode.CANCEL_REQUESTED,
            fields={"cancel_requested_by": by}, event={"actor": by, "reason": reason}, confirmed=True,
        )  # fmt: skip

    def arguments(self, *, keep_seconds: int) -> JsonObject:
        """Return the arguments of `lua/transition.lua`; `keep_seconds` is the retention of a completed record."""
        return {
            "id": self.exec_id,
            "agent": self.agent,
            "sources": list(self.sources),
            "target": self.target or "",
            "terminal": self.target is not None and self.target.terminal,
            "fence": FENCE if self.fence else "",
            "order_sha256": self.order_sha256,
            "wait_ms": duration_ms(self.wait),
            "start_ms": str(self.started_ms) if self.started_ms else "",
            "output_bytes": self.output_bytes,
            "change": self.change_id,
            "keep_seconds": keep_seconds,
            "show": self.show,
            "fields": flat(self.fields),
            "event": flat(self.audit_event()),
        }

    def audit_event(self) -> dict[str, str]:
        """Return the fields of its audit event that its record does not contain."""
        return {
            "event": self.code, "id": self.exec_id, "agent_id": self.agent, "authorized": "1", **self.event,
        }  # fmt: skip
