"""Audit codes and audit events."""

from __future__ import annotations

from datetime import timedelta
from enum import StrEnum
from typing import Annotated

from pydantic import Field

from tachikoma.errors import InvalidRequest
from tachikoma.vocabulary.model import Model
from tachikoma.vocabulary.requests import ExecRequest, make_request
from tachikoma.vocabulary.types import Duration, Timestamp

__all__ = ["MAX_DURATION", "MAX_NUMBER", "AuditCode", "AuditedRequest", "ExecAuditLog"]

#: Longest duration of a command that an event may report; longer than any command can run.
MAX_DURATION = timedelta(days=36_500)

#: Largest number in an event: the largest that a signed 64-bit integer holds.
MAX_NUMBER = 2**63 - 1


class AuditCode(StrEnum):
    """The code of an audit event. Codes are stable; the code of a final state is its name in small letters.

    `tachikoma.audit.codes` has one row for each: its meaning, severity, and its place in OCSF, syslog and Flower.
    """

    ADMITTED = "admitted"
    APPROVAL_REQUESTED = "approval_requested"
    APPROVED = "approved"
    APPROVAL_REFUSED = "approval_refused"
    DENIED = "denied"
    LIMITED = "limited"
    REFUSED = "refused"
    MALFORMED = "malformed"
    REFUSALS_COUNTED = "refusals_counted"
    DISPATCHED = "dispatched"
    STARTED = "started"
    CANCEL_REQUESTED = "cancel_requested"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    TIMED_OUT = "timed_out"
    CANCELLED = "cancelled"
    OUT_OF_MEMORY = "out_of_memory"
    EXPIRED = "expired"
    REJECTED = "rejected"
    LOST = "lost"
    LATE_RECEIPT = "late_receipt"
    OUTPUT_ALTERED = "output_altered"
    RECEIPT_REFUSED = "receipt_refused"
    RECORD_ALTERED = "record_altered"
    TRAIL_ALTERED = "trail_altered"
    IDENTITY_REJECTED = "identity_rejected"
    POLICY_CHANGED = "policy_changed"
    POLICY_KEPT = "policy_kept"
    AGENT_JOINED = "agent_joined"
    AGENT_LEFT = "agent_left"
    AGENT_CONTESTED = "agent_contested"
    AGENT_DRAINED = "agent_drained"
    AGENT_RESUMED = "agent_resumed"
    AGENT_LABELLED = "agent_labelled"
    SCHEDULE_MISSED = "schedule_missed"
    SCHEDULE_SKIPPED = "schedule_skipped"
    SCHEDULE_PAUSED = "schedule_paused"
    SCHEDULE_RESUMED = "schedule_resumed"
    SCHEDULE_RUN = "schedule_run"
    BATCH_SUBMITTED = "batch_submitted"
    BATCH_APPROVED = "batch_approved"
    BATCH_REJECTED = "batch_rejected"
    BATCH_WAVE = "batch_wave"
    BATCH_STOPPED = "batch_stopped"
    BATCH_CANCELLED = "batch_cancelled"
    BATCH_EXPIRED = "batch_expired"
    BATCH_ENDED = "batch_ended"
    AGENT_ENROLLED = "agent_enrolled"
    JOIN_ACCEPTED = "join_accepted"
    JOIN_REFUSED = "join_refused"
    AGENT_REVOKED = "agent_revoked"
    USER_ENROLLED = "user_enrolled"
    USER_JOINED = "user_joined"
    USER_REVOKED = "user_revoked"
    NOTICE_REFUSED = "notice_refused"
    REDIS_LIFE = "redis_life"
    RECORD_RESTORED = "record_restored"
    SESSION_OPENED = "session_opened"
    SESSION_ATTACHED = "session_attached"
    SESSION_DETACHED = "session_detached"
    SESSION_RESIZED = "session_resized"
    SESSION_SIGNALLED = "session_signalled"
    SESSION_CLOSED = "session_closed"
    SESSION_OBSERVED = "session_observed"
    SESSION_UNOBSERVED = "session_unobserved"
    RECORDING_FINISHED = "recording_finished"
    RECORDING_FAILED = "recording_failed"
    RECORDING_PLAYED = "recording_played"
    RECORDING_DELETED = "recording_deleted"


