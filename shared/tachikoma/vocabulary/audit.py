"""Audit codes and audit events."""

from __future__ import annotations

from datetime import timedelta
from enum import StrEnum
from typing import Annotated

from pydantic import Field

from tachikoma.vocabulary.model import Model
from tachikoma.vocabulary.types import Duration, Timestamp

__all__ = ["MAX_DURATION", "MAX_NUMBER", "AuditCode", "AuditedRequest", "ExecAuditLog"]

#: Longest time that an event may say a command took; longer than any can.
MAX_DURATION = timedelta(days=36_500)

#: Largest number in an event: what fits everywhere.
MAX_NUMBER = 2**63 - 1


class AuditCode(StrEnum):
    """What an event of the audit trail is about. Codes are stable; an end's code is its state in small letters."""

    #: Allowed by policy and accepted. On the record before the command can start.
    ADMITTED = "admitted"
    #: Allowed by policy if somebody approves it.
    APPROVAL_REQUESTED = "approval_requested"
    #: Approved, and by whom.
    APPROVED = "approved"
    #: Somebody tried to approve or reject who may not.
    APPROVAL_REFUSED = "approval_refused"
    #: Refused by policy.
    DENIED = "denied"
    #: Refused for a rate limit or a full queue.
    LIMITED = "limited"
    #: Refused otherwise: unknown agent, agent offline, id used for another request.
    REFUSED = "refused"
    #: Refused because it is no valid request.
    MALFORMED = "malformed"
    #: Its order is on the agent's queue.
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
    #: A receipt came for what had been given up; the end stands.
    LATE_RECEIPT = "late_receipt"
    #: What was read of an output is not what its agent signed for.
    OUTPUT_ALTERED = "output_altered"
    #: A receipt came that must not be believed; the execution goes on as if it had not.
    RECEIPT_REFUSED = "receipt_refused"
    #: What the ledger says of an execution is not what was signed.
    RECORD_ALTERED = "record_altered"
    #: What stands at this place of the trail is no event that can be read. The one without a number: readers put it
    #: there, so that it is seen.
    TRAIL_ALTERED = "trail_altered"
    #: A certificate was not accepted.
    IDENTITY_REJECTED = "identity_rejected"
    #: A policy set is in force now.
    POLICY_CHANGED = "policy_changed"
    #: The policy file was changed and is wrong; the old set stays in force.
    POLICY_KEPT = "policy_kept"
    AGENT_JOINED = "agent_joined"
    AGENT_LEFT = "agent_left"
    #: An agent takes no new executions; it does again.
    AGENT_DRAINED = "agent_drained"
    AGENT_RESUMED = "agent_resumed"
    #: Nobody asked for a scheduled run in time.
    SCHEDULE_MISSED = "schedule_missed"
    #: A scheduled run was not to be: paused, switched off, or the one before had not ended.
    SCHEDULE_SKIPPED = "schedule_skipped"
    #: An operator paused a schedule, let it go on, or asked for a run beside its due times.
    SCHEDULE_PAUSED = "schedule_paused"
    SCHEDULE_RESUMED = "schedule_resumed"
    SCHEDULE_RUN = "schedule_run"
    #: A host may join as an agent, with a token; one did; somebody tried who may not.
    AGENT_ENROLLED = "agent_enrolled"
    JOIN_ACCEPTED = "join_accepted"
    JOIN_REFUSED = "join_refused"
    #: An agent was cut off.
    AGENT_REVOKED = "agent_revoked"
    #: An agent that is cut off said something of itself; nothing rests on it.
    NOTICE_REFUSED = "notice_refused"


class AuditedRequest(Model):
    """What an event keeps of a request: enough to decide on it again, and nothing secret."""

    #: The argv with secrets taken out.
    command: Annotated[tuple[str, ...], Field(min_length=1)]
    work_dir: str = ""
    #: Names of its variables.
    environment: tuple[str, ...] = ()
    #: Seconds; None where the request named none.
    timeout: Annotated[float | None, Field(allow_inf_nan=False)] = None
    user: str = ""
    interactive: bool = False
    tty: bool = False
    #: Bytes of its standard input.
    stdin_bytes: Annotated[int, Field(ge=0, le=MAX_NUMBER)] = 0


class ExecAuditLog(Model):
    """One event of the audit trail (Spec 534, ExecAuditLog, plus place, time and code)."""

    #: Its place in the trail of Redis.
    cursor: str
    #: Its number; events follow each other without a hole. Only `trail_altered` has none, which is 0.
    seq: Annotated[int, Field(ge=0, le=MAX_NUMBER)] = 0
    #: By the clock of Redis.
    time: Timestamp
    #: What happened, a stable code; `docs/audit.md` lists them.
    event: Annotated[str, Field(pattern=r"^[a-z_]{1,64}$")]
    #: The execution; empty where a request had no valid id.
    id: str = ""
    agent_id: str = ""
    requested_by: str = ""
    #: Sanitized and quoted.
    command: str = ""
    exit_code: Annotated[int, Field(ge=-(2**31), le=2**31 - 1)] = -1
    start_time: Timestamp | None = None
    duration: Annotated[Duration, Field(ge=timedelta(0), le=MAX_DURATION)] = timedelta(0)
    client_ip: str = ""
    authorized: bool = False
    policy_applied: str = ""
    reason: str = ""
    #: SPIFFE ID of who did this step where it is not the requester: approved, rejected, cancelled.
    actor: str = ""
    #: The field of the policy that decided, where a request was denied.
    rule: str = ""
    #: With a decision: what was asked for.
    request: AuditedRequest | None = None
    #: HMAC-SHA-256 of the whole argv, in hexadecimal, where the orchestrator has a key for it: the same command has the
    #: same one, and its secrets cannot be told from it.
    command_hmac: str = ""
    #: SHA-256 of what this event rests on: the order with `dispatched`, the receipt with an end, what was approved.
    evidence_sha256: str = ""
