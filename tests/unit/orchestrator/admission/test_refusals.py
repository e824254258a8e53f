"""The table of refusals: an error and an audit code for every outcome that is not an admission."""

from __future__ import annotations

from typing import Any

import pytest

from tachikoma.client.rpc_errors import error_to_details
from tachikoma.errors import (
    AgentDraining,
    AgentOffline,
    AgentRevoked,
    AgentUnknown,
    AlreadyExists,
    FailedPrecondition,
    InvalidRequest,
    PermissionDenied,
    ResourceExhausted,
    TachikomaError,
    Unavailable,
)
from tachikoma.policy.decision import Decision
from tachikoma.vocabulary.audit import AuditCode
from tachikoma.vocabulary.requests import ExecRequest, Terminal
from tachikoma_orchestrator.admission.refusals import (
    REFUSALS,
    impersonation,
    not_allowed,
    refusal,
    session_mistake,
    unsuitable,
)
from tachikoma_orchestrator.executions.transitions import Outcome

REQUEST = ExecRequest(id="job-7", agent_id="web-1", command=("true",))
#: Outcomes that are no refusal; HELD is only for the driver of a batch.
ADMISSIONS = {Outcome.ADMITTED, Outcome.DUPLICATE, Outcome.HELD}
#: Outcome; class, message, metadata and seconds until a repetition of its error; audit code.
EXPECTED: list[tuple[Outcome, type[TachikomaError], str, dict[str, str], float | None, AuditCode]] = [
    (Outcome.UNKNOWN, AgentUnknown, "there is no agent 'web-1'", {"agent": "web-1"}, None, AuditCode.REFUSED),
    (Outcome.OFFLINE, AgentOffline, "agent 'web-1' is offline", {"agent": "web-1"}, 5, AuditCode.REFUSED),
    (Outcome.DRAINING, AgentDraining, "agent 'web-1' is drained", {"agent": "web-1"}, None, AuditCode.REFUSED),
    (Outcome.REVOKED, AgentRevoked, "agent 'web-1' is revoked", {"agent": "web-1"}, None, AuditCode.REFUSED),
    (Outcome.UNFIT, FailedPrecondition, "agent 'web-1' takes no", {"agent": "web-1"}, None, AuditCode.REFUSED),
    (Outcome.CONFLICT, AlreadyExists, "the id 'job-7' was used", {"id": "job-7"}, None, AuditCode.REFUSED),
    (Outcome.FULL, ResourceExhausted, "the queue of agent 'web-1' is full", {"agent": "web-1"}, 1, AuditCode.LIMITED),
    (
        Outcome.APPROVALS, ResourceExhausted, "too many executions wait for an approval",
        {"limit": "approvals"}, 60, AuditCode.LIMITED,
    ),
    (
        Outcome.RATE, ResourceExhausted, "too many requests in the last minute",
        {"limit": "rate", "agent": "web-1"}, 1, AuditCode.LIMITED,
    ),
    (
        Outcome.CONCURRENT, ResourceExhausted, "too many executions that have not ended",
        {"limit": "concurrent", "agent": "web-1"}, 1, AuditCode.LIMITED,
    ),
    (
        Outcome.WAITING, ResourceExhausted, "too many executions that have not started",
        {"limit": "waiting", "agent": "web-1"}, 1, AuditCode.LIMITED,
    ),
]  # fmt: skip


def test_every_outcome_is_an_admission_or_has_a_row() -> None:
    assert set(REFUSALS) == set(Outcome) - ADMISSIONS
    assert {row[0] for row in EXPECTED} == set(REFUSALS)


@pytest.mark.parametrize("expected", EXPECTED, ids=lambda expected: expected[0])
def test_a_row_is_the_error_that_callers_have_always_met(
    expected: tuple[Outcome, type[TachikomaError], str, dict[str, str], float | None, AuditCode],
) -> None:
    outcome, kind, message, metadata, retry_seconds, code = expected
    error = refusal(outcome, REQUEST)
    assert type(error) is kind
    assert str(error).startswith(message)
    assert error.metadata == metadata
    assert error.retry_after_seconds == retry_seconds
    assert REFUSALS[outcome].audit_code is code
    # It can be sent.
    assert error_to_details(error)