class AuditedRequest(Model):
    """The part of a request that an event retains: enough to decide on it again, and nothing secret."""

    #: The argv with secrets masked.
    command: Annotated[tuple[str, ...], Field(min_length=1)]
    work_dir: str = ""
    #: Names of its environment variables.
    environment: tuple[str, ...] = ()
    #: In seconds; None if the request has no timeout.
    timeout: Annotated[float | None, Field(allow_inf_nan=False)] = None
    user: str = ""
    interactive: bool = False
    tty: bool = False
    #: Size of its standard input in bytes.
    stdin_bytes: Annotated[int, Field(ge=0, le=MAX_NUMBER)] = 0

    def as_request(self, agent_id: str, **more: str) -> ExecRequest:
        """Return the request as far as it is retained, for a new decision of policy.

        Secrets in its command stay masked, its variables are empty, and it has no standard input.

        Args:
            agent_id: the agent.
            more: further fields of the request, such as its id.

        Raises:
            InvalidRequest: it is no request, for instance since an older version had other bounds.
        """
        try:
            timeout = None if self.timeout is None else timedelta(seconds=self.timeout)
        except OverflowError as error:
            raise InvalidRequest(f"invalid request: timeout: {error}") from None
        return make_request(
            {
                "agent_id": agent_id, "command": self.command, "work_dir": self.work_dir, "user": self.user,
                "environment": dict.fromkeys(self.environment, ""), "timeout": timeout,
                "interactive": self.interactive, "tty": self.tty, **more,
            }
        )  # fmt: skip


class ExecAuditLog(Model):
    """One event of the audit trail (Spec 534, ExecAuditLog, plus place, time and code)."""

    #: Its place in the Redis stream.
    cursor: str
    #: Its number; events are numbered without a gap. Only `trail_altered` has none, which is 0.
    seq: Annotated[int, Field(ge=0, le=MAX_NUMBER)] = 0
    #: Time of the event by the clock of Redis.
    time: Timestamp
    #: A stable code; `docs/audit.md` lists them.
    event: Annotated[str, Field(pattern=r"^[a-z_]{1,64}$")]
    #: Id of the execution; empty if the event concerns none, or the request had no valid id.
    id: str = ""
    agent_id: str = ""
    requested_by: str = ""
    #: The redacted argv, quoted for a shell.
    command: str = ""
    #: -1 if there is none.
    exit_code: Annotated[int, Field(ge=-(2**31), le=2**31 - 1)] = -1
    #: Time at which the command started; None if the event does not report it.
    start_time: Timestamp | None = None
    duration: Annotated[Duration, Field(ge=timedelta(0), le=MAX_DURATION)] = timedelta(0)
    client_ip: str = ""
    #: True if policy allowed the request, also if it was then limited or refused for another reason.
    authorized: bool = False
    policy_applied: str = ""
    reason: str = ""
    #: SPIFFE ID of the user who took this step, if not the requester: approved, rejected or cancelled.
    actor: str = ""
    #: The field of the policy that decided, if the request was denied.
    rule: str = ""
    #: The request, in events that report a decision on it; else None.
    request: AuditedRequest | None = None
    #: HMAC-SHA-256 of the whole argv, in hexadecimal; empty if the orchestrator has no key for it. Equal commands have
    #: equal values, and no secret can be derived from a value.
    command_hmac: str = ""
    #: SHA-256 of the evidence for this event: the order of `dispatched`, the receipt of a final state, the approved
    #: request of `approved`; the receipt at which a batch stopped, and the list of targets of a batch; the recording
    #: that was finished, played or deleted.
    evidence_sha256: str = ""
    #: Id of the batch that the event is about, or that its execution is a part of; empty for none.
    batch: str = ""
