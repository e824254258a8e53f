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
from tachikoma.vocabulary.isolation import Isolation
from tachikoma.vocabulary.limits import ResourceLimits
from tachikoma.vocabulary.request_rules import MAX_TIMEOUT
from tachikoma.vocabulary.requests import ExecRequest, Terminal
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
POLICIES = """\
policies:
  - name: web
    subjects: ["spiffe://tachikoma.local/user/*"]
    agents: ["**"]
    allowedCommands: ["/usr/bin/printf **"]
    allowedEnvironment: ["*"]
    limits: {pids: 50}
"""
#: Fields that do not count: a repetition has the same id, and is made at another time.
NOT_IN_THE_DIGEST = {"id", "request_time"}

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)
IDS = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}", fullmatch=True)
SIZES = st.none() | st.integers(2**20, 2**40)
#: Values of each field that counts.
FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "agent_id": IDS,
    "command": st.lists(TEXT, max_size=3).map(lambda rest: ["/bin/x", *rest]),
    "work_dir": st.just("") | TEXT.map(lambda text: f"/{text}"),
    "environment": st.dictionaries(TEXT.filter(lambda name: name and "=" not in name), TEXT, max_size=3),
    "stdin": st.binary(max_size=16),
    "timeout": st.none() | st.timedeltas(timedelta(microseconds=1), MAX_TIMEOUT),
    "user": st.sampled_from(["", "root", "web", "db"]),
    "limits": st.none() | st.builds(ResourceLimits, memory=SIZES, pids=st.none() | st.integers(1, 9), io_write=SIZES),
    "interactive": st.booleans(),
    "tty": st.booleans(),
    "terminal": st.none() | st.builds(Terminal, rows=st.integers(0, 99), type=st.sampled_from(["xterm", "screen"])),
    "isolation": st.none() | st.sampled_from(Isolation),
    "requested_by": TEXT,
}
REQUESTS = st.fixed_dictionaries(FIELDS)


def test_every_field_of_a_request_counts_or_is_listed() -> None:
    assert set(FIELDS) | NOT_IN_THE_DIGEST == set(ExecRequest.model_fields)
    assert not set(FIELDS) & NOT_IN_THE_DIGEST


@given(REQUESTS, REQUESTS)
def test_a_change_of_one_field_changes_the_digest(values: dict[str, Any], others: dict[str, Any]) -> None:
    one = ExecRequest(**values)
    for field in FIELDS:
        other = ExecRequest(**{**values, field: others[field]})
        same = getattr(one, field) == getattr(other, field)
        assert (request_digest(one) == request_digest(other)) == same, field


@pytest.mark.parametrize("name", ResourceLimits.model_fields)
def test_each_limit_changes_the_digest(name: str) -> None:
    limited = ResourceLimits(**{name: {"cpus": 2, "cpu_weight": 2, "pids": 2, "oom_group": True}.get(name, 2**20)})
    digests = {
        request_digest(ExecRequest(agent_id="a", command=("x",), limits=limits))
        for limits in (None, ResourceLimits(), limited)
    }
    assert len(digests) == 3


@given(REQUESTS, st.datetimes(timezones=st.just(UTC)), IDS)
def test_a_repetition_has_the_same_digest(values: dict[str, Any], when: datetime, exec_id: str) -> None:
    repeated = ExecRequest(**values, id=exec_id, request_time=when)
    assert request_digest(ExecRequest(**values)) == request_digest(repeated)


@given(st.dictionaries(TEXT.filter(lambda name: name and "=" not in name), TEXT, min_size=2, max_size=4))
def test_the_order_of_variables_does_not_count(environment: dict[str, str]) -> None:
    base = {"agent_id": "a", "command": ("x",)}
    turned = dict(reversed(environment.items()))
    assert request_digest(ExecRequest(**base, environment=environment)) == request_digest(
        ExecRequest(**base, environment=turned)
    )


def test_the_digest_of_a_known_request_is_the_same_in_every_version() -> None:
    # Records in Redis hold it: another value would turn repetitions into conflicts.
    assert request_digest(REQUEST) == "b5e7deee3e7ac96762e884627a174058014fe111c590746398e1aa8f71e98003"


# --- approvals --------------------------------------------------------------------------------------------------------


def decide(policies: str) -> Decision:
    return PolicySet.parse(policies, "test").decide(REQUEST, ALICE, ("/usr/bin",))


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
