"""The protobuf form of batches, as tables of fields like those in `wire.py`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from tachikoma.client import wire
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
    repeated,
)
from tachikoma.exec.v1 import remote_execution_pb2 as pb
from tachikoma.vocabulary.batches import (
    ApprovalNeed,
    BatchApproval,
    BatchPreview,
    BatchRequest,
    BatchResult,
    BatchState,
    BatchStatus,
    BatchUpdate,
    HealthGate,
    PreviewedTarget,
    StopCause,
    TargetState,
)

__all__ = [
    "FORMATS",
    "approval_from_pb",
    "approval_to_pb",
    "preview_from_pb",
    "preview_to_pb",
    "request_from_pb",
    "request_to_pb",
    "status_from_pb",
    "status_to_pb",
    "update_from_pb",
    "update_to_pb",
]

_STATE = enumeration(BatchState, pb.BatchState.Value, "BATCH_STATE")
_TARGET = enumeration(TargetState, pb.TargetState.Value, "TARGET_STATE")
_CAUSE = enumeration(StopCause, pb.StopCause.Value, "STOP_CAUSE")


def _counts_to_wire(totals: Mapping[TargetState, int]) -> list[pb.TargetCount]:
    return [pb.TargetCount(state=_TARGET.to_wire(state), targets=number) for state, number in totals.items()]


def _counts_from_wire(counts: Iterable[pb.TargetCount]) -> dict[TargetState, int]:
    return {_TARGET.from_wire(count.state): count.targets for count in counts}


_COUNTS: Converter[Any, Any] = Converter(_counts_to_wire, _counts_from_wire)


_GATE = WireFormat(
    HealthGate,
    pb.HealthGate,
    (WireField("agent_id"), WireField("command", TUPLE), *optional("timeout", converter=DURATION)),
)
_REQUEST = WireFormat(
    BatchRequest,
    pb.BatchRequest,
    (
        WireField("id", presence=Presence.NONZERO),
        WireField("parallel", presence=Presence.NONZERO),
        WireField("targets", TUPLE),
        WireField("command", TUPLE),
        WireField("environment", MAP),
        *plain("work_dir", "stdin", "user", "canary"),
        *optional("timeout", "pause", "deadline", converter=DURATION),
        *optional("limits", converter=nested(wire.LIMITS)),
        *optional("wave", "stop_after", "retry_of"),
        *optional("gate", converter=nested(_GATE)),
        WireField("stop_on", repeated(_CAUSE)),
        WireField("retry_states", repeated(_TARGET)),
    ),
)
_NEED = WireFormat(ApprovalNeed, pb.ApprovalNeed, (WireField("approvers", TUPLE), *plain("policy", "targets", "above")))
_STATUS = WireFormat(
    BatchStatus,
    pb.BatchStatus,
    (
        WireField("state", _STATE),
        WireField("command", TUPLE),
        WireField("digest", HEX),
        WireField("totals", _COUNTS),
        WireField("submit_time", TIMESTAMP),
        WireField("needs", many(_NEED)),
        *plain("id", "requested_by", "total", "failures", "reason", "approved_by", "approval_reason"),
        *optional("end_time", "deadline", converter=TIMESTAMP),
    ),
)
_RESULT = WireFormat(
    BatchResult,
    pb.BatchResult,
    (
        WireField("state", _TARGET),
        WireField("stdout_sha256", HEX),
        WireField("stderr_sha256", HEX),
        *plain("agent_id", "exec_id", "exit_code", "error", "stdout_bytes", "stderr_bytes"),
        *optional("stdout", "stderr"),
    ),
)
_UPDATE = WireFormat(
    BatchUpdate,
    pb.BatchUpdate,
    (*optional("status", converter=nested(_STATUS)), *optional("result", converter=nested(_RESULT))),
)
_TARGET_PREVIEW = WireFormat(
    PreviewedTarget, pb.PreviewedTarget, (WireField("state", _TARGET), *plain("agent_id", "reason"))
)
_PREVIEW = WireFormat(
    BatchPreview,
    pb.BatchPreview,
    (
        WireField("digest", HEX),
        WireField("targets", many(_TARGET_PREVIEW)),
        WireField("time", TIMESTAMP),
        WireField("needs", many(_NEED)),
    ),
)
_APPROVAL = WireFormat(
    BatchApproval,
    pb.BatchApproval,
    (
        WireField("status", nested(_STATUS)),
        WireField("request", nested(_REQUEST)),
        WireField("targets", TUPLE),
        WireField("needs", many(_NEED)),
        WireField("denied", TUPLE),
        WireField("digest", HEX),
    ),
)

#: Every table, for the test that no field is forgotten.
FORMATS: tuple[WireFormat[Any, Any], ...] = (
    _GATE,
    _REQUEST, _NEED, _STATUS, _RESULT, _UPDATE, _TARGET_PREVIEW, _PREVIEW, _APPROVAL,
)  # fmt: skip

request_to_pb, request_from_pb = _REQUEST.to_pb, _REQUEST.from_caller
status_to_pb, status_from_pb = _STATUS.to_pb, _STATUS.from_pb
update_to_pb, update_from_pb = _UPDATE.to_pb, _UPDATE.from_pb
preview_to_pb, preview_from_pb = _PREVIEW.to_pb, _PREVIEW.from_pb
approval_to_pb, approval_from_pb = _APPROVAL.to_pb, _APPROVAL.from_pb
