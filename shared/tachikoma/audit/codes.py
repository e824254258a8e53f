"""The table of audit codes: the one source for OCSF export, syslog severity, Flower's steps and `docs/audit.md`.

OCSF numbers are of version 1.3.0 (https://schema.ocsf.io/1.3.0), syslog severities of RFC 5424, table 2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, IntEnum

from tachikoma.vocabulary.audit import AuditCode

__all__ = [
    "AUDIT_CODES",
    "UNKNOWN_CODE",
    "Activity",
    "AuditCodeRow",
    "FlowerStep",
    "OcsfClass",
    "Outcome",
    "Severity",
    "code_row",
    "markdown_table",
]


class OcsfClass(IntEnum):
    """The OCSF event class of a code."""

    #: An event that concerns no command.
    BASE_EVENT = 0
    #: An event in the life of a command.
    PROCESS_ACTIVITY = 1007


class Activity(IntEnum):
    """The OCSF activity of a code."""

    LAUNCH = 1
    TERMINATE = 2
    #: Any other activity; the audit code is its name.
    OTHER = 99


class Outcome(Enum):
    """The decision that an event reports: OCSF `status_id`, `action_id` and `disposition_id`."""

    #: Success, Allowed, Allowed.
    DONE = (1, 1, 1)
    #: Allowed, but without success: Failure, Allowed, Allowed.
    FAILED = (2, 1, 1)
    #: Nothing was started: Failure, Allowed, No Action.
    OMITTED = (2, 1, 16)
    #: Refused: Failure, Denied, Blocked.
    REFUSED = (2, 2, 2)
    #: Data that cannot be trusted was found: Failure, Unknown, Detected.
    DETECTED = (2, 0, 15)
    #: A code that is not in the table: Unknown, Unknown, Unknown.
    UNKNOWN = (0, 0, 0)

    def __init__(self, status_id: int, action_id: int, disposition_id: int) -> None:
        self.status_id = status_id
        self.action_id = action_id
        self.disposition_id = disposition_id


class Severity(Enum):
    """The severity of a code: OCSF `severity_id` and syslog severity."""

    #: Informational; syslog informational.
    INFORMATIONAL = (1, 6)
    #: Low; syslog notice.
    LOW = (2, 5)
    #: Medium; syslog warning.
    MEDIUM = (3, 4)
    #: High: a sign of an attack; syslog warning.
    HIGH = (4, 4)

    def __init__(self, ocsf: int, syslog: int) -> None:
        self.ocsf = ocsf
        self.syslog = syslog


class FlowerStep(Enum):
    """The part of Flower's view that an event changes."""

    SENT = "sent"
    RECEIVED = "received"
    STARTED = "started"
    ENDED = "ended"
    #: The list of workers, not a task.
    WORKERS = "workers"


@dataclass(frozen=True, slots=True)
class AuditCodeRow:
    """The meaning of one audit code, for people and for other systems."""

    #: The documentation sentence: what an event of this code reports.
    meaning: str
    #: The fields that such an event has besides the execution, agent and requester; empty for none.
    fields: str = ""
    ocsf_class: OcsfClass = OcsfClass.PROCESS_ACTIVITY
    activity: Activity = Activity.OTHER
    outcome: Outcome = Outcome.DONE
    severity: Severity = Severity.INFORMATIONAL
    #: None if Flower does not show such an event.
    flower: FlowerStep | None = None


def _base(meaning: str, fields: str = "", *, outcome: Outcome = Outcome.DONE,
          severity: Severity = Severity.INFORMATIONAL, flower: FlowerStep | None = None) -> AuditCodeRow:  # fmt: skip
    """Return the row of a code that concerns no command."""
    return AuditCodeRow(meaning, fields, OcsfClass.BASE_EVENT, Activity.OTHER, outcome, severity, flower)


def _refusal(meaning: str, fields: str, severity: Severity = Severity.MEDIUM) -> AuditCodeRow:
    """Return the row of a request that was refused."""
    return AuditCodeRow(meaning, fields, outcome=Outcome.REFUSED, severity=severity)


def _final(meaning: str, fields: str, outcome: Outcome, severity: Severity) -> AuditCodeRow:
    """Return the row of a final state."""
    return AuditCodeRow(
        meaning, fields, activity=Activity.TERMINATE, outcome=outcome, severity=severity, flower=FlowerStep.ENDED
    )


def _alarm(meaning: str, fields: str, outcome: Outcome = Outcome.DETECTED) -> AuditCodeRow:
    """Return the row of data about a command that cannot be trusted."""
    return AuditCodeRow(meaning, fields, outcome=outcome, severity=Severity.HIGH)


