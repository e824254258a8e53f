"""The protobuf form of agents, policy, audit events and schedules, as tables of fields.

`tachikoma.client.wire` exports these functions too. It imports this module when the first one is used, because
running a command needs none of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from tachikoma.client.converters import (
    DURATION,
    HEX,
    HEX_LIST,
    MAP,
    TIMESTAMP,
    TUPLE,
    Presence,
    WireField,
    WireFormat,
    enumeration,
    many,
    nested,
    optional,
    plain,
)
from tachikoma.client.wire import STATE
from tachikoma.exec.v1 import remote_execution_pb2 as pb
from tachikoma.vocabulary.agents import AgentInfo, AgentTrust, Enrolment, Revocation
from tachikoma.vocabulary.audit import AuditedRequest, ExecAuditLog
from tachikoma.vocabulary.batches import BatchState
from tachikoma.vocabulary.policies import PolicyStatus
from tachikoma.vocabulary.recordings import RecordingInfo, RecordingMatch
from tachikoma.vocabulary.schedules import DueOutcome, ScheduledRun, ScheduleStatus
from tachikoma.vocabulary.users import UserEnrolment, UserInfo

__all__ = [
    "FORMATS",
    "agent_from_pb",
    "agent_to_pb",
    "audit_from_pb",
    "audit_to_pb",
    "enroll_to_pb",
    "enroll_user_to_pb",
    "enrolment_from_pb",
    "enrolment_to_pb",
    "policy_status_from_pb",
    "policy_status_to_pb",
    "recording_from_pb",
    "recording_to_pb",
    "revocation_from_pb",
    "revocation_to_pb",
    "schedule_from_pb",
    "schedule_to_pb",
    "scheduled_run_from_pb",
    "scheduled_run_to_pb",
    "user_enrolment_from_pb",
    "user_enrolment_to_pb",
    "user_from_pb",
    "user_to_pb",
]

_DUE_OUTCOME = enumeration(DueOutcome, pb.DueOutcome.Value, "DUE_OUTCOME")

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
        *plain("id", "online", "version", "hostname", "running", "slots", "queued"),
        *plain("load", "memory_used", "disk_used"),
        *plain("draining", "drained_by", "drain_reason", "revoked", "revoked_by", "revoke_reason"),
        WireField("labels", MAP),
        WireField("reported_labels", MAP),
        WireField("warnings", TUPLE),
        WireField("isolation", TUPLE),
        *optional("last_seen", converter=TIMESTAMP),
        *optional("trust", converter=nested(_TRUST)),
    ),
)
_ENROLMENT = WireFormat(Enrolment, pb.EnrollAgentResponse, (WireField("token"), WireField("expires", TIMESTAMP)))
_REVOCATION = WireFormat(
    Revocation,
    pb.RevokeAgentResponse,
    (WireField("id", renamed="agent_id"), *plain("cancelled", "lost"), WireField("warnings", TUPLE)),
)
_USER = WireFormat(
    UserInfo,
    pb.User,
    (
        *plain("name", "enrolled_by", "address", "revoked", "revoked_by", "revoke_reason"),
        *optional("joined", converter=TIMESTAMP),
    ),
)
_USER_ENROLMENT = WireFormat(
    UserEnrolment, pb.EnrollUserResponse, (WireField("token"), WireField("expires", TIMESTAMP))
)
_POLICY_STATUS = WireFormat(
    PolicyStatus,
    pb.PolicyStatus,
    (
        WireField("digest", HEX),
        WireField("since", TIMESTAMP),
        *plain("policies", "error", "host", "path"),
    ),
)
_AUDITED_REQUEST = WireFormat(
    AuditedRequest,
    pb.AuditedRequest,
    (
        WireField("command", TUPLE),
        WireField("environment", TUPLE),
        *plain("work_dir", "user", "interactive", "tty", "stdin_bytes"),
        *optional("timeout"),
    ),
)
_AUDIT_EVENT = WireFormat(
    ExecAuditLog,
    pb.AuditEvent,
    (
        *plain("cursor", "seq", "event", "id", "agent_id", "requested_by", "command", "exit_code", "client_ip"),
        *plain("authorized", "policy_applied", "reason", "actor", "rule", "command_hmac", "evidence_sha256", "batch"),
        WireField("time", TIMESTAMP),
        *optional("start_time", converter=TIMESTAMP),
        WireField("duration", DURATION),
        *optional("request", converter=nested(_AUDITED_REQUEST)),
    ),
)
_RECORDING_MATCH = WireFormat(RecordingMatch, pb.RecordingMatch, (WireField("at", DURATION), WireField("line")))
_RECORDING = WireFormat(
    RecordingInfo,
    pb.Recording,
    (
        *plain("id", "agent_id", "requested_by", "tty", "size", "exit_code", "complete", "problem", "has_input"),
        WireField("command", TUPLE),
        WireField("start_time", TIMESTAMP),
        WireField("duration", DURATION),
        WireField("sha256", HEX),
        WireField("matches", many(_RECORDING_MATCH)),
    ),
)
_BATCH_STATE = enumeration(BatchState, pb.BatchState.Value, "BATCH_STATE")
_SCHEDULED_RUN = WireFormat(
    ScheduledRun,
    pb.ScheduledRun,
    (
        WireField("due", TIMESTAMP),
        WireField("time", TIMESTAMP),
        WireField("outcome", _DUE_OUTCOME),
        *plain("id", "agent_id", "reason", "count", "requested_by"),
        WireField("state", STATE, Presence.NONZERO),
        WireField("batch_state", _BATCH_STATE, Presence.NONZERO),
        *optional("first", converter=TIMESTAMP),
    ),
)
_SCHEDULE = WireFormat(
    ScheduleStatus,
    pb.Schedule,
    (
        *plain("name", "when", "agent_id", "enabled", "missed", "overlap", "paused", "paused_by", "pause_reason"),
        WireField("command", TUPLE),
        WireField("targets", TUPLE),
        *optional("paused_at", "next_due", converter=TIMESTAMP),
        *optional("last", converter=nested(_SCHEDULED_RUN)),
    ),
)

#: The tables of this module, for the test that no field is forgotten.
FORMATS: tuple[WireFormat[Any, Any], ...] = (
    _TRUST, _AGENT, _ENROLMENT, _REVOCATION, _POLICY_STATUS, _AUDITED_REQUEST, _AUDIT_EVENT,
    _RECORDING_MATCH, _RECORDING, _SCHEDULED_RUN, _SCHEDULE, _USER, _USER_ENROLMENT,
)  # fmt: skip

agent_to_pb, agent_from_pb = _AGENT.to_pb, _AGENT.from_pb
enrolment_to_pb = _ENROLMENT.to_pb
user_to_pb, user_from_pb = _USER.to_pb, _USER.from_pb
user_enrolment_to_pb = _USER_ENROLMENT.to_pb
revocation_to_pb, revocation_from_pb = _REVOCATION.to_pb, _REVOCATION.from_pb
policy_status_to_pb, policy_status_from_pb = _POLICY_STATUS.to_pb, _POLICY_STATUS.from_pb
audit_to_pb, audit_from_pb = _AUDIT_EVENT.to_pb, _AUDIT_EVENT.from_pb
recording_to_pb, recording_from_pb = _RECORDING.to_pb, _RECORDING.from_pb
scheduled_run_to_pb, scheduled_run_from_pb = _SCHEDULED_RUN.to_pb, _SCHEDULED_RUN.from_pb
schedule_to_pb, schedule_from_pb = _SCHEDULE.to_pb, _SCHEDULE.from_pb


def enroll_to_pb(agent: str, ttl: timedelta, labels: Mapping[str, str]) -> pb.EnrollAgentRequest:
    """Make the request for a join token of an agent, with the labels that a join binds to it."""
    return pb.EnrollAgentRequest(id=agent, ttl=DURATION.to_wire(ttl), labels=labels)


def enrolment_from_pb(agent: str, message: pb.EnrollAgentResponse) -> Enrolment:
    """Read the join token of an agent; the agent is the one that was asked for."""
    return _ENROLMENT.from_pb(message, agent_id=agent)


def enroll_user_to_pb(name: str, ttl: timedelta) -> pb.EnrollUserRequest:
    """Make the request for a token of a person."""
    return pb.EnrollUserRequest(name=name, ttl=DURATION.to_wire(ttl))


def user_enrolment_from_pb(name: str, message: pb.EnrollUserResponse) -> UserEnrolment:
    """Read the token of a person; the person is the one that was asked for."""
    return _USER_ENROLMENT.from_pb(message, name=name)
