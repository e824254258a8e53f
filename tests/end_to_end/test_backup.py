"""A backup of a running stack is restored, while orchestrator and agent run on: nothing that was reported is undone."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import redis as redis_py
from support import prepare, request, wait_until

from tachikoma import Client, ExecState, NotFound
from tachikoma.dev.stack import Stack
from tachikoma.redis.users import BACKUP, rules


class RestoredStack(Stack):
    """A stack whose trail lacks what came after the backup, so its books are not compared."""


def tachikoma(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tachikoma", "redis", *map(str, arguments)],
        capture_output=True, text=True, check=False, env=dict(os.environ), timeout=120,
    )  # fmt: skip


def make(stack: Stack, folder: Path) -> subprocess.CompletedProcess[str]:
    """Back the stack up, as a user with no more rights than needed."""
    stack.redis_passwords.make(BACKUP)
    with redis_py.Redis(**stack.redis_admin) as admin:
        admin.execute_command("ACL", "SETUSER", BACKUP, *rules(BACKUP, stack.redis_passwords.hashes(BACKUP)))
    return tachikoma(
        "backup", folder, "--redis-url", stack.redis_url_of(BACKUP), "--identity", stack.identity("user"),
        "--redis-password-file", stack.redis_passwords.path(BACKUP),
        "--audit", stack.data / "audit" / "audit.jsonl", "--journal", stack.data / "agents" / "agent-1",
    )  # fmt: skip


def restore(stack: Stack, backup: Path, folder: Path) -> None:
    """Let Redis start with a backup."""
    stack.redis.kill()
    done = tachikoma("restore", backup, folder)
    assert done.returncode == 0, done
    files = stack.data / "redis"
    for name in ("appendonlydir", "users.acl"):
        target = files / name
        shutil.rmtree(target) if target.is_dir() else target.unlink()
        shutil.move(folder / name, target)
    stack.start_redis()


def test_a_restored_backup_undoes_nothing(tmp_path: Path, redis_server: Path | None) -> None:
    backup = tmp_path / "backup"
    (tmp_path / "data").mkdir()
    with (
        RestoredStack(prepare(tmp_path / "data"), redis_server=redis_server) as stack,
        Client(stack.profile()) as client,
    ):
        before, after = request("seq", "100"), request("seq", "200")
        first = client.execute(before)
        done = make(stack, backup)
        assert done.returncode == 0, done
        assert (backup / "journals" / "agent-1.db").is_file()
        second = client.execute(after)
        restore(stack, backup, tmp_path / "restored")

        def lives() -> list[str]:
            return [event.reason for event in client.audit(limit=1000) if event.event == "redis_life"]

        wait_until(
            lambda: any("is missing, so what was queued before expires" in why for why in lives()), "it is known"
        )
        wait_until(lambda: state(client, after.id) is ExecState.SUCCEEDED, "what the backup does not have is restored")
        for asked, response in ((before, first), (after, second)):
            assert client.status(asked.id).state is ExecState.SUCCEEDED
            assert client.execute(asked).stdout == response.stdout
        assert client.execute(request("true")).exit_code == 0


def state(client: Client, exec_id: str) -> ExecState | None:
    try:
        return client.status(exec_id).state
    except NotFound:
        return None