_RECEIPT = "exit code, duration, digest of the receipt"

#: The row of every code, in the order of the documentation.
AUDIT_CODES: Mapping[AuditCode, AuditCodeRow] = {
    AuditCode.ADMITTED: AuditCodeRow(
        "Policy allows the request and it was accepted. Recorded before its order is on a queue.", "policy, request"
    ),
    AuditCode.APPROVAL_REQUESTED: AuditCodeRow(
        "Policy allows the request once it is approved.", "policy, request", flower=FlowerStep.SENT
    ),
    AuditCode.APPROVED: AuditCodeRow("The request was approved.", "actor, reason, digest of the approved request"),
    AuditCode.APPROVAL_REFUSED: _refusal(
        "A user without the right to do so tried to approve or reject the request.", "actor, reason", Severity.HIGH
    ),
    AuditCode.DENIED: _refusal("Policy does not allow the request.", "policy, rule, reason, request"),
    AuditCode.LIMITED: _refusal(
        "A rate limit was reached or a queue is full: `RATE`, `CONCURRENT`, `WAITING`, `FULL`, `APPROVALS`.",
        "reason, request",
    ),
    AuditCode.REFUSED: _refusal(
        "The agent is unknown, offline, draining or revoked, its clock or version does not fit, "
        "or the id belongs to another request: "
        "`UNKNOWN`, `OFFLINE`, `DRAINING`, `REVOKED`, `UNFIT` with the reason, `CONFLICT`.",
        "reason, request",
    ),
    AuditCode.MALFORMED: _refusal("The request is not valid.", "reason"),
    AuditCode.REFUSALS_COUNTED: _base(
        "Refusals of one identity or address that have no event of their own, by their codes; once in 10 minutes.",
        "reason, requester or address", outcome=Outcome.REFUSED, severity=Severity.MEDIUM,
    ),
    AuditCode.DISPATCHED: AuditCodeRow(
        "The order is on the agent's queue.", "digest of the order", flower=FlowerStep.RECEIVED
    ),
    AuditCode.STARTED: AuditCodeRow(
        "The command runs.", activity=Activity.LAUNCH, flower=FlowerStep.STARTED
    ),
    AuditCode.CANCEL_REQUESTED: AuditCodeRow("A user asked to cancel an execution that may be running.", "actor"),
    AuditCode.SUCCEEDED: _final("The command exited with 0.", _RECEIPT, Outcome.DONE, Severity.INFORMATIONAL),
    AuditCode.FAILED: _final(
        "The command exited with another code, was ended by a signal, or could not be started.",
        _RECEIPT, Outcome.FAILED, Severity.INFORMATIONAL,
    ),
    AuditCode.TIMED_OUT: _final("The command was killed after its timeout.", _RECEIPT, Outcome.FAILED, Severity.LOW),
    AuditCode.OUT_OF_MEMORY: _final(
        "The command was killed at its memory limit.", _RECEIPT, Outcome.FAILED, Severity.LOW
    ),
    AuditCode.CANCELLED: _final(
        "The execution was cancelled: killed with a receipt, or never started.",
        "actor, or digest of the receipt", Outcome.FAILED, Severity.INFORMATIONAL,
    ),
    AuditCode.REJECTED: _final(
        "The agent or an approver refused the execution.", "reason, actor", Outcome.REFUSED, Severity.MEDIUM
    ),
    AuditCode.EXPIRED: _final(
        "The execution waited longer than its queue timeout and can never start.",
        "reason", Outcome.OMITTED, Severity.LOW,
    ),
    AuditCode.LOST: _final(
        "The result of the execution is unknown and stays so.",
        "reason; actor if the agent was revoked", Outcome.FAILED, Severity.MEDIUM,
    ),
    AuditCode.LATE_RECEIPT: _alarm(
        "A receipt arrived after the execution had reached a final state without it; the final state stays.",
        "digest of the receipt",
    ),
    AuditCode.OUTPUT_ALTERED: _alarm(
        "Output that was read is not the output its agent signed for; the final state stays.", "actor, reason"
    ),
    AuditCode.RECEIPT_REFUSED: _alarm(
        "A receipt was refused: not signed by its agent, for another execution or order, or with other output.",
        "reason", Outcome.REFUSED,
    ),
    AuditCode.RECORD_ALTERED: _alarm(
        "The ledger's record of an execution, its result or its request differs from what was signed.", "reason"
    ),
    AuditCode.TRAIL_ALTERED: _base(
        "The trail in Redis contains an entry that is not an event. It has no number (`seq` 0); "
        "a number that it may have had is missing.",
        "reason", outcome=Outcome.DETECTED, severity=Severity.HIGH,
    ),
    AuditCode.IDENTITY_REJECTED: _base(
        "A certificate was not accepted.", "reason, address", outcome=Outcome.REFUSED, severity=Severity.HIGH
    ),
    AuditCode.POLICY_CHANGED: _base("A policy set became active.", "digest"),
    AuditCode.POLICY_KEPT: _base(
        "A changed policy file has a mistake; the previous set stays active.",
        "digest, reason", outcome=Outcome.REFUSED, severity=Severity.MEDIUM,
    ),
    AuditCode.AGENT_JOINED: _base("An agent came online.", "reason", flower=FlowerStep.WORKERS),
    AuditCode.AGENT_LEFT: _base(
        "An agent went offline.",
        "reason", outcome=Outcome.FAILED, severity=Severity.MEDIUM, flower=FlowerStep.WORKERS,
    ),
    AuditCode.AGENT_CONTESTED: _base(
        "A second worker with the identity of an agent waits: another worker holds the agent's lease. "
        "Each orchestrator records each such worker once.",
        "reason", outcome=Outcome.REFUSED, severity=Severity.HIGH,
    ),
    AuditCode.AGENT_DRAINED: _base("An operator stopped new executions on an agent.", "actor, reason"),
    AuditCode.AGENT_RESUMED: _base("An operator allowed new executions on an agent again.", "actor, reason"),
    AuditCode.AGENT_LABELLED: _base("An operator changed the labels of an agent.", "actor, reason: the change"),
    AuditCode.AGENT_ENROLLED: _base("An operator created a token with which a host may join as the agent.", "actor"),
    AuditCode.JOIN_ACCEPTED: _base(
        "A host joined with a token.",
        "actor (the token's creator), address, serial number and SHA-256 of the certificate",
    ),
    AuditCode.JOIN_REFUSED: _base(
        "A host was not allowed to join. Each orchestrator records at most 60 a minute; "
        "the next event counts those left out.",
        "address, reason", outcome=Outcome.REFUSED, severity=Severity.MEDIUM,
    ),
    AuditCode.AGENT_REVOKED: _base(
        "An operator revoked an agent. Each execution that this ends has an event of its own.",
        "actor, reason", severity=Severity.LOW, flower=FlowerStep.WORKERS,
    ),
    AuditCode.USER_ENROLLED: _base("An operator created a token with which a person may log in.", "actor, requester"),
    AuditCode.USER_JOINED: _base(
        "A person logged in with a token.",
        "actor (the token's creator), requester, address, serial number and SHA-256 of the certificate",
    ),
    AuditCode.USER_REVOKED: _base(
        "An operator revoked a person, whose certificates are refused from then on.",
        "actor, requester, reason", severity=Severity.LOW,
    ),
    AuditCode.NOTICE_REFUSED: _base(
        "A notice from a revoked agent was refused; recorded once for each revocation.",
        "reason", outcome=Outcome.REFUSED, severity=Severity.MEDIUM,
    ),
    AuditCode.SESSION_OPENED: AuditCodeRow(
        "The requester of an interactive execution attached to it.", "actor, reason: address"
    ),
    AuditCode.SESSION_ATTACHED: AuditCodeRow(
        "A caller attached to an interactive execution again; a caller that was attached lost its place.",
        "actor, reason: address",
    ),
    AuditCode.SESSION_DETACHED: AuditCodeRow(
        "A caller left an interactive execution, lost the connection, or lost the right to be attached.",
        "actor, reason: address and why",
    ),
    AuditCode.SESSION_RESIZED: AuditCodeRow(
        "A caller changed the size of the terminal; at most 20 events for each attachment.", "actor, reason"
    ),
    AuditCode.SESSION_SIGNALLED: AuditCodeRow(
        "A caller sent a signal to the foreground processes; at most 20 events for each attachment.", "actor, reason"
    ),
    AuditCode.SESSION_CLOSED: AuditCodeRow("A caller asked to end an interactive execution.", "actor, reason"),
    AuditCode.SESSION_OBSERVED: AuditCodeRow(
        "An observer began to read the output of an interactive execution.", "actor, reason: address"
    ),
    AuditCode.SESSION_UNOBSERVED: AuditCodeRow(
        "An observer left an interactive execution, lost the connection, or lost the right to observe.",
        "actor, reason: address and why",
    ),
    AuditCode.RECORDING_FINISHED: AuditCodeRow(
        "The recording of an interactive execution was finished and signed.", "reason: its size; evidence_sha256"
    ),
    AuditCode.RECORDING_FAILED: AuditCodeRow(
        "An interactive execution could not be recorded. Where policy requires the recording, the execution is ended.",
        "reason", outcome=Outcome.FAILED, severity=Severity.HIGH,
    ),
    AuditCode.RECORDING_PLAYED: AuditCodeRow(
        "A caller read a recording, to play or export it.", "actor, reason: address; evidence_sha256"
    ),
    AuditCode.RECORDING_DELETED: AuditCodeRow(
        "A recording was deleted at the end of its retention.", "reason; evidence_sha256"
    ),
    AuditCode.SCHEDULE_MISSED: _base(
        "A scheduled run did not happen: no submitter was running at the scheduled time.",
        "reason", outcome=Outcome.OMITTED, severity=Severity.MEDIUM,
    ),
    AuditCode.SCHEDULE_SKIPPED: _base(
        "A scheduled run was skipped: the previous run had not ended, or the schedule was changed or removed.",
        "reason", outcome=Outcome.OMITTED, severity=Severity.LOW,
    ),
    AuditCode.SCHEDULE_PAUSED: _base("An operator paused a schedule.", "actor, reason"),
    AuditCode.SCHEDULE_RESUMED: _base("An operator resumed a schedule.", "actor"),
    AuditCode.REDIS_LIFE: _base(
        "Redis was restarted, restored, or replaced by a replica: a new life of it began. The reason has its number "
        "and says whether it lost data. Then the trail continues after the last number that was seen.",
        "reason", severity=Severity.LOW,
    ),
    AuditCode.RECORD_RESTORED: AuditCodeRow(
        "Redis lost the record of an execution. It was rebuilt from the signed order that its agent retained, or from "
        "what an orchestrator remembered.",
        "reason, digest of the order", severity=Severity.LOW,
    ),
    AuditCode.BATCH_SUBMITTED: _base(
        "A batch was accepted; its list of targets is frozen.", "batch, reason, digest of request and targets"
    ),
    AuditCode.BATCH_APPROVED: _base(
        "A batch was approved; the approval is valid for its frozen list and for what each target would run.",
        "batch, actor, reason, digest of what was approved",
    ),
    AuditCode.BATCH_REJECTED: _base(
        "An approver rejected a batch; none of it ran.",
        "batch, actor, reason", outcome=Outcome.REFUSED, severity=Severity.MEDIUM,
    ),
    AuditCode.BATCH_WAVE: _base(
        "A batch may start its next targets.",
        "batch, reason, digest over the receipts of the last wave and of the health gate",
    ),
    AuditCode.BATCH_STOPPED: _base(
        "A batch starts no more targets: its stop rule was reached, or its canary or a health gate failed.",
        "batch, reason, digest of the last receipt, or over those of the canary, or of the last wave and the gate",
        outcome=Outcome.FAILED, severity=Severity.LOW,
    ),
    AuditCode.BATCH_CANCELLED: _base("A user cancelled a batch; it starts no more targets.", "batch, actor"),
    AuditCode.BATCH_EXPIRED: _base(
        "The deadline of a batch passed; it starts no more targets.",
        "batch, reason", outcome=Outcome.OMITTED, severity=Severity.LOW,
    ),
    AuditCode.BATCH_ENDED: _base("Nothing of a batch runs any more.", "batch, reason: its state"),
    AuditCode.SCHEDULE_RUN: _base("An operator requested a run of a schedule outside its scheduled times.", "actor"),
}  # fmt: skip

#: The row of a code that is not in the table: one of a newer version, or written by an attacker who owns Redis.
UNKNOWN_CODE = _base("An unknown event.", outcome=Outcome.UNKNOWN, severity=Severity.MEDIUM)


def code_row(code: str) -> AuditCodeRow:
    """Return the row of a code; `UNKNOWN_CODE` if the table does not contain it."""
    try:
        return AUDIT_CODES[AuditCode(code)]
    except ValueError:
        return UNKNOWN_CODE


def markdown_table() -> str:
    """Return the table of `docs/audit.md`, with a line break at its end."""
    lines = ["| code | reports | fields | severity |", "|---|---|---|---|"]
    lines += [
        f"| `{code}` | {row.meaning} | {row.fields} | {row.severity.name.lower()} |"
        for code, row in AUDIT_CODES.items()
    ]
    return "\n".join(lines) + "\n"
