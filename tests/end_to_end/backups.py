"""Backups of a stack's Redis by the command line, and their restoration."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import redis as redis_py

from tachikoma.dev.stack import Stack
from tachikoma.redis.users import BACKUP, rules

__all__ = ["make", "restore"]


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
        "backup", folder, "-o", "json", "--redis-url", stack.redis_url_of(BACKUP), "--identity", stack.identity("user"),
        "--redis-password-file", stack.redis_passwords.path(BACKUP),
        "--audit", stack.data / "audit" / "audit.jsonl", "--journal", stack.data / "agents" / "agent-1",
    )  # fmt: skip


def restore(stack: Stack, backup: Path, folder: Path) -> str:
    """Let Redis start with a backup, and return what the command printed."""
    stack.redis.kill()
    done = tachikoma("restore", backup, folder, "-o", "json")
    assert done.returncode == 0, done
    files = stack.data / "redis"
    for name in ("appendonlydir", "users.acl"):
        target = files / name
        shutil.rmtree(target) if target.is_dir() else target.unlink()
        shutil.move(folder / name, target)
    stack.start_redis()
    return done.stdout
