"""Between the vocabulary and its protobuf messages, and between errors and gRPC statuses.

One function per type and direction. Whatever comes in is validated by the models, so both sides may be hostile.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError, Message
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status
from pydantic import ValidationError

from tachikoma.errors import InvalidRequest, ServerError, TachikomaError, Unauthenticated, Unavailable, by_reason
from tachikoma.exec.v1 import remote_execution_pb2 as pb
from tachikoma.vocabulary.agents import AgentInfo, AgentTrust, Enrolment, Revocation
from tachikoma.vocabulary.audit import AuditedRequest, ExecAuditLog
from tachikoma.vocabulary.limits import ResourceLimits, ResourceUsage
from tachikoma.vocabulary.model import Model, describe_validation_error
from tachikoma.vocabulary.policies import PolicyStatus
from tachikoma.vocabulary.requests import ExecRequest
from tachikoma.vocabulary.results import (
    Approval,
    CancelOutcome,
    CancelResponse,
    ExecOutput,
    ExecResponse,
    ExecStatus,
    ExecTransition,
    KillReceipt,
    OutputKind,
    OutputSummary,
)
from tachikoma.vocabulary.schedules import DueOutcome, Missed, Overlap, ScheduledRun, ScheduleStatus
from tachikoma.vocabulary.states import ExecState

#: The domain of `google.rpc.ErrorInfo`.
ERROR_DOMAIN = "tachikoma.exec.v1"
#: Where gRPC keeps the rich status (grpc/status, all languages).
STATUS_DETAILS = "grpc-status-details-bin"


def timestamp_to_pb(value: datetime | None) -> Timestamp | None:
    if value is None:
        return None
    message = Timestamp()
    message.FromDatetime(value)
    return message


def _datetime(value: Timestamp) -> datetime:
    return value.ToDatetime(tzinfo=UTC)


def _duration(value: timedelta) -> Duration:
    message = Duration()
    message.FromTimedelta(value)
    return message


def _state(value: ExecState) -> pb.ExecState.ValueType:
    return pb.ExecState.Value(f"EXEC_STATE_{value}")


def _exec_state(value: int) -> ExecState:
    return ExecState(pb.ExecState.Name(value).removeprefix("EXEC_STATE_"))  # type: ignore[arg-type]


def states_from_pb(values: Iterable[int]) -> frozenset[ExecState]:
    """States that a caller names.

    Raises:
        InvalidRequest: one of them is none.
    """
    try:
        return frozenset(_exec_state(value) for value in values)
    except ValueError as error:
        raise InvalidRequest(f"states: {error}") from None


def states_to_pb(values: Iterable[ExecState]) -> list[pb.ExecState.ValueType]:
    return [_state(value) for value in values]


# --- requests ---------------------------------------------------------------------------------------------------------


def request_to_pb(value: ExecRequest) -> pb.ExecRequest:
    return pb.ExecRequest(
        id=value.id,
        agent_id=value.agent_id,
        command=value.command,
        work_dir=value.work_dir,
        environment=value.environment,
        stdin=value.stdin,
        timeout=None if value.timeout is None else _duration(value.timeout),
        user=value.user,
        interactive=value.interactive,
        tty=value.tty,
        requested_by=value.requested_by,
        request_time=timestamp_to_pb(value.request_time),
        limits=None if value.limits is None else pb.ResourceLimits(**_given(value.limits)),
    )


def _given(value: Model) -> dict[str, Any]:
    """The fields that are not None."""
    return value.model_dump(by_alias=False, exclude_none=True)


def _set_fields(message: Message) -> dict[str, Any]:
    """The scalar fields that are set."""
    return {field.name: value for field, value in message.ListFields()}


def request_from_pb(message: pb.ExecRequest) -> ExecRequest:
    """Read a request from a caller.

    Raises:
        InvalidRequest: a bound is broken.
    """
    values: dict[str, Any] = {
        "agent_id": message.agent_id,
        "command": tuple(message.command),
        "work_dir": message.work_dir,
        "environment": dict(message.environment),
        "stdin": message.stdin,
        "user": message.user,
        "interactive": message.interactive,
        "tty": message.tty,
        "requested_by": message.requested_by,
    }
    try:
        if message.id:
            values["id"] = message.id
        if message.HasField("timeout"):
            values["timeout"] = message.timeout.ToTimedelta()
        if message.HasField("request_time"):
            values["request_time"] = _datetime(message.request_time)
        if message.HasField("limits"):
            values["limits"] = _set_fields(message.limits)
        return ExecRequest(**values)
    except ValidationError as error:
        raise InvalidRequest(f"invalid request: {describe_validation_error(error)}") from None
    except (ValueError, OverflowError) as error:
        raise InvalidRequest(f"invalid request: {error}") from None


# --- what comes back --------------------------------------------------------------------------------------------------


def _summary_to_pb(value: OutputSummary) -> pb.OutputSummary:
    return pb.OutputSummary(
        total_bytes=value.total_bytes, sha256=bytes.fromhex(value.sha256), truncated=value.truncated
    )


def _summary_from_pb(message: pb.OutputSummary) -> OutputSummary:
    return OutputSummary(total_bytes=message.total_bytes, sha256=message.sha256.hex(), truncated=message.truncated)


def response_to_pb(value: ExecResponse) -> pb.ExecResponse:
    return pb.ExecResponse(
        id=value.id,
        agent_id=value.agent_id,
        state=_state(value.state),
        exit_code=value.exit_code,
        signal=value.signal,
        stdout=value.stdout,
        stderr=value.stderr,
        stdout_summary=_summary_to_pb(value.stdout_summary),
        stderr_summary=_summary_to_pb(value.stderr_summary),
        start_time=timestamp_to_pb(value.start_time),
        end_time=timestamp_to_pb(value.end_time),
        duration=_duration(value.duration),
        error=value.error,
        cancelled=value.cancelled,
        usage=pb.ResourceUsage(**_given(value.usage)),
        kill=None if value.kill is None else pb.KillReceipt(**value.kill.model_dump(by_alias=False)),
    )


def response_from_pb(message: pb.ExecResponse) -> ExecResponse:
    return ExecResponse(
        id=message.id,
        agent_id=message.agent_id,
        state=_exec_state(message.state),
        exit_code=message.exit_code,
        signal=message.signal,
        stdout=message.stdout,
        stderr=message.stderr,
        stdout_summary=_summary_from_pb(message.stdout_summary),
        stderr_summary=_summary_from_pb(message.stderr_summary),
        start_time=_datetime(message.start_time) if message.HasField("start_time") else None,
        end_time=_datetime(message.end_time) if message.HasField("end_time") else None,
        duration=message.duration.ToTimedelta(),
        error=message.error,
        cancelled=message.cancelled,
        usage=ResourceUsage(**_set_fields(message.usage)),
        kill=KillReceipt(
            empty=message.kill.empty,
            whole=message.kill.whole,
            signals=tuple(message.kill.signals),
            survivors=tuple(message.kill.survivors),
        )
        if message.HasField("kill")
        else None,
    )


def status_to_pb(value: ExecStatus) -> pb.ExecStatus:
    return pb.ExecStatus(
        id=value.id,
        agent_id=value.agent_id,
        state=_state(value.state),
        command=value.command,
        requested_by=value.requested_by,
        request_time=timestamp_to_pb(value.request_time),
        start_time=timestamp_to_pb(value.start_time),
        end_time=timestamp_to_pb(value.end_time),
        exit_code=value.exit_code,
        error=value.error,
        policy_applied=value.policy_applied,
        cancel_requested_by=value.cancel_requested_by,
        timeout=_duration(value.timeout),
        user=value.user,
        work_dir=value.work_dir,
        history=[
            pb.ExecTransition(state=_state(step.state), time=timestamp_to_pb(step.time)) for step in value.history
        ],
        deadline=timestamp_to_pb(value.deadline),
        approvers=value.approvers,
        approved_by=value.approved_by,
        approval_reason=value.approval_reason,
    )


def status_from_pb(message: pb.ExecStatus) -> ExecStatus:
    return ExecStatus(
        id=message.id,
        agent_id=message.agent_id,
        state=_exec_state(message.state),
        command=tuple(message.command),
        requested_by=message.requested_by,
        request_time=_datetime(message.request_time),
        start_time=_datetime(message.start_time) if message.HasField("start_time") else None,
        end_time=_datetime(message.end_time) if message.HasField("end_time") else None,
        exit_code=message.exit_code,
        error=message.error,
        policy_applied=message.policy_applied,
        cancel_requested_by=message.cancel_requested_by,
        timeout=message.timeout.ToTimedelta(),
        user=message.user,
        work_dir=message.work_dir,
        history=tuple(
            ExecTransition(state=_exec_state(step.state), time=_datetime(step.time)) for step in message.history
        ),
        deadline=_datetime(message.deadline) if message.HasField("deadline") else None,
        approvers=tuple(message.approvers),
        approved_by=message.approved_by,
        approval_reason=message.approval_reason,
    )


def approval_to_pb(value: Approval) -> pb.Approval:
    return pb.Approval(
        status=status_to_pb(value.status),
        request=request_to_pb(value.request),
        digest=bytes.fromhex(value.digest),
        policy=value.policy,
        limits=pb.ResourceLimits(**_given(value.limits)),
    )


def approval_from_pb(message: pb.Approval) -> Approval:
    return Approval(
        status=status_from_pb(message.status),
        request=request_from_pb(message.request),
        digest=message.digest.hex(),
        policy=message.policy,
        limits=ResourceLimits(**_set_fields(message.limits)),
    )


def output_to_pb(value: ExecOutput) -> pb.ExecOutput:
    message = pb.ExecOutput(id=value.id, seq=value.seq, time=timestamp_to_pb(value.time))
    if value.kind is OutputKind.STDOUT:
        message.stdout = value.data
    elif value.kind is OutputKind.STDERR:
        message.stderr = value.data
    elif value.kind is OutputKind.GAP:
        message.gap.missing_bytes = value.missing_bytes
    elif value.status is not None:
        message.status.CopyFrom(status_to_pb(value.status))
    elif value.result is not None:
        message.result.CopyFrom(response_to_pb(value.result))
    return message


def output_from_pb(message: pb.ExecOutput) -> ExecOutput:
    kind = message.WhichOneof("event")
    if kind is None:
        raise ServerError("the server sent an output message of a kind this client does not know; update it")
    values: dict[str, Any] = {"id": message.id, "seq": message.seq, "kind": OutputKind(kind)}
    if message.HasField("time"):
        values["time"] = _datetime(message.time)
    if kind in ("stdout", "stderr"):
        values["data"] = getattr(message, kind)
    elif kind == "gap":
        values["missing_bytes"] = message.gap.missing_bytes
    elif kind == "status":
        values["status"] = status_from_pb(message.status)
    else:
        values["result"] = response_from_pb(message.result)
    return ExecOutput(**values)


def cancel_to_pb(value: CancelResponse) -> pb.CancelResponse:
    return pb.CancelResponse(
        outcome=pb.CancelOutcome.Value(f"CANCEL_OUTCOME_{value.outcome}"), status=status_to_pb(value.status)
    )


def cancel_from_pb(message: pb.CancelResponse) -> CancelResponse:
    outcome = pb.CancelOutcome.Name(message.outcome).removeprefix("CANCEL_OUTCOME_")
    return CancelResponse(outcome=CancelOutcome(outcome), status=status_from_pb(message.status))


def agent_to_pb(value: AgentInfo) -> pb.Agent:
    trust = None
    if value.trust is not None:
        trust = pb.AgentTrust(
            spiffe_id=value.trust.spiffe_id,
            expires=timestamp_to_pb(value.trust.expires),
            root=bytes.fromhex(value.trust.root),
            bundle=[bytes.fromhex(digest) for digest in value.trust.bundle],
        )
    fields = value.model_dump(by_alias=False)
    return pb.Agent(**{**fields, "last_seen": timestamp_to_pb(value.last_seen), "trust": trust})


def agent_from_pb(message: pb.Agent) -> AgentInfo:
    return AgentInfo(
        id=message.id,
        online=message.online,
        last_seen=_datetime(message.last_seen) if message.HasField("last_seen") else None,
        version=message.version,
        hostname=message.hostname,
        labels=dict(message.labels),
        running=message.running,
        slots=message.slots,
        queued=message.queued,
        load=message.load,
        memory_used=message.memory_used,
        disk_used=message.disk_used,
        warnings=tuple(message.warnings),
        draining=message.draining,
        drained_by=message.drained_by,
        drain_reason=message.drain_reason,
        trust=AgentTrust(
            spiffe_id=message.trust.spiffe_id,
            expires=_datetime(message.trust.expires),
            root=message.trust.root.hex(),
            bundle=tuple(digest.hex() for digest in message.trust.bundle),
        )
        if message.HasField("trust")
        else None,
        revoked=message.revoked,
        revoked_by=message.revoked_by,
        revoke_reason=message.revoke_reason,
    )


def enroll_to_pb(agent: str, ttl: timedelta) -> pb.EnrollAgentRequest:
    return pb.EnrollAgentRequest(id=agent, ttl=_duration(ttl))


def enrolment_to_pb(value: Enrolment) -> pb.EnrollAgentResponse:
    return pb.EnrollAgentResponse(token=value.token, expires=timestamp_to_pb(value.expires))


def enrolment_from_pb(agent: str, message: pb.EnrollAgentResponse) -> Enrolment:
    return Enrolment(agent_id=agent, token=message.token, expires=_datetime(message.expires))


def revocation_to_pb(value: Revocation) -> pb.RevokeAgentResponse:
    return pb.RevokeAgentResponse(
        id=value.agent_id, cancelled=value.cancelled, lost=value.lost, warnings=value.warnings
    )


def revocation_from_pb(message: pb.RevokeAgentResponse) -> Revocation:
    return Revocation(
        agent_id=message.id,
        cancelled=message.cancelled,
        lost=message.lost,
        warnings=tuple(message.warnings),
    )


def policy_status_to_pb(value: PolicyStatus) -> pb.PolicyStatus:
    return pb.PolicyStatus(
        **{
            **value.model_dump(by_alias=False),
            "digest": bytes.fromhex(value.digest),
            "since": timestamp_to_pb(value.since),
        }
    )


def policy_status_from_pb(message: pb.PolicyStatus) -> PolicyStatus:
    return PolicyStatus(
        digest=message.digest.hex(),
        policies=message.policies,
        since=_datetime(message.since),
        error=message.error,
        host=message.host,
        path=message.path,
    )


def audit_to_pb(value: ExecAuditLog) -> pb.AuditEvent:
    return pb.AuditEvent(
        **{
            **value.model_dump(by_alias=False),
            "time": timestamp_to_pb(value.time),
            "start_time": timestamp_to_pb(value.start_time),
            "duration": _duration(value.duration),
            "request": None if value.request is None else pb.AuditedRequest(**_given(value.request)),
        }
    )


def audit_from_pb(message: pb.AuditEvent) -> ExecAuditLog:
    request = message.request
    return ExecAuditLog(
        cursor=message.cursor,
        seq=message.seq,
        time=_datetime(message.time),
        event=message.event,
        id=message.id,
        agent_id=message.agent_id,
        requested_by=message.requested_by,
        command=message.command,
        exit_code=message.exit_code,
        start_time=_datetime(message.start_time) if message.HasField("start_time") else None,
        duration=message.duration.ToTimedelta(),
        client_ip=message.client_ip,
        authorized=message.authorized,
        policy_applied=message.policy_applied,
        reason=message.reason,
        actor=message.actor,
        rule=message.rule,
        request=AuditedRequest(**_set_fields(request)) if message.HasField("request") else None,
        command_hmac=message.command_hmac,
        evidence_sha256=message.evidence_sha256,
    )


def _given_time(message: Message, name: str) -> datetime | None:
    return _datetime(getattr(message, name)) if message.HasField(name) else None


def scheduled_run_to_pb(value: ScheduledRun) -> pb.ScheduledRun:
    return pb.ScheduledRun(
        **{
            **value.model_dump(by_alias=False),
            "due": timestamp_to_pb(value.due),
            "time": timestamp_to_pb(value.time),
            "outcome": pb.DueOutcome.Value(f"DUE_OUTCOME_{value.outcome}"),
            "state": None if value.state is None else _state(value.state),
            "first": timestamp_to_pb(value.first),
        }
    )


def scheduled_run_from_pb(message: pb.ScheduledRun) -> ScheduledRun:
    return ScheduledRun(
        due=_datetime(message.due),
        time=_datetime(message.time),
        outcome=DueOutcome(pb.DueOutcome.Name(message.outcome).removeprefix("DUE_OUTCOME_")),
        id=message.id,
        agent_id=message.agent_id,
        state=_exec_state(message.state) if message.state else None,
        reason=message.reason,
        count=message.count,
        first=_given_time(message, "first"),
        requested_by=message.requested_by,
    )


def schedule_to_pb(value: ScheduleStatus) -> pb.Schedule:
    return pb.Schedule(
        **{
            **value.model_dump(by_alias=False),
            "paused_at": timestamp_to_pb(value.paused_at),
            "next_due": timestamp_to_pb(value.next_due),
            "last": None if value.last is None else scheduled_run_to_pb(value.last),
        }
    )


def schedule_from_pb(message: pb.Schedule) -> ScheduleStatus:
    return ScheduleStatus(
        name=message.name,
        when=message.when,
        agent_id=message.agent_id,
        command=tuple(message.command),
        enabled=message.enabled,
        missed=Missed(message.missed),
        overlap=Overlap(message.overlap),
        paused=message.paused,
        paused_by=message.paused_by,
        paused_at=_given_time(message, "paused_at"),
        pause_reason=message.pause_reason,
        next_due=_given_time(message, "next_due"),
        last=scheduled_run_from_pb(message.last) if message.HasField("last") else None,
    )


# --- errors -----------------------------------------------------------------------------------------------------------


def error_to_details(error: TachikomaError) -> bytes:
    """A `google.rpc.Status` with `ErrorInfo`, and `RetryInfo` where a repetition may help."""
    # A header is limited in size; the message of an error is for people, who read no more than this.
    status = Status(code=grpc.StatusCode[error.code].value[0], message=str(error)[:2000])
    status.details.add().Pack(ErrorInfo(reason=error.reason, domain=ERROR_DOMAIN, metadata=error.metadata))
    if error.retry_after_seconds is not None:
        status.details.add().Pack(RetryInfo(retry_delay=_duration(timedelta(seconds=error.retry_after_seconds))))
    return bytes(status.SerializeToString())


_BY_CODE: dict[grpc.StatusCode, type[TachikomaError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequest,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
}


def _error_from_details(value: bytes) -> TachikomaError | None:
    status = Status.FromString(value)
    info, retry = ErrorInfo(), RetryInfo()
    retry_after = None
    for detail in status.details:
        if detail.Is(RetryInfo.DESCRIPTOR):
            detail.Unpack(retry)
            retry_after = retry.retry_delay.seconds + retry.retry_delay.nanos / 1e9
        elif detail.Is(ErrorInfo.DESCRIPTOR):
            detail.Unpack(info)
    if info.domain != ERROR_DOMAIN or info.reason not in by_reason:
        return None
    return by_reason[info.reason](status.message, metadata=dict(info.metadata), retry_after_seconds=retry_after)


def error_from_rpc(code: grpc.StatusCode, message: str, trailing: Iterable[tuple[str, str | bytes]]) -> TachikomaError:
    """The error a call ended with, as the class the server raised where it says which."""
    for key, value in trailing:
        if key == STATUS_DETAILS and isinstance(value, bytes):
            # Unreadable details leave what gRPC itself says.
            with suppress(DecodeError, ValueError, OverflowError):
                found = _error_from_details(value)
                if found is not None:
                    return found
    # Without our details the answer is gRPC's own.
    return _BY_CODE.get(code, ServerError)(f"{message or code.name} ({code.name})")