def test_the_script_knows_better_when_a_repetition_may_succeed() -> None:
    assert refusal(Outcome.RATE, REQUEST, 17.5).retry_after_seconds == 17.5
    assert refusal(Outcome.RATE, REQUEST, 0.0).retry_after_seconds == 1


@pytest.mark.parametrize("outcome", sorted(REFUSALS))
def test_names_are_never_read_as_parts_of_a_message(outcome: Outcome) -> None:
    # Identifiers cannot contain braces; the table must not depend on that.
    braces = REQUEST.model_copy(update={"id": "{agent}", "agent_id": "{id!r}"})
    error = refusal(outcome, braces)
    assert all(value in ("{agent}", "{id!r}") for name, value in error.metadata.items() if name != "limit")


@pytest.mark.parametrize("outcome", sorted(ADMISSIONS))
def test_an_admission_is_no_refusal(outcome: Outcome) -> None:
    with pytest.raises(KeyError):
        refusal(outcome, REQUEST)


def test_agents_that_may_come_back_are_unavailable_and_revoked_ones_are_not() -> None:
    assert isinstance(refusal(Outcome.OFFLINE, REQUEST), Unavailable)
    assert isinstance(refusal(Outcome.DRAINING, REQUEST), Unavailable)
    assert not isinstance(refusal(Outcome.REVOKED, REQUEST), Unavailable)


# --- denials ----------------------------------------------------------------------------------------------------------


def test_a_request_in_the_name_of_another_is_denied_with_both_names() -> None:
    denial = impersonation("spiffe://x/user/alice", "spiffe://x/user/mallory")
    assert isinstance(denial.error, PermissionDenied)
    assert denial.error.metadata == {"rule": "requestedBy"}
    assert str(denial.error) == denial.reason
    assert "spiffe://x/user/alice" in denial.reason
    assert "spiffe://x/user/mallory" in denial.reason
    assert (denial.policy, denial.rule) == ("", "requestedBy")


def test_a_denial_by_policy_names_policy_and_rule() -> None:
    decision = Decision(False, "web@0123", "deniedCommands: reboot", "policy web denies 'reboot'")
    denial = not_allowed(decision)
    assert isinstance(denial.error, PermissionDenied)
    assert str(denial.error) == "not allowed: policy web denies 'reboot'"
    assert denial.error.metadata == {"rule": "deniedCommands: reboot", "policy": "web@0123"}
    assert (denial.reason, denial.policy, denial.rule) == (decision.reason, decision.policy, decision.rule)


@pytest.mark.parametrize(
    ("fields", "session", "why"),
    [
        ({}, False, ""),
        ({"stdin": b"x"}, False, ""),
        ({"interactive": True}, True, ""),
        ({"interactive": True, "tty": True}, True, ""),
        ({"interactive": True, "tty": True, "terminal": Terminal()}, True, ""),
        ({}, True, "ExecuteInteractive is for interactive requests"),
        ({"interactive": True}, False, "use ExecuteInteractive"),
        ({"tty": True}, True, "set `interactive` too"),
        ({"tty": True}, False, "set `interactive` too"),
        ({"interactive": True, "terminal": Terminal()}, True, "set `tty` too"),
        ({"interactive": True, "stdin": b"x"}, True, "leave `stdin` empty"),
    ],
)
def test_fields_about_sessions_fit_each_other_and_the_call(fields: dict[str, Any], session: bool, why: str) -> None:
    mistake = session_mistake(ExecRequest(agent_id="a", command=("x",), **fields), session=session)
    assert why in mistake
    assert bool(mistake) is bool(why)


def test_an_unsuitable_request_is_invalid_not_forbidden() -> None:
    denial = unsuitable(Decision(True, "web@0123", "", ""), "it is wrong")
    assert isinstance(denial.error, InvalidRequest)
    assert (str(denial.error), denial.reason) == ("it is wrong", "it is wrong")
    assert (denial.policy, denial.rule) == ("web@0123", "")
