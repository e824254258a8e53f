"""Passwords of Redis users, in files."""

from __future__ import annotations

import hashlib
import stat
from pathlib import Path

import pytest

from tachikoma.errors import ConfigurationError
from tachikoma.redis.passwords import Passwords, read_password


def test_a_password_is_generated_once_and_readable_by_its_owner_only(tmp_path: Path) -> None:
    passwords = Passwords(tmp_path / "new" / "folder")
    passwords.make("orchestrator")
    path = passwords.path("orchestrator")
    password = read_password(path)
    assert len(bytes.fromhex(password)) == 32
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(passwords.folder.stat().st_mode) == 0o700
    passwords.make("orchestrator")
    assert read_password(path) == password
    passwords.make("flower")
    assert read_password(passwords.path("flower")) != password


def test_redis_accepts_every_line_and_clients_use_the_first(tmp_path: Path) -> None:
    passwords = Passwords(tmp_path)
    (tmp_path / "beat").write_text("new\nold\n")
    assert read_password(passwords.path("beat")) == "new"
    assert passwords.hashes("beat") == [hashlib.sha256(word).hexdigest() for word in (b"new", b"old")]


def test_users_are_the_files_services_first(tmp_path: Path) -> None:
    passwords = Passwords(tmp_path)
    for user in ("agent.b", "enroller", "app.x", "flower", "agent.a", "orchestrator"):
        passwords.make(user)
    (tmp_path / ".hidden").write_text("x")
    assert passwords.users() == ["orchestrator", "flower", "enroller", "agent.a", "agent.b", "app.x"]


@pytest.mark.parametrize("user", ["nobody", "agent.", "agent.a.b", "app.", "../x"])
def test_no_password_is_made_for_other_names(tmp_path: Path, user: str) -> None:
    with pytest.raises(ConfigurationError, match="is not a Redis user of Tachikoma"):
        Passwords(tmp_path).make(user)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_or_file_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text(" \n")
    with pytest.raises(ConfigurationError, match="cannot use the folder of passwords"):
        Passwords(tmp_path / "file")
    with pytest.raises(ConfigurationError, match=r"there is no password in .*file; `tachikoma redis acl` gen"):
        read_password(tmp_path / "file")
    with pytest.raises(ConfigurationError, match="cannot read the Redis password"):
        read_password(tmp_path / "missing")
    passwords = Passwords(tmp_path / "gone")
    passwords.folder.rmdir()
    with pytest.raises(ConfigurationError, match="cannot write the password of beat"):
        passwords.make("beat")
