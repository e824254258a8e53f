"""The export to OCSF 1.3.0: every code, and every field of an event."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tachikoma.audit.codes import OcsfClass, Outcome, code_row
from tachikoma.audit.ocsf import OCSF_VERSION, to_ocsf
from tachikoma.vocabulary.audit import AuditCode, AuditedRequest, ExecAuditLog

AT = datetime(2026, 1, 31, 12, 0, 0, 1000, tzinfo=UTC)


def event(code: str, **values: Any) -> ExecAuditLog:
    given = {"cursor": "1-0", "seq": 7, "id": "e1", "agent_id": "a1", "requested_by": "spiffe://x/user/u"} | values
    return ExecAuditLog(time=AT, event=code, **given)


@pytest.mark.parametrize("code", AuditCode)
def test_every_code_has_a_class_a_status_and_a_severity(code: AuditCode) -> None:
    content = json.loads(json.dumps(to_ocsf(event(code))))
    assert content["class_uid"] in (0, 1007)
    assert content["type_uid"] == content["class_uid"] * 100 + content["activity_id"]
    assert content["status_id"] in (1, 2)
    assert content["severity_id"] in (1, 2, 3, 4)
    assert content["status_code"] == content["metadata"]["event_code"] == content["message"] == code
    assert ("process" in content) == (code_row(code).ocsf_class is OcsfClass.PROCESS_ACTIVITY)
    assert content["category_uid"] == (1 if "process" in content else 0)


@pytest.mark.parametrize("code", AuditCode)
def test_nothing_that_was_refused_is_exported_as_allowed(code: AuditCode) -> None:
    content = to_ocsf(event(code, authorized=True))
    allowed = content["action_id"] == 1 or content["disposition_id"] == 1
    if code_row(code).outcome in (Outcome.REFUSED, Outcome.DETECTED):
        assert not allowed
        assert content["status_id"] == 2
    else:
        assert allowed


def test_an_unknown_code_is_exported_as_unknown() -> None:
    content = to_ocsf(event("of_a_newer_version"))
    assert (content["class_uid"], content["status_id"], content["action_id"]) == (0, 0, 0)
    assert content["activity_name"] == "of_a_newer_version"


def test_a_start_and_a_final_state_are_a_launch_and_a_terminate() -> None:
    started = to_ocsf(event("started", command="/bin/ls -l", start_time=AT))
    assert (started["activity_id"], started["activity_name"]) == (1, "Launch")
    assert started["process"] == {"uid": "e1", "cmd_line": "/bin/ls -l", "created_time": 1_769_860_800_001}
    failed = to_ocsf(event("failed", exit_code=3, duration=timedelta(milliseconds=1500), evidence_sha256="ab"))
    assert (failed["activity_id"], failed["activity_name"]) == (2, "Terminate")
    assert (failed["exit_code"], failed["duration"]) == (3, 1500)
    assert failed["unmapped"] == {"requested_by": "spiffe://x/user/u", "evidence_sha256": "ab"}
    assert "exit_code" not in to_ocsf(event("lost"))


def test_a_decision_carries_policy_rule_and_request() -> None:
    request = AuditedRequest(command=("/usr/bin/id",), user="root", work_dir="/tmp")
    content = to_ocsf(
        event("denied", policy_applied="ops@abc", rule="deniedCommands", reason="no", client_ip="::1", request=request)
    )
    assert content["policy"] == {"name": "ops", "uid": "ops@abc", "version": "abc", "desc": "deniedCommands"}
    assert content["process"]["name"] == "id"
    assert content["process"]["user"] == {"name": "root"}
    assert content["process"]["working_directory"] == "/tmp"
    assert content["message"] == "no"
    assert content["unmapped"]["client_ip"] == "::1"
    assert content["metadata"]["version"] == OCSF_VERSION


def test_the_actor_is_the_user_who_took_the_step() -> None:
    assert to_ocsf(event("approved", actor="spiffe://x/user/boss"))["actor"]["user"]["uid"] == "spiffe://x/user/boss"
    assert to_ocsf(event("approved"))["actor"]["user"]["uid"] == "spiffe://x/user/u"
