"""One policy, its patterns compiled."""

from __future__ import annotations

from typing import Any

import pytest

from tachikoma.policy.compiled import CompiledPolicy, PatternMistakes
from tachikoma.policy.denials import DeniedArguments
from tachikoma.vocabulary.policies import ExecPolicy


def compiled(**values: Any) -> CompiledPolicy:
    return CompiledPolicy(ExecPolicy(**{"name": "web", "subjects": ("spiffe://x/**",), "agents": ("web-*",), **values}))


def test_its_label_is_its_name_and_changes_with_every_edit() -> None:
    label = compiled(allowed_commands=("/bin/true",)).label
    assert label.startswith("web@")
    assert label == compiled(allowed_commands=("/bin/true",)).label
    assert label != compiled(allowed_commands=("/bin/true",), allow_tty=True).label


def test_it_applies_where_a_subject_and_an_agent_match() -> None:
    policy = compiled(agents=("web-*", "site=berlin"))
    assert policy.applies_to("spiffe://x/user/a", "web-1", {})
    assert policy.applies_to("spiffe://x/user/a", "db-1", {"site": "berlin"})
    assert not policy.applies_to("spiffe://x/user/a", "db-1", {"site": "rome"})
    assert not policy.applies_to("spiffe://y/user/a", "web-1", {})


def test_its_commands_grant_and_deny() -> None:
    policy = compiled(allowed_commands=("/bin/* a", "/bin/x ..."), denied_commands=("rm", "/bin/x b"))
    assert [pattern.text for pattern in policy.granting("/bin/x", ["a"])] == ["/bin/x ...", "/bin/* a"]
    assert policy.granting("/bin/y", ["b"]) == []
    assert policy.denying("/bin/x", DeniedArguments(["a"])) is None
    denied = policy.denying("/usr/bin/rm", DeniedArguments(["-rf", "/"]))
    assert denied is not None
    assert denied.text == "rm"


@pytest.mark.parametrize(
    ("address", "allowed"),
    [("10.255.0.1", True), ("2001:db8::1", True), ("11.0.0.1", False), ("", False), ("x", False)],
)
def test_its_networks_limit_the_addresses(address: str, allowed: bool) -> None:
    assert compiled(allowed_networks=("10.0.0.0/8", "2001:db8::/32")).allows_from(address) is allowed
    assert compiled().allows_from(address)


def test_all_patterns_that_cannot_be_understood_are_reported() -> None:
    with pytest.raises(PatternMistakes) as caught:
        compiled(
            subjects=("x", "["), agents=("=a",), allowed_commands=("true",), denied_commands=("a/b",),
            allowed_users=("***",), allowed_work_dirs=("{",), allowed_environment=("}",), approvers=("{a{",),
        )  # fmt: skip
    assert [(field, number) for field, number, _ in caught.value.mistakes] == [
        ("subjects", 1),
        ("agents", 0),
        ("allowedCommands", 0),
        ("deniedCommands", 0),
        ("allowedUsers", 0),
        ("allowedWorkDirs", 0),
        ("allowedEnvironment", 0),
        ("approvers", 0),
    ]
    assert "allowedCommands[0]: 'true': the program must be an absolute path" in str(caught.value)
