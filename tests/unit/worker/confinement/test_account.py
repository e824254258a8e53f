"""The user that a command runs as."""

from __future__ import annotations

import os
import pwd
from typing import Any

import pytest

from tachikoma_worker.confinement import account as module
from tachikoma_worker.confinement.account import Account, account, user_name
from tachikoma_worker.confinement.refusals import Refused

NOBODY = pwd.getpwnam("nobody").pw_uid
ACCOUNT = Account("app", 1000, 1000, "/home/app", (1000, 4))


def found(mode: int, uid: int = 0, gid: int = 0) -> os.stat_result:
    return os.stat_result((mode, 0, 0, 1, uid, gid, 0, 0, 0, 0))


@pytest.mark.parametrize(
    ("mode", "uid", "gid", "may"),
    [
        (0o100, 1000, 0, True), (0o077, 1000, 1000, False),
        (0o010, 0, 1000, True), (0o010, 0, 4, True), (0o701, 0, 4, False),
        (0o001, 0, 0, True), (0o770, 0, 0, False),
    ],
)  # fmt: skip
def test_the_most_specific_permission_bits_count(mode: int, uid: int, gid: int, may: bool) -> None:
    assert ACCOUNT.may_execute(found(mode, uid, gid)) is may


def test_root_may_execute_what_anybody_may() -> None:
    root = Account("root", 0, 0, "/root", (0,))
    assert root.may_execute(found(0o001, 5, 5))
    assert not root.may_execute(found(0o666))


def test_a_spawner_of_root_runs_commands_as_nobody_unless_a_user_is_named() -> None:
    assert account("", "", 0).name == "nobody"
    assert account("", "daemon", 0).name == "daemon"
    assert account("daemon", "nobody", 0).name == "daemon"


def test_root_runs_commands_only_where_root_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert account("root", "", 0).uid == account("", "root", 0).uid == 0

    def alias(name: str) -> Any:
        return pwd.struct_passwd(("toor", "x", 0, 0, "", "/root", "/bin/sh"))

    monkeypatch.setattr(module.pwd, "getpwnam", alias)
    # An entry that is found by another name than it has, as some directories do.
    with pytest.raises(Refused, match="root only if"):
        account("TOOR", "", 0)


def test_a_spawner_that_is_not_root_cannot_become_another_user() -> None:
    assert account("", "", NOBODY).uid == NOBODY
    with pytest.raises(Refused, match="runs as nobody and cannot become root"):
        account("root", "", NOBODY)


def test_a_user_that_does_not_exist_is_named() -> None:
    with pytest.raises(Refused, match="there is no user 'no-such-user' on this agent"):
        account("no-such-user", "", 0)


def test_a_spawner_whose_user_has_no_name_runs_commands_by_number() -> None:
    unnamed = account("", "", 123_456)
    assert (unnamed.name, unnamed.uid, unnamed.home) == ("123456", 123_456, "/")
    assert user_name(123_456) == "123456"
    assert user_name(0) == "root"
