"""An agent's own policy only takes away."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tachikoma.errors import PermissionDenied
from tachikoma.identity.signed_messages import WorkOrder
from tachikoma.policy.decide import PolicySet, narrow
from tachikoma.vocabulary.grants import Grant, GrantedExecutable
from tachikoma.vocabulary.limits import ResourceLimits
from tachikoma.vocabulary.requests import ExecRequest
from tachikoma_worker.confinement.prepare import Refused, narrowed

PIN, OTHER = "a" * 64, "b" * 64
BASE = "policies:\n  - name: own\n    subjects: ['**']\n    agents: ['**']\n"


def local(text: str, **request: Any) -> Any:
    policies = PolicySet.parse(BASE + text, "policy.yaml")
    values = {"agent_id": "a", "command": ["/bin/true"], **request}
    return policies.decide(ExecRequest(**values), "spiffe://x/user/u", ["/bin", "/usr/bin"])


def grant(*executables: GrantedExecutable, **values: Any) -> Grant:
    return Grant(executables=executables or (GrantedExecutable(path="/bin/true", named=True),), **values)


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


def test_an_approval_that_the_agents_own_policy_asks_for_must_have_been_given() -> None:
    boss, asking = "spiffe://x/user/boss", "spiffe://x/user/u"
    text = "    allowedCommands: [/bin/true]\n    requireApproval: true\n    approvers: ['spiffe://x/user/*']\n"
    policies = PolicySet.parse(BASE + text, "policy.yaml")

    def order(approved_by: str) -> WorkOrder:
        request = ExecRequest(id="e", agent_id="a", command=["/bin/true"])
        return WorkOrder(
            iss="o", aud="a", sub=asking, iat=1, exp=2, jti="e", policy="p@1", approved_by=approved_by,
            grant=grant(), request=request,
        )  # fmt: skip

    assert narrowed(order(boss), policies, {}).grant.executables
    for approved_by in ("", asking, "spiffe://other/user/boss"):
        with pytest.raises(Refused, match=r"requires an approval by spiffe://x/user/\*"):
            narrowed(order(approved_by), policies, {})


numbers = st.none() | st.integers(1, 1000)


@given(numbers, numbers)
def test_limits_only_become_lower(theirs: int | None, own: int | None) -> None:
    text = "    allowedCommands: [/bin/true]\n" + (f"    limits: {{pids: {own}}}\n" if own else "")
    left = narrow(grant(limits=ResourceLimits(pids=theirs)), local(text)).limits.pids
    given_ones = [value for value in (theirs, own) if value is not None]
    assert left == (min(given_ones) if given_ones else None)
