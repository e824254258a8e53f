"""The protobuf form of each model of the vocabulary, as tables of fields.

Each table has one row for each field; `converters` says how a row is read. Models validate their values, so a message
of a hostile peer is refused, on either side.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from importlib import import_module
from typing import TYPE_CHECKING, Any

from google.protobuf.timestamp_pb2 import Timestamp

from tachikoma.client.converters import (
    DURATION,
    HEX,
    MAP,
    TIMESTAMP,
    TUPLE,
    Converter,
    Presence,
    WireField,
    WireFormat,
    enumeration,
    many,
    nested,
    optional,
    plain,
)
from tachikoma.errors import InvalidRequest, ServerError
from tachikoma.exec.v1 import remote_execution_pb2 as pb
from tachikoma.vocabulary.limits import ResourceLimits, ResourceUsage
from tachikoma.vocabulary.messages import OutputKind
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
    IsolationReport,
    KillReceipt,
    OutputSummary,
)
from tachikoma.vocabulary.states import ExecState

if TYPE_CHECKING:
    from tachikoma.client.wire_records import (
        agent_from_pb as agent_from_pb,
    )
    from tachikoma.client.wire_records import (
        agent_to_pb as agent_to_pb,
    )
    from tachikoma.client.wire_records import (
        audit_from_pb as audit_from_pb,
    )
    from tachikoma.client.wire_records import (
        audit_to_pb as audit_to_pb,
    )
    from tachikoma.client.wire_records import (
        enroll_to_pb as enroll_to_pb,
    )
    from tachikoma.client.wire_records import (
        enroll_user_to_pb as enroll_user_to_pb,
    )
    from tachikoma.client.wire_records import (
        enrolment_from_pb as enrolment_from_pb,
    )
    from tachikoma.client.wire_records import (
        enrolment_to_pb as enrolment_to_pb,
    )
    from tachikoma.client.wire_records import (
        policy_status_from_pb as policy_status_from_pb,
    )
    from tachikoma.client.wire_records import (
        policy_status_to_pb as policy_status_to_pb,
    )
    from tachikoma.client.wire_records import (
        recording_from_pb as recording_from_pb,
    )
    from tachikoma.client.wire_records import (
        recording_to_pb as recording_to_pb,
    )
    from tachikoma.client.wire_records import (
        revocation_from_pb as revocation_from_pb,
    )
    from tachikoma.client.wire_records import (
        revocation_to_pb as revocation_to_pb,
    )
    from tachikoma.client.wire_records import (
        schedule_from_pb as schedule_from_pb,
    )
    from tachikoma.client.wire_records import (
        schedule_to_pb as schedule_to_pb,
    )
    from tachikoma.client.wire_records import (
        scheduled_run_from_pb as scheduled_run_from_pb,
    )
    from tachikoma.client.wire_records import (
        scheduled_run_to_pb as scheduled_run_to_pb,
    )
    from tachikoma.client.wire_records import (
        user_enrolment_from_pb as user_enrolment_from_pb,
    )
    from tachikoma.client.wire_records import (
        user_enrolment_to_pb as user_enrolment_to_pb,
    )
    from tachikoma.client.wire_records import (
        user_from_pb as user_from_pb,
    )
    from tachikoma.client.wire_records import (
        user_to_pb as user_to_pb,
    )

__all__ = [
    "FORMATS",
    "LIMITS",
    "STATE",
    "approval_from_pb",
    "approval_to_pb",
    "cancel_from_pb",
    "cancel_to_pb",
    "digest_to_pb",
    "output_from_pb",
    "output_to_pb",
    "request_from_pb",
    "request_to_pb",
    "response_from_pb",
    "response_to_pb",
    "states_from_pb",
    "states_to_pb",
    "status_from_pb",
    "status_to_pb",
    "timestamp_from_pb",
    "timestamp_to_pb",
]

#: A state of an execution.
STATE = enumeration(ExecState, pb.ExecState.Value, "EXEC_STATE")
_CANCEL_OUTCOME = enumeration(CancelOutcome, pb.CancelOutcome.Value, "CANCEL_OUTCOME")


# --- requests and results ---------------------------------------------------------------------------------------------

#: Limits of resources, also of batches.
LIMITS = WireFormat(
    ResourceLimits,
    pb.ResourceLimits,
    optional(
        *("memory", "swap", "cpus", "cpu_weight", "pids", "io_read", "io_write", "open_files", "oom_group"),
    ),
)
_USAGE = WireFormat(
    ResourceUsage,
    pb.ResourceUsage,
    optional("cpu_seconds", "peak_memory", "peak_pids", "io_read", "io_written", "oom_kills"),
)
_TERMINAL = WireFormat(
    Terminal,
    pb.Terminal,
    (WireField("type", presence=Presence.NONZERO), *plain("rows", "columns", "x_pixels", "y_pixels")),
)
_REQUEST = WireFormat(
    ExecRequest,
    pb.ExecRequest,
    (
        WireField("id", presence=Presence.NONZERO),
        WireField("command", TUPLE),
        WireField("environment", MAP),
        *plain("agent_id", "work_dir", "stdin", "user", "interactive", "tty", "requested_by"),
        *optional("timeout", converter=DURATION),
        *optional("request_time", converter=TIMESTAMP),
        *optional("limits", converter=nested(LIMITS)),
        *optional("terminal", converter=nested(_TERMINAL)),
        *optional("isolation"),
    ),
)
_SUMMARY = WireFormat(OutputSummary, pb.OutputSummary, (WireField("sha256", HEX), *plain("total_bytes", "truncated")))
_KILL = WireFormat(
    KillReceipt,
    pb.KillReceipt,
    (*plain("empty", "whole"), WireField("signals", TUPLE), WireField("survivors", TUPLE)),
)
_ISOLATION = WireFormat(
    IsolationReport,
    pb.IsolationReport,
    (*plain("level", "tmp", "host_access"), WireField("parts", TUPLE), WireField("missing", TUPLE)),
)
_RESPONSE = WireFormat(
    ExecResponse,
    pb.ExecResponse,
    (
        *plain("id", "agent_id", "exit_code", "signal", "stdout", "stderr", "error", "cancelled", "receipt"),
        WireField("state", STATE),
        WireField("stdout_summary", nested(_SUMMARY)),
        WireField("stderr_summary", nested(_SUMMARY)),
        *optional("start_time", "end_time", converter=TIMESTAMP),
        WireField("duration", DURATION),
        WireField("usage", nested(_USAGE)),
        *optional("kill", converter=nested(_KILL)),
        *optional("isolation", converter=nested(_ISOLATION)),
    ),
)
_TRANSITION = WireFormat(ExecTransition, pb.ExecTransition, (WireField("state", STATE), WireField("time", TIMESTAMP)))
_STATUS = WireFormat(
    ExecStatus,
    pb.ExecStatus,
    (
        *plain("id", "agent_id", "requested_by", "exit_code", "error", "policy_applied", "cancel_requested_by"),
        *plain("user", "work_dir", "approved_by", "approval_reason", "interactive", "tty", "attached_by", "recorded"),
        WireField("state", STATE),
        WireField("command", TUPLE),
        WireField("approvers", TUPLE),
        WireField("observers", TUPLE),
        WireField("request_time", TIMESTAMP),
        *optional("start_time", "end_time", "deadline", "caller_time", converter=TIMESTAMP),
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
        WireField("limits", nested(LIMITS)),
    ),
)

# --- output -----------------------------------------------------------------------------------------------------------

_ACCEPTED = WireFormat(InputAccepted, pb.InputAccepted, plain("offset", "echo", "canonical", "ended"))
_OUTPUT = WireFormat(ExecOutput, pb.ExecOutput, (*plain("id", "seq", "offset"), *optional("time", converter=TIMESTAMP)))
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
    OutputKind.SCREEN: WireField("screen", renamed="data"),
    OutputKind.ACCEPTED: WireField("accepted", nested(_ACCEPTED)),
}

#: The tables of this module, for the test that no field is forgotten.
FORMATS: tuple[WireFormat[Any, Any], ...] = (
    LIMITS, _USAGE, _TERMINAL, _REQUEST, _SUMMARY, _ACCEPTED, _KILL, _ISOLATION, _RESPONSE, _TRANSITION, _STATUS,
    _CANCEL, _APPROVAL, _OUTPUT,
)  # fmt: skip

# --- the functions ----------------------------------------------------------------------------------------------------
# `…_from_pb` reads what a server sent (see `WireFormat.from_pb`).

request_to_pb, request_from_pb = _REQUEST.to_pb, _REQUEST.from_caller
response_to_pb, response_from_pb = _RESPONSE.to_pb, _RESPONSE.from_pb
status_to_pb, status_from_pb = _STATUS.to_pb, _STATUS.from_pb
cancel_to_pb, cancel_from_pb = _CANCEL.to_pb, _CANCEL.from_pb
approval_to_pb, approval_from_pb = _APPROVAL.to_pb, _APPROVAL.from_pb


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


def digest_to_pb(digest: str, source: str) -> bytes:
    """Return the bytes of a digest that a caller gives in hexadecimal digits.

    Args:
        digest: the digits.
        source: the attribute that has such digests, for the message.

    Raises:
        InvalidRequest: the text is not a digest.
    """
    try:
        return bytes.fromhex(digest)
    except ValueError:
        raise InvalidRequest(f"{digest[:80]!r} is no digest; `{source}` has it") from None


def timestamp_to_pb(value: datetime | None) -> Timestamp | None:
    """Convert a time. None stays None, so that the field is unset."""
    return None if value is None else TIMESTAMP.to_wire(value)


def timestamp_from_pb(value: Timestamp) -> datetime:
    """Convert a time to an aware one in UTC."""
    return TIMESTAMP.from_wire(value)


def states_to_pb(values: Iterable[ExecState]) -> list[pb.ExecState.ValueType]:
    """Convert states to their numbers."""
    return [STATE.to_wire(value) for value in values]


def states_from_pb(values: Iterable[pb.ExecState.ValueType]) -> frozenset[ExecState]:
    """Read the states that a caller names.

    Raises:
        InvalidRequest: a number is no state.
    """
    try:
        return frozenset(STATE.from_wire(value) for value in values)
    except ValueError as error:
        raise InvalidRequest(f"states: {error}") from None


def __getattr__(name: str) -> Any:
    """Import the functions of `wire_records` on first use (PEP 562)."""
    records = import_module("tachikoma.client.wire_records")
    if name not in records.__all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(records, name)
    globals()[name] = value
    return value
