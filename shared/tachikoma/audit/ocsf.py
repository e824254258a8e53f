"""Audit events in the Open Cybersecurity Schema Framework, version 1.3.0 (https://schema.ocsf.io/1.3.0).

The life of a command is Process Activity (class 1007): its start a Launch, its final state a Terminate, every other
event Other with the audit code as its name. Events that concern no command are Base Events (class 0). Class, activity,
status and severity of each code are in `tachikoma.audit.codes`.
"""

from __future__ import annotations

from importlib.metadata import version

from tachikoma.audit.codes import Activity, AuditCodeRow, OcsfClass, code_row
from tachikoma.vocabulary.audit import ExecAuditLog
from tachikoma.vocabulary.clock import duration_ms, to_ms

__all__ = ["OCSF_VERSION", "to_ocsf"]

OCSF_VERSION = "1.3.0"
#: OCSF category of Process Activity.
SYSTEM_ACTIVITY = 1
#: OCSF device type: a server.
SERVER = 1


def to_ocsf(event: ExecAuditLog) -> dict[str, object]:
    """Convert an event to an OCSF object, ready for JSON."""
    row = code_row(event.event)
    content = {
        **_classification(event, row),
        "time": to_ms(event.time),
        "message": event.reason or event.event,
        "metadata": _metadata(event),
        "device": {"hostname": event.agent_id, "uid": event.agent_id, "type_id": SERVER},
        "actor": {"user": {"uid": event.actor or event.requested_by, "name": event.actor or event.requested_by}},
        "unmapped": _unmapped(event),
    }
    if row.ocsf_class is OcsfClass.PROCESS_ACTIVITY:
        content["process"] = _process(event)
        if row.activity is Activity.TERMINATE and event.exit_code >= 0:
            content["exit_code"] = event.exit_code
        if event.duration:
            content["duration"] = duration_ms(event.duration)
    if event.policy_applied:
        content["policy"] = _policy(event)
    return content


def _classification(event: ExecAuditLog, row: AuditCodeRow) -> dict[str, object]:
    """Return the attributes that follow from the event's code alone."""
    process = row.ocsf_class is OcsfClass.PROCESS_ACTIVITY
    return {
        "class_uid": int(row.ocsf_class),
        "category_uid": SYSTEM_ACTIVITY if process else 0,
        "activity_id": int(row.activity),
        "activity_name": event.event if row.activity is Activity.OTHER else row.activity.name.title(),
        "type_uid": row.ocsf_class * 100 + row.activity,
        "severity_id": row.severity.ocsf,
        "status_id": row.outcome.status_id,
        "status_code": event.event,
        "action_id": row.outcome.action_id,
        "disposition_id": row.outcome.disposition_id,
    }


def _metadata(event: ExecAuditLog) -> dict[str, object]:
    return {
        "version": OCSF_VERSION,
        "uid": str(event.seq),
        "event_code": event.event,
        "original_time": event.time.isoformat(),
        "log_name": "tachikoma",
        "profiles": ["security_control", "host"],
        "product": {"name": "Tachikoma", "vendor_name": "Tachikoma", "version": version("tachikoma-exec")},
    }


def _process(event: ExecAuditLog) -> dict[str, object]:
    process: dict[str, object] = {"uid": event.id, "cmd_line": event.command}
    if event.start_time is not None:
        process["created_time"] = to_ms(event.start_time)
    if event.request is not None:
        process["name"] = event.request.command[0].rpartition("/")[2]
        if event.request.user:
            process["user"] = {"name": event.request.user}
        if event.request.work_dir:
            process["working_directory"] = event.request.work_dir
    return process


def _policy(event: ExecAuditLog) -> dict[str, object]:
    name, _, digest = event.policy_applied.partition("@")
    policy: dict[str, object] = {"name": name, "uid": event.policy_applied, "version": digest}
    return {**policy, "desc": event.rule} if event.rule else policy


def _unmapped(event: ExecAuditLog) -> dict[str, str]:
    """Return the fields for which OCSF has no attribute."""
    optional = {
        "client_ip": event.client_ip,
        "command_hmac": event.command_hmac,
        "evidence_sha256": event.evidence_sha256,
        "batch": event.batch,
    }
    return {"requested_by": event.requested_by, **{name: value for name, value in optional.items() if value}}
