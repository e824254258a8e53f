"""Making a backup: a copy of Redis, its users, and copies of audit logs and of agents' journals."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from redis.exceptions import RedisError

from tachikoma.audit.chain import audit_files
from tachikoma.errors import ConfigurationError, Unavailable
from tachikoma.identity.files import write_private
from tachikoma.redis import keys
from tachikoma.redis.access import RedisAccess, connect
from tachikoma_orchestrator.commands.redis_backup.manifest import (
    ACL,
    AUDIT,
    JOURNALS,
    MANIFEST,
    SNAPSHOT,
    Manifest,
    content_of,
)
from tachikoma_orchestrator.commands.redis_backup.snapshot import copy_snapshot
from tachikoma_orchestrator.commands.redis_check.server import version_of

__all__ = ["make_backup"]

#: Name of an agent's journal in its data folder.
JOURNAL = "journal.db"


@dataclass(frozen=True, slots=True)
class _Server:
    """The facts that are read from a server before it is copied."""

    version: str
    keys: int
    audit_seq: int
    acl: str


async def make_backup(
    access: RedisAccess, folder: Path, *, audit: Iterable[Path], journals: Iterable[Path]
) -> Manifest:
    """Make a backup in a new folder.

    Args:
        access: Redis, as the user `backup`.
        folder: the folder of the backup; it must be missing or empty.
        audit: audit logs to copy, each the current file of a chain.
        journals: data folders of agents whose journals are copied.

    Raises:
        ConfigurationError: the folder is not empty, or a file cannot be read.
        Unavailable: Redis cannot be copied.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if any(folder.iterdir()):
            raise ConfigurationError(f"{folder} is not empty; name a new folder for each backup")
        server = await _read(access)
        snapshot = copy_snapshot(access, folder / SNAPSHOT)
        write_private(folder / ACL, server.acl.encode())
        # After Redis: what an audit log or a journal has in addition is known when the backup is restored.
        for number, log in enumerate(audit, 1):
            _copy_log(log, folder / AUDIT / str(number))
        for data in journals:
            _copy_journal(data, folder / JOURNALS)
        files = {
            str(file.relative_to(folder)): content_of(file) for file in sorted(folder.rglob("*")) if file.is_file()
        }
        manifest = Manifest(
            made_at=datetime.now(UTC), server=server.version, replid=snapshot.replid, offset=snapshot.offset,
            keys=server.keys, audit_seq=server.audit_seq, files=files,
        )  # fmt: skip
        write_private(folder / MANIFEST, manifest.model_dump_json(indent=2).encode() + b"\n")
    except OSError as error:
        raise ConfigurationError(f"cannot make the backup in {folder}: {error}") from error
    return manifest


async def _read(access: RedisAccess) -> _Server:
    client = connect(access, name="redis-backup", max_connections=1)
    try:
        info = await client.info()
        lines = await client.acl_list()
        number = await client.get(keys.AUDIT_SEQ)
        texts = [line.decode() if isinstance(line, bytes) else line for line in lines]
        database = info.get("db0", {})
        return _Server(
            version_of(info), int(database.get("keys", 0)), int(number or 0), "".join(f"{text}\n" for text in texts)
        )
    except (RedisError, OSError, ValueError) as error:
        raise Unavailable(f"cannot read Redis: {error}", metadata={"dependency": "redis"}) from error
    finally:
        await client.aclose()


def _copy_log(log: Path, target: Path) -> None:
    """Copy the files of an audit log, which may be written meanwhile: up to the last complete line."""
    target.parent.mkdir(exist_ok=True, mode=0o700)
    target.mkdir(mode=0o700)
    for file in audit_files(log):
        copy = target / file.name
        shutil.copyfile(file, copy)
        with copy.open("rb+") as opened:
            whole = opened.read().rfind(b"\n") + 1
            opened.truncate(whole)
        copy.chmod(0o600)


def _copy_journal(data: Path, target: Path) -> None:
    """Copy an agent's journal, which may be in use, in a consistent state."""
    source = data / JOURNAL
    if not source.is_file():
        raise ConfigurationError(f"{data} is no data folder of an agent: it has no {JOURNAL}")
    target.mkdir(exist_ok=True, mode=0o700)
    copy = target / f"{data.resolve().name}.db"
    os.close(os.open(copy, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    try:
        with (
            closing(sqlite3.connect(f"{source.resolve().as_uri()}?mode=ro", uri=True)) as journal,
            closing(sqlite3.connect(copy)) as into,
        ):
            journal.backup(into)
    except sqlite3.Error as error:
        raise ConfigurationError(f"cannot copy the journal {source}: {error}") from error
