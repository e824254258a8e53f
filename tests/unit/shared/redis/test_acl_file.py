"""The ACL file that Redis loads."""

from __future__ import annotations

from pathlib import Path

import pytest

from tachikoma.errors import ConfigurationError
from tachikoma.redis.acl_file import acl_file, agents_in
from tachikoma.redis.passwords import Passwords
from tachikoma.redis.users import DEFAULT_USER_RULES, rules


def test_agents_that_joined_stay_in_an_acl_file_that_is_printed_again(tmp_path: Path) -> None:
    passwords = Passwords(tmp_path)
    for user in ("orchestrator", "agent.web-1"):
        passwords.make(user)
    digest = "ab" * 32
    live = (
        f"user default off\nuser orchestrator on #{'0' * 64} ~*\nuser agent.web-1 on #{'1' * 64} -@all\n"
        f"user agent.web-2 on sanitize-payload #{digest} -@all (+@all ~*)\nuser agent.* on +@all\n\nnonsense\n"
    )
    printed = acl_file(passwords, joined=agents_in(live)).splitlines()
    assert [line.split()[1] for line in printed] == ["default", "orchestrator", "agent.web-1", "agent.web-2"]
    # With their passwords, but the rights they should have.
    assert printed[-1] == f"user agent.web-2 {' '.join(rules('agent.web-2', [digest]))}"
    assert f"#{'1' * 64}" not in printed[2]


def test_only_users_with_a_password_are_in_the_file(tmp_path: Path) -> None:
    assert acl_file(Passwords(tmp_path)) == f"user default {DEFAULT_USER_RULES}\n"


def test_a_file_of_a_foreign_name_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ConfigurationError, match=r"'notes\.txt' is not a Redis user of Tachikoma"):
        acl_file(Passwords(tmp_path))


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("user agent.a on #" + "ab" * 32, {"agent.a": ["ab" * 32]}),
        ("user agent.a on #xyz nopass", {"agent.a": []}),
        ("user agent. on", {}),
        ("user app.x on", {}),
        ("user", {}),
        ("# user agent.a on", {}),
        ("", {}),
    ],
)
def test_agents_are_read_from_a_file(line: str, found: dict[str, list[str]]) -> None:
    assert agents_in(f"{line}\n") == found
