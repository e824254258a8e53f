"""Digests of requests and approvals: what changes them, and that they stay the same from version to version."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tachikoma.policy.decide import PolicySet
from tachikoma.policy.decision import Decision
from tachikoma.vocabulary.limits import ResourceLimits
from tachikoma.vocabulary.requests import ExecRequest
from tachikoma_orchestrator.admission.digests import approval_digest, request_digest

ALICE = "spiffe://tachikoma.local/user/alice"
REQUEST = ExecRequest(
    id="job-7",
    agent_id="web-1",
    command=("/usr/bin/printf", "x"),
    environment={"A": "1", "B": "2"},
    requested_by=ALICE,
    request_time=datetime(2026, 7, 1, tzinfo=UTC),
)
#: A value for each field of a request that decides what would run, other than in REQUEST.
CHANGES: dict[str, Any] = {
    "agent_id": "web-2",
    "command": ("/usr/bin/printf", "y"),
    "work_dir": "/tmp",
    "environment": {"A": "1", "B": "3"},
    "stdin": b"x",
    "timeout": timedelta(seconds=5),
    "user": "deploy",
    "limits": ResourceLimits(pids=7),
    "interactive": True,
    "tty": True,
    "requested_by": "spiffe://tachikoma.local/user/bob",
}
#: Fields that only name the request.
NAMES: dict[str, Any] = {"id": "job-8", "request_time": datetime(2026, 7, 2, tzinfo=UTC)}
POLICIES = """\
policies:
  - name: web
    subjects: ["spiffe://tachikoma.local/user/*"]
    agents: ["**"]
    allowedCommands: ["/usr/bin/printf **"]
    allowedEnvironment: ["*"]
    limits: {pids: 50}
"""


def decide(policies: str) -> Decision:
    return PolicySet.parse(policies, "test").decide(REQUEST, ALICE, ("/usr/bin",))


def test_every_field_of_a_request_is_covered_here() -> None:
    assert set(CHANGES) | set(NAMES) == set(ExecRequest.model_fields)


@pytest.mark.parametrize("field", CHANGES)
def test_a_field_that_decides_what_runs_changes_the_digest(field: str) -> None:
    assert request_digest(REQUEST.model_copy(update={field: CHANGES[field]})) != request_digest(REQUEST)


@pytest.mark.parametrize("field", NAMES)
def test_a_field_that_only_names_the_request_does_not(field: str) -> None:
    assert request_digest(REQUEST.model_copy(update={field: NAMES[field]})) == request_digest(REQUEST)


def test_the_digest_of_a_known_request_is_the_same_in_every_version() -> None:
    # Records in Redis hold it: another value would turn repetitions into conflicts.
    assert request_digest(REQUEST) == "b5e7deee3e7ac96762e884627a174058014fe111c590746398e1aa8f71e98003"


@given(st.lists(st.text(), min_size=1, max_size=4), st.lists(st.text(), min_size=1, max_size=4))
def test_different_commands_have_different_digests(one: list[str], other: list[str]) -> None:
    digests = {request_digest(REQUEST.model_copy(update={"command": tuple(argv)})) for argv in (one, other)}
    assert len(digests) == (1 if one == other else 2)


@given(st.permutations(["A", "B", "C"]))
def test_the_order_of_variables_does_not_matter(names: list[str]) -> None:
    request = REQUEST.model_copy(update={"environment": {name: name.lower() for name in names}})
    same = REQUEST.model_copy(update={"environment": {"A": "a", "B": "b", "C": "c"}})
    assert request_digest(request) == request_digest(same)


def test_an_approval_is_for_one_execution_as_policy_grants_it_now() -> None:
    decision = decide(POLICIES)
    assert decision.allowed
    digest = approval_digest(REQUEST, decision)
    assert digest == approval_digest(REQUEST.model_copy(), replace(decision))
    other_policy = decide(POLICIES.replace("pids: 50", "pids: 60"))
    others = [
        approval_digest(REQUEST.model_copy(update={"id": "job-8"}), decision),
        approval_digest(REQUEST.model_copy(update={"stdin": b"x"}), decision),
        approval_digest(REQUEST, replace(decision, timeout=timedelta(seconds=1))),
        approval_digest(REQUEST, replace(decision, policy="web@000000000000")),
        approval_digest(REQUEST, replace(decision, grant=other_policy.grant)),
    ]
    assert len({digest, *others}) == 6
