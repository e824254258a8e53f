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
    #: Absolute path of the working directory; empty for the user's home.
    work_dir: str = ""
    #: Names of its environment variables.
    environment: tuple[str, ...] = ()
    #: Its timeout in seconds; None if the request has none.
    timeout: Annotated[float | None, Field(allow_inf_nan=False)] = None
    #: Name of the user on the agent; empty for the agent's default user.
    user: str = ""
    #: True if input can follow while the command runs.
    interactive: bool = False
    #: True if the command has a terminal.
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
            InvalidRequest: the event has no valid request, for instance because an older version had other bounds.
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
    #: Its number. Events are numbered without a gap. 0 for `trail_altered`, which has no number.
    seq: Annotated[int, Field(ge=0, le=MAX_NUMBER)] = 0
    #: Time of the event by the clock of Redis.
    time: Timestamp
    #: A stable code; `docs/audit.md` lists them.
    event: Annotated[str, Field(pattern=r"^[a-z_]{1,64}$")]
    #: Id of the execution; empty if the event concerns none, or the request had no valid id.
    id: str = ""
    #: Id of the agent; empty if the event concerns none.
    agent_id: str = ""
    #: SPIFFE ID of the requester; empty if there is none.
    requested_by: str = ""
    #: The argv with secrets masked, quoted for a shell.
    command: str = ""
    #: Exit code of the command; -1 if there is none.
    exit_code: Annotated[int, Field(ge=-(2**31), le=2**31 - 1)] = -1
    #: Time at which the command started; None if the event does not report it.
    start_time: Timestamp | None = None
    #: Run time of the command; zero if the event does not report it.
    duration: Annotated[Duration, Field(ge=timedelta(0), le=MAX_DURATION)] = timedelta(0)
    #: Address of the caller; empty if there is none.
    client_ip: str = ""
    #: True if policy allowed the request, even if a limit or another check then refused it.
    authorized: bool = False
    #: The policy that granted or denied the request, as name@digest; empty if none did.
    policy_applied: str = ""
    #: Explanation of the event, for people.
    reason: str = ""
    #: SPIFFE ID of the person or program that took this step, such as an approval or a cancel; empty for a step of
    #: the requester or of the system.
    actor: str = ""
    #: The field of the policy that decided, if the request was denied.
    rule: str = ""
    #: The request, in events that report a decision on it; else None.
    request: AuditedRequest | None = None
    #: HMAC-SHA-256 of the whole argv, in hexadecimal; empty if the orchestrator has no key for it. Equal commands have
    #: equal values, and no secret can be derived from a value.
    command_hmac: str = ""
    #: SHA-256 of the evidence for this event, in hexadecimal; empty if there is none. The evidence is the order for
    #: `dispatched`, the receipt for a final state, and the approved request for `approved`. For a batch it is the list
    #: of targets, or the receipt that decided. For a recording it is the recording.
    evidence_sha256: str = ""
    #: Id of the batch that the event is about, or that its execution is a part of; empty for none.
    batch: str = ""
