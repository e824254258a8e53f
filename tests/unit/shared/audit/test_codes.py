"""The table of audit codes is complete, and says of each code what its name promises."""

from __future__ import annotations

import pytest

from tachikoma.audit.codes import (
    AUDIT_CODES,
    UNKNOWN_CODE,
    Activity,
    FlowerStep,
    OcsfClass,
    Outcome,
    Severity,
    code_row,
    markdown_table,
)
from tachikoma.vocabulary.audit import AuditCode
from tachikoma.vocabulary.states import ExecState

FINAL = {AuditCode(state.lower()): state for state in ExecState if state.terminal}
#: Every code by which something was refused.
REFUSALS = {
    *(AuditCode.APPROVAL_REFUSED, AuditCode.DENIED, AuditCode.LIMITED, AuditCode.REFUSED, AuditCode.MALFORMED),
    *(
        AuditCode.REJECTED,
        AuditCode.BATCH_REJECTED,
        AuditCode.RECEIPT_REFUSED,
        AuditCode.IDENTITY_REJECTED,
        AuditCode.POLICY_KEPT,
    ),
    *(AuditCode.JOIN_REFUSED, AuditCode.NOTICE_REFUSED, AuditCode.REFUSALS_COUNTED, AuditCode.AGENT_CONTESTED),
}


def test_every_code_has_a_row() -> None:
    assert set(AUDIT_CODES) == set(AuditCode)


@pytest.mark.parametrize("code", AuditCode)
def test_every_row_is_documented(code: AuditCode) -> None:
    row = code_row(code)
    assert row.meaning[0].isupper() or row.meaning[0] == "`"
    assert row.meaning.endswith(".")
    assert "|" not in row.meaning + row.fields
    assert f"| `{code}` | {row.meaning} |" in markdown_table()


def test_what_was_refused_is_never_an_allowed_action_and_always_a_warning() -> None:
    for code in REFUSALS:
        row = code_row(code)
        assert row.outcome is Outcome.REFUSED, code
        assert row.severity in (Severity.MEDIUM, Severity.HIGH), code
    assert {code for code, row in AUDIT_CODES.items() if row.outcome is Outcome.REFUSED} == REFUSALS
    assert Outcome.REFUSED.action_id == Outcome.REFUSED.disposition_id == 2


def test_a_code_whose_name_says_refused_is_among_the_refusals() -> None:
    named = {code for code in AuditCode if code.endswith(("refused", "rejected", "denied"))}
    assert named <= REFUSALS


def test_every_final_state_terminates_and_only_success_succeeds() -> None:
    for code in FINAL:
        row = code_row(code)
        assert (row.ocsf_class, row.activity) == (OcsfClass.PROCESS_ACTIVITY, Activity.TERMINATE), code
        assert row.flower is FlowerStep.ENDED, code
        assert (row.outcome is Outcome.DONE) == (code is AuditCode.SUCCEEDED), code
    ending = {code for code, row in AUDIT_CODES.items() if row.activity is Activity.TERMINATE}
    assert ending == set(FINAL)
    assert [code for code, row in AUDIT_CODES.items() if row.activity is Activity.LAUNCH] == [AuditCode.STARTED]


def test_events_about_agents_schedules_policies_and_identities_are_no_process_activity() -> None:
    for code in AuditCode:
        if code.startswith(("agent_", "schedule_", "policy_", "join_", "identity_", "notice_", "trail_")):
            assert code_row(code).ocsf_class is OcsfClass.BASE_EVENT, code


def test_data_that_cannot_be_trusted_is_an_alarm() -> None:
    for code in (AuditCode.LATE_RECEIPT, AuditCode.OUTPUT_ALTERED, AuditCode.RECORD_ALTERED, AuditCode.TRAIL_ALTERED):
        row = code_row(code)
        assert (row.outcome, row.severity) == (Outcome.DETECTED, Severity.HIGH), code
        assert row.outcome.action_id == 0


def test_severities_are_those_of_the_two_standards() -> None:
    assert [(it.ocsf, it.syslog) for it in Severity] == [(1, 6), (2, 5), (3, 4), (4, 4)]


@pytest.mark.parametrize("code", ["", "x", "ADMITTED", "admitted_", "forged"])
def test_an_unknown_code_is_neither_allowed_nor_silent(code: str) -> None:
    row = code_row(code)
    assert row is UNKNOWN_CODE
    assert (row.outcome.status_id, row.outcome.action_id, row.outcome.disposition_id) == (0, 0, 0)
    assert row.severity is Severity.MEDIUM
