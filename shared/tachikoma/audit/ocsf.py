"""Events of the audit trail in the Open Cybersecurity Schema Framework, version 1.3.0 (https://schema.ocsf.io/1.3.0).

What happens to a command is a Process Activity (class 1007): its start a Launch, its end a Terminate, everything else
Other with the event's code. Events about nothing that would run are Base Events (class 0).
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from tachikoma.vocabulary.audit import AuditCode, ExecAuditLog
from tachikoma.vocabulary.states import ExecState

__all__ = ["to_ocsf"]

OCSF_VERSION = "1.3.0"
PROCESS_ACTIVITY, SYSTEM_ACTIVITY = 1007, 1
LAUNCH, TERMINATE, OTHER = 1, 2, 99
INFORMATIONAL, MEDIUM, HIGH = 1, 3, 4
SUCCESS, FAILURE = 1, 2
ALLOWED, BLOCKED = 1, 2
#: OCSF device types: a server.
SERVER = 1

_NO_PROCESS = {
    AuditCode.IDENTITY_REJECTED,
    AuditCode.POLICY_CHANGED,
    AuditCode.POLICY_KEPT,
    AuditCode.AGENT_JOINED,
    AuditCode.AGENT_LEFT,
    AuditCode.TRAIL_ALTERED,
}
_REFUSALS = {
    AuditCode.DENIED,
    AuditCode.LIMITED,
    AuditCode.REFUSED,
    AuditCode.MALFORMED,
    AuditCode.APPROVAL_REFUSED,
    AuditCode.IDENTITY_REJECTED,
}
_ENDS = {state.lower() for state in ExecState if state.terminal}
_ALARMS = {
    AuditCode.IDENTITY_REJECTED, AuditCode.APPROVAL_REFUSED, AuditCode.LATE_RECEIPT,
    AuditCode.RECEIPT_REFUSED, AuditCode.RECORD_ALTERED, AuditCode.TRAIL_ALTERED,
}  # fmt: skip


def _milliseconds(event: ExecAuditLog) -> int:
    return round(event.time.timestamp() * 1000)


def to_ocsf(event: ExecAuditLog) -> dict[str, Any]:
    """An event as an OCSF object, ready for JSON."""
    process = event.event not in _NO_PROCESS
    activity = LAUNCH if event.event == AuditCode.STARTED else TERMINATE if event.event in _ENDS else OTHER
    if not process:
        activity = OTHER
    refused = event.event in _REFUSALS
    failed = refused or (event.event in _ENDS and event.event != AuditCode.SUCCEEDED)
    class_uid = PROCESS_ACTIVITY if process else 0
    content: dict[str, Any] = {
        "class_uid": class_uid,
        "category_uid": SYSTEM_ACTIVITY if process else 0,
        "activity_id": activity,
        "activity_name": {LAUNCH: "Launch", TERMINATE: "Terminate"}.get(activity, event.event),
        "type_uid": class_uid * 100 + activity,
        "time": _milliseconds(event),
        "severity_id": HIGH if event.event in _ALARMS else MEDIUM if refused else INFORMATIONAL,
        "status_id": FAILURE if failed else SUCCESS,
        "status_code": event.event,
        "message": event.reason or event.event,
        "metadata": {
            "version": OCSF_VERSION,
            "uid": str(event.seq),
            "event_code": event.event,
            "original_time": event.time.isoformat(),
            "log_name": "tachikoma",
            "profiles": ["security_control", "host"],
            "product": {"name": "Tachikoma", "vendor_name": "Tachikoma", "version": version("tachikoma-exec")},
        },
        "action_id": BLOCKED if refused else ALLOWED,
        "disposition_id": BLOCKED if refused else ALLOWED,
        "device": {"hostname": event.agent_id, "uid": event.agent_id, "type_id": SERVER},
        "actor": {"user": {"uid": event.actor or event.requested_by, "name": event.actor or event.requested_by}},
        "unmapped": {"requested_by": event.requested_by},
    }
    if process:
        content["process"] = {"uid": event.id, "cmd_line": event.command}
        if event.request is not None:
            content["process"]["name"] = event.request.command[0].rpartition("/")[2]
            if event.request.user:
                content["process"]["user"] = {"name": event.request.user}
            if event.request.work_dir:
                content["process"]["working_directory"] = event.request.work_dir
        if activity == TERMINATE and event.exit_code >= 0:
            content["exit_code"] = event.exit_code
        if event.duration:
            content["duration"] = round(event.duration.total_seconds() * 1000)
    if event.client_ip:
        content["unmapped"]["client_ip"] = event.client_ip
    for name, value in (("command_hmac", event.command_hmac), ("evidence_sha256", event.evidence_sha256)):
        if value:
            content["unmapped"][name] = value
    if event.policy_applied:
        name, _, digest = event.policy_applied.partition("@")
        content["policy"] = {"name": name, "uid": event.policy_applied, "version": digest}
        if event.rule:
            content["policy"]["desc"] = event.rule
    return content
