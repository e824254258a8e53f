"""The agent's own policy takes away from a grant, and never adds."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tachikoma.errors import PermissionDenied
from tachikoma.policy.decide import PolicySet
from tachikoma.policy.decision import Decision
from tachikoma.policy.narrowing import NARROWING, narrow
from tachikoma.vocabulary.grants import Grant, GrantedExecutable
from tachikoma.vocabulary.limits import OutputLimit, ResourceLimits, WhenFull
from tachikoma.vocabulary.requests import ExecRequest

PIN, OTHER = "a" * 64, "b" * 64
BASE = "policies:\n  - name: own\n    subjects: ['**']\n    agents: ['**']\n"


def local(text: str, **request: Any) -> Decision:
    policies = PolicySet.parse(BASE + text, "policy.yaml")
    values = {"agent_id": "a", "command": ["/bin/true"], **request}
    return policies.decide(ExecRequest(**values), "spiffe://x/user/u", ["/bin", "/usr/bin"])


def grant(*executables: GrantedExecutable, **values: Any) -> Grant:
    return Grant(executables=executables or (GrantedExecutable(path="/bin/true", named=True),), **values)


def decided(own: Grant) -> Decision:
    return Decision(True, "own@1", "allowedCommands", "", own)


def test_every_field_of_a_grant_is_narrowed() -> None:
    assert set(NARROWING) == set(Grant.model_fields)
    # Their values are narrowed by functions that know these fields.
    assert set(GrantedExecutable.model_fields) == {"path", "named", "sha256"}
    assert set(OutputLimit.model_fields) == {"limit", "when_full", "wait_limit"}


def test_what_it_does_not_allow_is_denied_and_told() -> None:
    with pytest.raises(PermissionDenied, match="the agent's own policy does not allow it: policy own does not allow"):
        narrow(grant(), local("    allowedCommands: [/bin/false]\n"))
    with pytest.raises(PermissionDenied, match="at most 1m"):
        narrow(grant(), local("    allowedCommands: [/bin/true]\n    maxTimeout: 1m\n", timeout="2m"))


def test_files_are_those_that_both_grant() -> None:
    both = grant(GrantedExecutable(path="/usr/bin/true"), GrantedExecutable(path="/bin/true"))
    left = narrow(both, local("    allowedCommands: [/bin/true]\n", command=["true"]))
    assert [executable.path for executable in left.executables] == ["/bin/true"]
    with pytest.raises(PermissionDenied, match="none of the files"):
        narrow(grant(GrantedExecutable(path="/usr/bin/true")), local("    allowedCommands: [/bin/true]\n"))


def test_pins_of_both_must_hold() -> None:
    pinned = f"    allowedCommands: [/bin/true]\n    executableSha256: {{/bin/true: ['{PIN}']}}\n"
    assert narrow(grant(), local(pinned)).executables[0].sha256 == (PIN,)
    same = grant(GrantedExecutable(path="/bin/true", sha256=(OTHER, PIN)))
    assert narrow(same, local(pinned)).executables[0].sha256 == (PIN,)
    with pytest.raises(PermissionDenied):
        narrow(grant(GrantedExecutable(path="/bin/true", sha256=(OTHER,))), local(pinned))


def test_the_narrower_directory_capabilities_and_grace_count() -> None:
    text = (
        "    allowedCommands: [/bin/true]\n    allowedWorkDirs: ['/srv/app/**']\n"
        "    capabilities: [CAP_CHOWN, CAP_KILL]\n    killGrace: 2s\n"
    )
    asked = local(text, work_dir="/srv/app/x")
    left = narrow(grant(work_dir_root="/srv", capabilities=0b11, kill_grace=10), asked)
    assert (left.work_dir_root, left.capabilities, left.kill_grace) == ("/srv/app", 0b1, 2)
    assert narrow(grant(work_dir_root="/srv", kill_grace=1), asked).kill_grace == 1


numbers = st.none() | st.integers(1, 1000)


@given(numbers, numbers)
def test_limits_only_become_lower(theirs: int | None, own: int | None) -> None:
    text = "    allowedCommands: [/bin/true]\n" + (f"    limits: {{pids: {own}}}\n" if own else "")
    left = narrow(grant(limits=ResourceLimits(pids=theirs)), local(text)).limits.pids
    given_ones = [value for value in (theirs, own) if value is not None]
    assert left == (min(given_ones) if given_ones else None)


#: A limit of None is no limit: higher than every number.
def bound(value: float | None) -> float:
    return float("inf") if value is None else value


pins = st.lists(st.sampled_from([PIN, OTHER]), unique=True).map(tuple)
executables = st.lists(
    st.builds(GrantedExecutable, path=st.sampled_from(["/bin/a", "/bin/b"]), named=st.booleans(), sha256=pins),
    min_size=1,
    max_size=2,
    unique_by=lambda executable: executable.path,
).map(tuple)
bytes_of = st.none() | st.integers(2**20, 2**30)
grants = st.builds(
    Grant,
    executables=executables,
    interpreters=st.booleans(),
    denied=st.lists(st.sampled_from(["rm", "reboot"]), unique=True).map(tuple),
    work_dir_root=st.sampled_from(["", "/srv", "/srv/app"]),
    limits=st.builds(ResourceLimits, memory=bytes_of, swap=bytes_of, pids=st.none() | st.integers(1, 9)),
    output=st.builds(
        OutputLimit,
        limit=bytes_of,
        when_full=st.sampled_from(WhenFull),
        wait_limit=st.none() | st.timedeltas(timedelta(0), timedelta(hours=1)),
    ),
    capabilities=st.integers(0, 2**41 - 1),
    kill_grace=st.none() | st.floats(0, 600),
    idle_seconds=st.none() | st.floats(1, 600),
    detached_seconds=st.none() | st.floats(1, 600),
)


@given(grants, grants)
def test_nothing_is_left_that_one_of_both_does_not_grant(order: Grant, own: Grant) -> None:
    try:
        left = narrow(order, decided(own))
    except PermissionDenied:
        shared = {e.path: e for e in own.executables}
        for executable in order.executables:
            other = shared.get(executable.path)
            assert other is None or (executable.sha256 and not set(executable.sha256) & set(other.sha256))
        return
    for both in (order, own):
        granted = {executable.path: executable for executable in both.executables}
        for executable in left.executables:
            assert executable.named <= granted[executable.path].named
            if granted[executable.path].sha256:
                assert executable.sha256
                assert set(executable.sha256) <= set(granted[executable.path].sha256)
        assert left.interpreters <= both.interpreters
        assert set(left.denied) >= set(both.denied)
        assert left.work_dir_root.startswith(both.work_dir_root)
        assert left.capabilities & ~both.capabilities == 0
        for name in ("kill_grace", "idle_seconds", "detached_seconds"):
            assert bound(getattr(left, name)) <= bound(getattr(both, name))
        assert bound(left.output.limit) <= bound(both.output.limit)
        if both.output.wait_limit is not None:
            assert left.output.wait_limit is not None
            assert left.output.wait_limit <= both.output.wait_limit
        for name in ResourceLimits.model_fields:
            assert bound(getattr(left.limits, name)) <= bound(getattr(both.limits, name))
    assert left.output.when_full is order.output.when_full


@given(grants)
def test_the_same_grant_takes_nothing_away(granted: Grant) -> None:
    left = narrow(granted, decided(granted))
    assert left == granted.model_copy(update={"denied": tuple(sorted(granted.denied))})


def test_a_denied_decision_leaves_nothing() -> None:
    with pytest.raises(PermissionDenied, match="does not allow it: because"):
        narrow(grant(), Decision(False, "own@1", "allowedUsers", "because"))
