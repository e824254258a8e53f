"""The protobuf form of each model of the vocabulary, as tables of fields.

Each table has one row for each field; `converters` says how a row is read. Models validate their values, so a message
of a hostile peer is refused, on either side.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp
from pydantic import ValidationError

from tachikoma.client.converters import (
    DURATION,
    HEX,
    HEX_LIST,
    MAP,
    SAME,
    TIMESTAMP,
    TUPLE,
    Converter,
    Presence,
    WireField,
    WireFormat,
    enumeration,
    many,
    nested,
)
from tachikoma.errors import InvalidRequest, ServerError
from tachikoma.exec.v1 import remote_execution_pb2 as pb
from tachikoma.vocabulary.agents import AgentInfo, AgentTrust, Enrolment, Revocation
from tachikoma.vocabulary.audit import AuditedRequest, ExecAuditLog
from tachikoma.vocabulary.limits import ResourceLimits, ResourceUsage
from tachikoma.vocabulary.model import describe_validation_error
from tachikoma.vocabulary.policies import PolicyStatus
from tachikoma.vocabulary.requests import ExecRequest, Terminal
from tachikoma.vocabulary.results import (
    Approval,
    CancelOutcome,
    CancelResponse,
    ExecOutput,
    ExecResponse,
    ExecStatus,
    ExecTransition,
    InputAccepted,
    KillReceipt,
    OutputKind,
    OutputSummary,
)
from tachikoma.vocabulary.schedules import DueOutcome, ScheduledRun, ScheduleStatus
from tachikoma.vocabulary.states import ExecState

__all__ = [
    "FORMATS",
    "agent_from_pb",
    "agent_to_pb",
    "approval_from_pb",
    "approval_to_pb",
    "audit_from_pb",
    "audit_to_pb",
    "cancel_from_pb",
    "cancel_to_pb",
    "enroll_to_pb",
    "enrolment_from_pb",
    "enrolment_to_pb",
    "output_from_pb",
    "output_to_pb",
    "policy_status_from_pb",
    "policy_status_to_pb",
    "request_from_pb",
    "request_to_pb",
    "response_from_pb",
    "response_to_pb",
    "revocation_from_pb",
    "revocation_to_pb",
    "schedule_from_pb",
    "schedule_to_pb",
    "scheduled_run_from_pb",
    "scheduled_run_to_pb",
    "states_from_pb",
    "states_to_pb",
    "status_from_pb",
    "status_to_pb",
    "timestamp_from_pb",
    "timestamp_to_pb",
]

_STATE = enumeration(ExecState, pb.ExecState.Value, "EXEC_STATE")
_CANCEL_OUTCOME = enumeration(CancelOutcome, pb.CancelOutcome.Value, "CANCEL_OUTCOME")
_DUE_OUTCOME = enumeration(DueOutcome, pb.DueOutcome.Value, "DUE_OUTCOME")


def _plain(*names: str) -> tuple[WireField, ...]:
    """Make rows of scalars that are always read."""
    return tuple(WireField(name) for name in names)


def _optional(*names: str, converter: Converter[Any, Any] = SAME) -> tuple[WireField, ...]:
    """Make rows of fields that may be unset, which is None."""
    return tuple(WireField(name, converter, Presence.OPTIONAL) for name in names)


# --- requests and results ---------------------------------------------------------------------------------------------

_LIMITS = WireFormat(
    ResourceLimits,
    pb.ResourceLimits,
    _optional("memory", "swap", "cpus", "cpu_weight", "pids", "io_read", "io_write"),
)
_USAGE = WireFormat(
    ResourceUsage,
    pb.ResourceUsage,
    _optional("cpu_seconds", "peak_memory", "peak_pids", "io_read", "io_written", "oom_kills"),
)
_TERMINAL = WireFormat(
    Terminal,
    pb.Terminal,
    (WireField("type", presence=Presence.NONZERO), *_plain("rows", "columns", "x_pixels", "y_pixels")),
)
_REQUEST = WireFormat(
    ExecRequest,
    pb.ExecRequest,
    (
        WireField("id", presence=Presence.NONZERO),
        WireField("command", TUPLE),
        WireField("environment", MAP),
        *_plain("agent_id", "work_dir", "stdin", "user", "interactive", "tty", "requested_by"),
        *_optional("timeout", converter=DURATION),
        *_optional("request_time", converter=TIMESTAMP),
        *_optional("limits", converter=nested(_LIMITS)),
        *_optional("terminal", converter=nested(_TERMINAL)),
    ),
)
_SUMMARY = WireFormat(OutputSummary, pb.OutputSummary, (WireField("sha256", HEX), *_plain("total_bytes", "truncated")))
_KILL = WireFormat(
    KillReceipt,
    pb.KillReceipt,
    (*_plain("empty", "whole"), WireField("signals", TUPLE), WireField("survivors", TUPLE)),
)
_RESPONSE = WireFormat(
    ExecResponse,
    pb.ExecResponse,
    (
        *_plain("id", "agent_id", "exit_code", "signal", "stdout", "stderr", "error", "cancelled"),
        WireField("state", _STATE),
        WireField("stdout_summary", nested(_SUMMARY)),
        WireField("stderr_summary", nested(_SUMMARY)),
        *_optional("start_time", "end_time", converter=TIMESTAMP),
        WireField("duration", DURATION),
        WireField("usage", nested(_USAGE)),
        *_optional("kill", converter=nested(_KILL)),
    ),
)
_TRANSITION = WireFormat(ExecTransition, pb.ExecTransition, (WireField("state", _STATE), WireField("time", TIMESTAMP)))
_STATUS = WireFormat(
    ExecStatus,
    pb.ExecStatus,
    (
        *_plain("id", "agent_id", "requested_by", "exit_code", "error", "policy_applied", "cancel_requested_by"),
        *_plain("user", "work_dir", "approved_by", "approval_reason"),
        WireField("state", _STATE),
        WireField("command", TUPLE),
        WireField("approvers", TUPLE),
        WireField("request_time", TIMESTAMP),
        *_optional("start_time", "end_time", "deadline", "caller_time", converter=TIMESTAMP),
        WireField("timeout", DURATION),
        WireField("history", many(_TRANSITION)),
    ),
)
_CANCEL = WireFormat(
    CancelResponse,
    pb.CancelResponse,
    (WireField("outcome", _CANCEL_OUTCOME), WireField("status", nested(_STATUS))),
)
_APPROVAL = WireFormat(
    Approval,
    pb.Approval,
    (
        WireField("status", nested(_STATUS)),
        WireField("request", nested(_REQUEST)),
        WireField("digest", HEX),
        WireField("policy"),
        WireField("limits", nested(_LIMITS)),
    ),
)

# --- output -----------------------------------------------------------------------------------------------------------

_ACCEPTED = WireFormat(InputAccepted, pb.InputAccepted, _plain("offset", "echo", "canonical", "ended"))
_OUTPUT = WireFormat(
    ExecOutput, pb.ExecOutput, (*_plain("id", "seq", "offset"), *_optional("time", converter=TIMESTAMP))
)
#: The field of `ExecOutput`'s oneof for each kind; both have the same name. The attribute holds its content.
_EVENTS: dict[OutputKind, WireField] = {
    OutputKind.STDOUT: WireField("stdout", renamed="data"),
    OutputKind.STDERR: WireField("stderr", renamed="data"),
    OutputKind.STATUS: WireField("status", nested(_STATUS)),
    OutputKind.GAP: WireField(
        "gap",
        Converter(lambda count: pb.OutputGap(missing_bytes=count), lambda gap: gap.missing_bytes),
        renamed="missing_bytes",
    ),
    OutputKind.RESULT: WireField("result", nested(_RESPONSE)),
    OutputKind.ACCEPTED: WireField("accepted", nested(_ACCEPTED)),
}

# --- agents, policy, audit, schedules ---------------------------------------------------------------------------------

_TRUST = WireFormat(
    AgentTrust,
    pb.AgentTrust,
    (
        WireField("spiffe_id"),
        WireField("expires", TIMESTAMP),
        WireField("root", HEX),
        WireField("bundle", HEX_LIST),
    ),
)
_AGENT = WireFormat(
    AgentInfo,
    pb.Agent,
    (
        *_plain("id", "online", "version", "hostname", "running", "slots", "queued"),
        *_plain("load", "memory_used", "disk_used"),
        *_plain("draining", "drained_by", "drain_reason", "revoked", "revoked_by", "revoke_reason"),
        WireField("labels", MAP),
        WireField("warnings", TUPLE),
        *_optional("last_seen", converter=TIMESTAMP),
        *_optional("trust", converter=nested(_TRUST)),
    ),
)
_ENROLMENT = WireFormat(Enrolment, pb.EnrollAgentResponse, (WireField("token"), WireField("expires", TIMESTAMP)))
_REVOCATION = WireFormat(
    Revocation,
    pb.RevokeAgentResponse,
    (WireField("id", renamed="agent_id"), *_plain("cancelled", "lost"), WireField("warnings", TUPLE)),
)
_POLICY_STATUS = WireFormat(
    PolicyStatus,
    pb.PolicyStatus,
    (
        WireField("digest", HEX),
        WireField("since", TIMESTAMP),
        *_plain("policies", "error", "host", "path"),
    ),
)
_AUDITED_REQUEST = WireFormat(
    AuditedRequest,
    pb.AuditedRequest,
    (
        WireField("command", TUPLE),
        WireField("environment", TUPLE),
        *_plain("work_dir", "user", "interactive", "tty", "stdin_bytes"),
        *_optional("timeout"),
    ),
)
_AUDIT_EVENT = WireFormat(
    ExecAuditLog,
    pb.AuditEvent,
    (
        *_plain("cursor", "seq", "event", "id", "agent_id", "requested_by", "command", "exit_code", "client_ip"),
        *_plain("authorized", "policy_applied", "reason", "actor", "rule", "command_hmac", "evidence_sha256"),
        WireField("time", TIMESTAMP),
        *_optional("start_time", converter=TIMESTAMP),
        WireField("duration", DURATION),
        *_optional("request", converter=nested(_AUDITED_REQUEST)),
    ),
)
_SCHEDULED_RUN = WireFormat(
    ScheduledRun,
    pb.ScheduledRun,
    (
        WireField("due", TIMESTAMP),
        WireField("time", TIMESTAMP),
        WireField("outcome", _DUE_OUTCOME),
        *_plain("id", "agent_id", "reason", "count", "requested_by"),
        WireField("state", _STATE, Presence.NONZERO),
        *_optional("first", converter=TIMESTAMP),
    ),
)
_SCHEDULE = WireFormat(
    ScheduleStatus,
    pb.Schedule,
    (
        *_plain("name", "when", "agent_id", "enabled", "missed", "overlap", "paused", "paused_by", "pause_reason"),
        WireField("command", TUPLE),
        *_optional("paused_at", "next_due", converter=TIMESTAMP),
        *_optional("last", converter=nested(_SCHEDULED_RUN)),
    ),
)

#: Every table, for the test that no field is forgotten.
FORMATS: tuple[WireFormat[Any, Any], ...] = (
    _LIMITS, _USAGE, _TERMINAL, _REQUEST, _SUMMARY, _ACCEPTED, _KILL, _RESPONSE, _TRANSITION, _STATUS, _CANCEL,
    _APPROVAL, _OUTPUT, _TRUST, _AGENT, _ENROLMENT, _REVOCATION, _POLICY_STATUS, _AUDITED_REQUEST, _AUDIT_EVENT,
    _SCHEDULED_RUN, _SCHEDULE,
)  # fmt: skip

# --- the functions ----------------------------------------------------------------------------------------------------
# `…_from_pb` reads what a server sent (see `WireFormat.from_pb`).

request_to_pb = _REQUEST.to_pb
response_to_pb, response_from_pb = _RESPONSE.to_pb, _RESPONSE.from_pb
status_to_pb, status_from_pb = _STATUS.to_pb, _STATUS.from_pb
cancel_to_pb, cancel_from_pb = _CANCEL.to_pb, _CANCEL.from_pb
approval_to_pb, approval_from_pb = _APPROVAL.to_pb, _APPROVAL.from_pb
agent_to_pb, agent_from_pb = _AGENT.to_pb, _AGENT.from_pb
enrolment_to_pb = _ENROLMENT.to_pb
revocation_to_pb, revocation_from_pb = _REVOCATION.to_pb, _REVOCATION.from_pb
policy_status_to_pb, policy_status_from_pb = _POLICY_STATUS.to_pb, _POLICY_STATUS.from_pb
audit_to_pb, audit_from_pb = _AUDIT_EVENT.to_pb, _AUDIT_EVENT.from_pb
scheduled_run_to_pb, scheduled_run_from_pb = _SCHEDULED_RUN.to_pb, _SCHEDULED_RUN.from_pb
schedule_to_pb, schedule_from_pb = _SCHEDULE.to_pb, _SCHEDULE.from_pb


def request_from_pb(message: pb.ExecRequest) -> ExecRequest:
    """Read a request from a caller.

    Raises:
        InvalidRequest: a bound is broken.
    """
    try:
        return _REQUEST.read(message)
    except ValidationError as error:
        raise InvalidRequest(f"invalid request: {describe_validation_error(error)}") from None
    except (ValueError, OverflowError) as error:
        raise InvalidRequest(f"invalid request: {error}") from None


def output_to_pb(value: ExecOutput) -> pb.ExecOutput:
    """Convert an output message; its kind decides which attribute becomes the event."""
    contents = _OUTPUT.contents(value)
    event = _EVENTS[value.kind]
    content = getattr(value, event.attribute)
    if content is not None:
        contents[event.name] = event.converter.to_wire(content)
    return pb.ExecOutput(**contents)


def output_from_pb(message: pb.ExecOutput) -> ExecOutput:
    """Read an output message that a server sent.

    Raises:
        ServerError: its kind or a value is unknown to this client.
    """
    kind = message.WhichOneof("event")
    if kind is None:
        raise ServerError("the server sent an output message of a kind this client does not know; update it")
    event = _EVENTS[OutputKind(kind)]
    try:
        content = event.converter.from_wire(getattr(message, event.name))
    except (ValueError, OverflowError) as error:
        raise ServerError(f"the server sent an output message that this client cannot read: {error}") from None
    return _OUTPUT.from_pb(message, kind=OutputKind(kind), **{event.attribute: content})


def enroll_to_pb(agent: str, ttl: timedelta) -> pb.EnrollAgentRequest:
    """Make the request for a join token of an agent."""
    return pb.EnrollAgentRequest(id=agent, ttl=DURATION.to_wire(ttl))


def enrolment_from_pb(agent: str, message: pb.EnrollAgentResponse) -> Enrolment:
    """Read the join token of an agent; the agent is the one that was asked for."""
    return _ENROLMENT.from_pb(message, agent_id=agent)


def timestamp_to_pb(value: datetime | None) -> Timestamp | None:
    """Convert a time; None stays None, which protobuf takes for unset."""
    return None if value is None else TIMESTAMP.to_wire(value)


def timestamp_from_pb(value: Timestamp) -> datetime:
    """Convert a time to an aware one in UTC."""
    return TIMESTAMP.from_wire(value)


def states_to_pb(values: Iterable[ExecState]) -> list[pb.ExecState.ValueType]:
    """Convert states to their numbers."""
    return [_STATE.to_wire(value) for value in values]


def states_from_pb(values: Iterable[pb.ExecState.ValueType]) -> frozenset[ExecState]:
    """Read the states that a caller names.

    Raises:
        InvalidRequest: a number is no state.
    """
    try:
        return frozenset(_STATE.from_wire(value) for value in values)
    except ValueError as error:
        raise InvalidRequest(f"states: {error}") from None
