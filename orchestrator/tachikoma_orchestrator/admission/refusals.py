"""Refusals: how a request that is not admitted becomes an error for its caller and an audit event.

The admitter itself denies requests: by policy, because of their requester, or because this version cannot run them. It
writes the event `denied`. Everything else is refused by the admission script, which writes the event in the same step;
the table `REFUSALS` has a row for each outcome.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from tachikoma.errors import (
    AgentDraining,
    AgentOffline,
    AgentRevoked,
    AgentUnknown,
    AlreadyExists,
    FailedPrecondition,
    InvalidRequest,
    PermissionDenied,
    ResourceExhausted,
    TachikomaError,
)
from tachikoma.policy.decision import Decision
from tachikoma.vocabulary.audit import AuditCode
from tachikoma.vocabulary.requests import ExecRequest
from tachikoma_orchestrator.executions.transitions import Outcome

__all__ = [
    "REFUSALS",
    "Denial",
    "Refusal",
    "impersonation",
    "not_allowed",
    "refusal",
    "session_mistake",
    "unrecordable",
    "unsuitable",
]


@dataclass(frozen=True, slots=True)
class Denial:
    """A request that the admitter denies."""

    #: The error for the caller.
    error: TachikomaError
    #: The reason in the audit trail.
    reason: str
    #: name@digest of the policy that decided; empty if none applies.
    policy: str = ""
    #: The field that decided, with its entry; empty if no field did.
    rule: str = ""
    #: Code of the audit event; `refused` if policy grants the request.
    audit_code: AuditCode = AuditCode.DENIED


def impersonation(claimed: str, caller: str) -> Denial:
    """Deny a request that names another requester than its caller."""
    rule = "requestedBy"
    reason = f"the request names {claimed} as its requester, but comes from {caller}"
    return Denial(PermissionDenied(reason, metadata={"rule": rule}), reason, rule=rule)


def not_allowed(decision: Decision) -> Denial:
    """Deny a request that policy does not allow."""
    metadata = {"rule": decision.rule, "policy": decision.policy}
    error = PermissionDenied(f"not allowed: {decision.reason}", metadata=metadata)
    return Denial(error, decision.reason, decision.policy, decision.rule)


def session_mistake(request: ExecRequest, *, session: bool) -> str:
    """Return why a request cannot be run in the way that its caller chose, in words; empty if it can.

    Args:
        request: the request.
        session: True if input can follow the request.
    """
    if request.tty and not request.interactive:
        return "a terminal needs interactive input; set `interactive` too"
    if request.terminal is not None and not request.tty:
        return "the request has the size of a terminal, but asks for none; set `tty` too"
    if request.interactive and request.stdin:
        return "the input of an interactive request follows it; leave `stdin` empty"
    if request.interactive and not session:
        return "input cannot follow an ordinary request; use ExecuteInteractive"
    if session and not request.interactive:
        return "ExecuteInteractive is for interactive requests; set `interactive`, or use Execute"
    return ""


def unsuitable(decision: Decision, mistake: str) -> Denial:
    """Deny a request that policy allows, for a mistake that `session_mistake` found, or for one of its batch."""
    return Denial(InvalidRequest(mistake), mistake, decision.policy, audit_code=AuditCode.REFUSED)


def unrecordable(decision: Decision, obstacle: str) -> Denial:
    """Deny a request that policy requires to be recorded, because no recording can be written now."""
    reason = f"policy requires a recording, which cannot be written: {obstacle}"
    error = FailedPrecondition(reason, metadata={"rule": "record"})
    return Denial(error, reason, decision.policy, "record", audit_code=AuditCode.REFUSED)


@dataclass(frozen=True, slots=True)
class Refusal:
    """A row of the table: a refusal by the admission script.

    `{agent}` and `{id}` are those of the request; `{detail}` is the reason in words, if the outcome needs one.
    """

    #: Code of the event that the script writes; its reason is the outcome.
    audit_code: AuditCode
    #: Class of the error for the caller.
    error: type[TachikomaError]
    message: str
    metadata: Mapping[str, str]
    #: Seconds after which a repetition may succeed, unless the script knows better; None if it cannot by itself.
    retry_after_seconds: float | None = None


def _refused(error: type[TachikomaError], message: str, *, retry: float | None = None, name: str = "agent") -> Refusal:
    return Refusal(AuditCode.REFUSED, error, message, {name: f"{{{name}}}"}, retry)


def _limited(message: str, metadata: Mapping[str, str], *, retry: float = 1) -> Refusal:
    return Refusal(AuditCode.LIMITED, ResourceExhausted, message, metadata, retry)


#: A row for each outcome that is not an admission.
REFUSALS: Mapping[Outcome, Refusal] = MappingProxyType(
    {
        Outcome.UNKNOWN: _refused(AgentUnknown, "there is no agent {agent!r}; `tachikoma agents` lists the agents"),
        Outcome.OFFLINE: _refused(AgentOffline, "agent {agent!r} is offline", retry=5),
        Outcome.DRAINING: _refused(
            AgentDraining,
            "agent {agent!r} is drained and takes no new executions; `tachikoma agents` shows operator and reason",
        ),
        Outcome.REVOKED: _refused(
            AgentRevoked, "agent {agent!r} is revoked; `tachikoma agents` shows the operator and the reason"
        ),
        Outcome.UNFIT: _refused(FailedPrecondition, "agent {agent!r} takes no executions: {detail}"),
        Outcome.CONFLICT: _refused(
            AlreadyExists, "the id {id!r} was used before for another request; use a new id", name="id"
        ),
        Outcome.FULL: _limited("the queue of agent {agent!r} is full", {"agent": "{agent}"}),
        Outcome.APPROVALS: _limited(
            "too many executions wait for an approval; try again later", {"limit": "approvals"}, retry=60
        ),
        Outcome.RATE: _limited(
            "too many requests in the last minute; try again later", {"limit": "rate", "agent": "{agent}"}
        ),
        Outcome.CONCURRENT: _limited(
            "too many executions that have not ended; try again later", {"limit": "concurrent", "agent": "{agent}"}
        ),
        Outcome.WAITING: _limited(
            "too many executions that have not started; try again later", {"limit": "waiting", "agent": "{agent}"}
        ),
    }
)


def refusal(
    outcome: Outcome, request: ExecRequest, retry_seconds: float = 0, *, detail: str = ""
) -> TachikomaError:  # fmt: skip
    """Return the error for the caller of a request that the admission script refused.

    Args:
        outcome: the script's answer.
        request: the refused request.
        retry_seconds: seconds after which a repetition may succeed, by the script; 0 if it does not know.
        detail: the difference of clocks or formats in words, for `UNFIT`.
    """
    row = REFUSALS[outcome]
    names = {"agent": request.agent_id, "id": request.id, "detail": detail}
    return row.error(
        row.message.format(**names),
        metadata={name: value.format(**names) for name, value in row.metadata.items()},
        retry_after_seconds=retry_seconds or row.retry_after_seconds,
    )
