"""Policies that are valid, and hardly what their author meant."""

from __future__ import annotations

from typing import Any

import pytest

from tachikoma.policy.compiled import CompiledPolicy
from tachikoma.policy.warnings import warnings_of
from tachikoma.vocabulary.policies import ExecPolicy

BOSS = "spiffe://x/user/boss"


def warnings(**values: Any) -> list[str]:
    base = {"name": "p", "subjects": ("spiffe://x/**",), "agents": ("*",), "allowed_commands": ("/bin/x",)}
    return list(warnings_of(CompiledPolicy(ExecPolicy(**{**base, **values}))))


def test_a_careful_policy_has_none() -> None:
    assert warnings() == []
    assert warnings(require_approval=True, approvers=(BOSS,), allowed_users=("web",)) == []


@pytest.mark.parametrize(
    ("values", "warning"),
    [
        ({}, "allowedUsers names root: its commands read every file of the host"),
        ({"capabilities": ("CAP_KILL",)}, "allowedUsers names root: its commands read every file of the host"),
        ({"host_access": True}, "hostAccess lets commands of root change this host, and reach its agent through"),
        # It has temporary folders of its own at `shared` too.
        ({"tmp": "execution"}, "allowedUsers names root: its commands read every file of the host"),
    ],
)
def test_root_is_named_wherever_it_is_granted(values: dict[str, Any], warning: str) -> None:
    (found,) = warnings(allowed_users=("root",), **values)
    assert found.startswith(warning)


@pytest.mark.parametrize(
    ("values", "warning"),
    [
        ({"allowed_commands": ()}, "grants and denies nothing: it lists no command"),
        ({"allowed_commands": ("/** ...",)}, "allowedCommands '/** ...' grants every program"),
        ({"allowed_commands": ("/*",)}, "allowedCommands '/*' grants every program"),
        (
            {"allowed_commands": ("/bin/sh x",)},
            "allowedCommands '/bin/sh x' can never grant it: allowInterpreters is not",
        ),
        (
            {"allowed_commands": ("/bin/sh ...",), "allow_interpreters": True},
            "allowedCommands '/bin/sh ...' grants every program: /bin/sh can run any other program",
        ),
        ({"denied_commands": ("x",)}, "allowedCommands '/bin/x' can never grant it: deniedCommands covers it"),
        (
            {"allowed_commands": ("/bin/cat ...",), "denied_commands": ("cat /etc/**",)},
            "deniedCommands 'cat /etc/**' restricts '/bin/cat ...' of p; '...' also allows symbolic links",
        ),
        (
            {"allowed_commands": ("/opt/*/x ...",), "denied_commands": ("/opt/a/x secret",)},
            "deniedCommands '/opt/a/x secret' restricts '/opt/*/x ...' of p",
        ),
        (
            {"denied_commands": ("rm -rf",)},
            "deniedCommands 'rm -rf' may deny less than it says: the option -rf may have other names",
        ),
        (
            {"denied_commands": ("cat ../x",)},
            "deniedCommands 'cat ../x' may deny less than it says: '../x' contains a '.' or '..'",
        ),
        ({"subjects": ("**",)}, "subjects matches every identity of every trust domain"),
        (
            {"require_approval": True, "approvers": ("spiffe://**",)},
            "approvers matches every identity of every trust domain",
        ),
        ({"approvers": (BOSS,)}, "approvers has no effect: requireApproval is not set"),
        (
            {"executable_sha256": {"/bin/y": ()}},
            "executableSha256 pins /bin/y, which no entry of allowedCommands",
        ),
        ({"allowed_networks": ("::/0",)}, "allowedNetworks contains every address"),
        ({"capabilities": ("CAP_KILL",)}, "capabilities has no effect: only root keeps them"),
        ({"tmp": "execution"}, "tmp has an effect only with isolation private or sealed"),
    ],
)
def test_what_is_hardly_meant_is_named_alone(values: dict[str, Any], warning: str) -> None:
    (found,) = warnings(**values)
    assert found.startswith(warning)
