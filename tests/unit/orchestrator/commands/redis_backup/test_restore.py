"""A backup is checked, and laid out for a server. Real servers start from it in tests/integration."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tachikoma.audit.chain import ChainEnd
from tachikoma.errors import ConfigurationError
from tachikoma.redis.users import DEFAULT_USER_RULES
from tachikoma_orchestrator.commands.redis_backup.manifest import (
    ACL,
    AUDIT,
    JOURNALS,
    MANIFEST,
    SNAPSHOT,
    Manifest,
    content_of,
)
from tachikoma_orchestrator.commands.redis_backup.restore import AOF_FOLDER, check_backup, lay_out

RDB = b"REDIS0011" + b"content" + b"\xff" + b"checksum"
USERS = f"user default {DEFAULT_USER_RULES}\nuser orchestrator on #{'0' * 64} +ping\n"
#: Number of the latest audit event that Redis had.
SEQ = 5


def write(folder: Path, *, rdb: bytes = RDB, users: str = USERS, last_event: int = SEQ) -> None:
    """Write a backup with an audit log and a journal."""
    for name in (f"{AUDIT}/1", JOURNALS):
        (folder / name).mkdir(parents=True)
    (folder / SNAPSHOT).write_bytes(rdb)
    (folder / ACL).write_text(users)
    line, _ = ChainEnd().append("event", {"cursor": "1-1", "seq": last_event})
    (folder / AUDIT / "1" / "audit.jsonl").write_bytes(line + b"\n")
    with closing(sqlite3.connect(folder / JOURNALS / "web-1.db")) as journal:
        journal.execute("CREATE TABLE execution (id TEXT)")
        journal.commit()
    seal(folder)


def seal(folder: Path) -> None:
    """Write the manifest of what is there."""
    (folder / MANIFEST).unlink(missing_ok=True)
    files = {str(file.relative_to(folder)): content_of(file) for file in folder.rglob("*") if file.is_file()}
    manifest = Manifest(
        made_at=datetime.now(UTC), server="x", replid="ab", offset=1, keys=1, audit_seq=SEQ, files=files
    )
    (folder / MANIFEST).write_text(manifest.model_dump_json())


@pytest.fixture
def backup(tmp_path: Path) -> Path:
    folder = tmp_path / "backup"
    write(folder)
    return folder


def test_a_whole_backup_has_no_finding(backup: Path) -> None:
    result = check_backup(backup)
    assert (result.damage, result.remarks, result.manifest.audit_seq) == ([], [], SEQ)


@pytest.mark.parametrize("name", [SNAPSHOT, ACL, f"{AUDIT}/1/audit.jsonl", f"{JOURNALS}/web-1.db"])
@pytest.mark.parametrize(
    "damage",
    [
        lambda file: file.unlink(),
        lambda file: file.write_bytes(file.read_bytes()[:-1]),
        lambda file: file.write_bytes(bytes([file.read_bytes()[0] ^ 1]) + file.read_bytes()[1:]),
        lambda file: file.write_bytes(b""),
    ],
)
def test_each_damaged_file_is_named(backup: Path, name: str, damage: Callable[[Path], object]) -> None:
    damage(backup / name)
    result = check_backup(backup)
    assert [item.where for item in result.damage] == [name]
    assert all(item.what and item.remedy for item in result.damage)


def test_a_manifest_that_names_no_data_is_not_enough(backup: Path) -> None:
    content = json.loads((backup / MANIFEST).read_text())
    for name in (SNAPSHOT, ACL):
        del content["files"][name]
    (backup / MANIFEST).write_text(json.dumps(content))
    assert {item.where for item in check_backup(backup).damage} == {SNAPSHOT, ACL}


@pytest.mark.parametrize("rdb", [b"x" * 30, RDB[:-9] + b"\xfechecksum", b"REDIS0011 and nothing else"])
def test_data_in_another_format_is_found(tmp_path: Path, rdb: bytes) -> None:
    write(tmp_path / "backup", rdb=rdb)
    assert [item.where for item in check_backup(tmp_path / "backup").damage] == [SNAPSHOT]


def test_valkey_has_its_own_magic_bytes(tmp_path: Path) -> None:
    write(tmp_path / "backup", rdb=b"VALKEY080" + RDB)
    assert check_backup(tmp_path / "backup").damage == []


@pytest.mark.parametrize(
    "users",
    [
        "user default off\nuser orchestrator on +ping\n",
        f"user default {DEFAULT_USER_RULES}\n",
        f"user default {DEFAULT_USER_RULES}\nuser orchestrator off +ping\n",
        "user default off ~* &* +get\nuser orchestrator on\n",
    ],
)
def test_users_with_which_nothing_would_work_are_remarked(tmp_path: Path, users: str) -> None:
    write(tmp_path / "backup", users=users)
    result = check_backup(tmp_path / "backup")
    assert ([item.where for item in result.remarks], result.damage) == ([ACL], [])


def test_an_audit_log_that_is_behind_or_none_is_remarked(tmp_path: Path) -> None:
    write(tmp_path / "behind", last_event=SEQ - 1)
    (finding,) = check_backup(tmp_path / "behind").remarks
    assert f"ends at event {SEQ - 1}, and Redis had {SEQ}" in finding.what
    write(tmp_path / "ahead", last_event=SEQ + 1)
    assert check_backup(tmp_path / "ahead").remarks == []
    for content in ("no JSON\n", "[" * 100_000 + "\n", '{"line":Infinity}\n', "5\n", '{"line":1,"event":{}}\n'):
        (tmp_path / "ahead" / AUDIT / "1" / "audit.jsonl").write_text(content)
        seal(tmp_path / "ahead")
        assert "is no audit log" in check_backup(tmp_path / "ahead").remarks[0].what


@pytest.mark.parametrize("users", ["user\n", "\n", "x\n", "\udcff"])
def test_users_that_cannot_be_read_are_an_error_in_words(backup: Path, users: str) -> None:
    (backup / ACL).write_bytes(users.encode(errors="surrogateescape"))
    seal(backup)
    with pytest.raises(ConfigurationError, match="cannot read the backup"):
        check_backup(backup)


def test_a_journal_that_is_no_database_is_found(backup: Path) -> None:
    (backup / JOURNALS / "web-1.db").write_bytes(b"no database" * 100)
    seal(backup)
    assert [item.where for item in check_backup(backup).damage] == [f"{JOURNALS}/web-1.db"]


def test_it_becomes_an_append_only_file_with_the_users_beside_it(backup: Path, tmp_path: Path) -> None:
    folder = tmp_path / "new"
    lay_out(backup, folder)
    files = folder / AOF_FOLDER
    assert (files / "appendonly.aof.1.base.rdb").read_bytes() == RDB
    assert (files / "appendonly.aof.1.incr.aof").read_bytes() == b""
    assert (folder / ACL).read_text() == USERS
    assert all(file.stat().st_mode & 0o077 == 0 for file in folder.rglob("*"))
    with pytest.raises(ConfigurationError, match="is not empty"):
        lay_out(backup, folder)
    with pytest.raises(ConfigurationError, match="cannot restore into"):
        lay_out(tmp_path / "nothing", tmp_path / "other")
