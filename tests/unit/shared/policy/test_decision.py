"""The outcome of a policy decision."""

from __future__ import annotations

import pytest

from tachikoma.policy.decision import Decision, may_approve
from tachikoma.vocabulary.grants import Grant, GrantedExecutable
from tachikoma.vocabulary.limits import OutputLimit, WhenFull

ALICE, BOSS = "spiffe://x/user/alice", "spiffe://x/boss/bob"
GRANT = Grant(executables=(GrantedExecutable(path="/usr/bin/x"), GrantedExecutable(path="/bin/x")))


def allowed(grant: Grant = GRANT, approvers: tuple[str, ...] = ()) -> Decision:
    return Decision(True, "p@1", "allowedCommands", "", grant, approvers=approvers)


def test_executables_are_those_of_the_grant_in_order() -> None:
    assert allowed().executables == ("/usr/bin/x", "/bin/x")
    assert Decision(False, "", "default", "because").executables == ()


def test_output_waits_only_where_the_grant_says_so() -> None:
    waiting = GRANT.model_copy(update={"output": OutputLimit(when_full=WhenFull.WAIT)})
    assert allowed(waiting).waits
    assert not allowed().waits
    assert not Decision(False, "", "default", "because").waits


@pytest.mark.parametrize(
    ("subject", "may"),
    [(BOSS, True), (ALICE, False), ("", False), ("spiffe://x/boss/a/b", False), ("spiffe://x/boss", False)],
)
def test_an_approver_matches_a_pattern_and_is_not_the_requester(subject: str, may: bool) -> None:
    patterns = (f"{ALICE}x", "spiffe://x/boss/*")
    assert may_approve(patterns, subject) is may
    assert allowed(approvers=patterns).approvable_by(subject, ALICE) is may
    assert not allowed(approvers=patterns).approvable_by(subject, subject)
    assert not allowed().approvable_by(subject, ALICE)
