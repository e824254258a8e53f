"""Restoring a backup: it is checked, and laid out as a folder from which a server with `appendonly yes` starts.

A `dump.rdb` beside `appendonly yes` is ignored: the server starts empty, and begins an empty append-only file. So the
copy becomes the base file of an append-only file. Redis 7 and Valkey describe these files in a manifest:
https://redis.io/docs/latest/operate/oss_and_stack/management/persistence/.
"""

from __future__ import annotations

import re
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from tachikoma.audit.chain import read_end
from tachikoma.diagnosis.findings import Finding
from tachikoma.errors import ConfigurationError
from tachikoma.identity.files import write_private
from tachikoma.redis.users import DEFAULT_USER_RULES, ORCHESTRATOR
from tachikoma_orchestrator.commands.redis_backup.manifest import (
    ACL,
    AUDIT,
    JOURNALS,
    SNAPSHOT,
    Manifest,
    content_of,
    read_manifest,
)

__all__ = ["AOF_FOLDER", "Check", "check_backup", "lay_out"]

#: Folder and name of the append-only file, as `appenddirname` and `appendfilename` are by default.
AOF_FOLDER, AOF = "appendonlydir", "appendonly.aof"
#: First bytes of the format, and its last operation, which eight bytes of a checksum follow.
_MAGIC, _END, _CHECKSUM_BYTES = (b"REDIS", b"VALKEY"), 0xFF, 8
#: End of the name of a full file of an audit log.
_FULL = re.compile("-[0-9]{12}$")
_AGAIN = "use another backup"


@dataclass(frozen=True, slots=True)
class Check:
    """The result of a check."""

    manifest: Manifest
    #: Why the backup cannot be used.
    damage: list[Finding]
    #: What to do after the restore.
    remarks: list[Finding]


def check_backup(backup: Path) -> Check:
    """Check a backup: nothing is missing or altered, and its files are what they should be.

    Raises:
        ConfigurationError: the folder is no complete backup.
    """
    manifest = read_manifest(backup)
    try:
        damage, remarks = list(_altered(backup, manifest)), list[Finding]()
        if not damage:
            damage = [*_snapshot_findings(backup), *_journal_findings(backup)]
            remarks = [*_acl_findings(backup), *_audit_findings(backup, manifest)]
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"cannot read the backup {backup}: {error}") from error
    return Check(manifest, damage, remarks)


def lay_out(backup: Path, folder: Path) -> None:
    """Lay a checked backup out in a folder that is missing or empty: the server's `dir`, with its users.

    Raises:
        ConfigurationError: the folder is not empty, or cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if any(folder.iterdir()):
            raise ConfigurationError(f"{folder} is not empty; move its files away first")
        files = folder / AOF_FOLDER
        files.mkdir(mode=0o700)
        shutil.copyfile(backup / SNAPSHOT, files / f"{AOF}.1.base.rdb")
        (files / f"{AOF}.1.base.rdb").chmod(0o600)
        write_private(files / f"{AOF}.1.incr.aof", b"")
        lines = f"file {AOF}.1.base.rdb seq 1 type b\nfile {AOF}.1.incr.aof seq 1 type i\n"
        write_private(files / f"{AOF}.manifest", lines.encode())
        write_private(folder / ACL, (backup / ACL).read_bytes())
    except OSError as error:
        raise ConfigurationError(f"cannot restore into {folder}: {error}") from error


def _altered(backup: Path, manifest: Manifest) -> Iterator[Finding]:
    for name, content in {SNAPSHOT: None, ACL: None, **manifest.files}.items():
        file = backup / name
        if content is None or not file.is_file():
            yield Finding(where=name, what="is missing", remedy=_AGAIN)
        elif (found := content_of(file)) != content:
            changed = "other content" if found.size == content.size else f"{found.size} bytes of {content.size}"
            yield Finding(where=name, what=f"is altered: it has {changed}", remedy=_AGAIN)


def _snapshot_findings(backup: Path) -> Iterator[Finding]:
    with (backup / SNAPSHOT).open("rb") as file:
        begin = file.read(len(max(_MAGIC)))
        file.seek(-_CHECKSUM_BYTES - 1, 2)
        end = file.read(1)
    if not begin.startswith(_MAGIC) or end != bytes([_END]):
        yield Finding(where=SNAPSHOT, what="is no complete copy of a Redis", remedy=_AGAIN)


def _acl_findings(backup: Path) -> Iterator[Finding]:
    lines = (backup / ACL).read_text(encoding="utf-8").splitlines()
    rules = {name: words for _, name, *words in (line.split() for line in lines)}
    if "on" not in rules.get(ORCHESTRATOR, ()):
        yield Finding(
            where=ACL,
            what=f"has no user {ORCHESTRATOR} that may connect",
            remedy="after the restore, load what `tachikoma redis acl` prints",
        )
    if not set(DEFAULT_USER_RULES.split()) - {"off"} <= set(rules.get("default", ())):
        yield Finding(
            where=ACL,
            what="has a user `default` with which a restart of Redis before 7.4 loses data (redis#14541)",
            remedy="after the restore, load what `tachikoma redis acl` prints",
        )


def _audit_findings(backup: Path, manifest: Manifest) -> Iterator[Finding]:
    for folder in sorted((backup / AUDIT).glob("*")):
        # The full files by their first line, then the current one.
        files = sorted(folder.iterdir(), key=lambda file: (_FULL.search(file.stem) is None, file.name))
        try:
            last = read_end(files).seq
        except ValueError as error:
            yield Finding(where=str(folder.relative_to(backup)), what=f"is no audit log: {error}", remedy=_AGAIN)
            continue
        if last < manifest.audit_seq:
            yield Finding(
                where=str(folder.relative_to(backup)),
                what=f"ends at event {last}, and Redis had {manifest.audit_seq}: the log is behind or another one's",
                remedy="keep the audit logs of the orchestrators, and do not replace them by these",
            )


def _journal_findings(backup: Path) -> Iterator[Finding]:
    for file in sorted((backup / JOURNALS).glob("*.db")):
        try:
            with closing(sqlite3.connect(f"{file.resolve().as_uri()}?mode=ro&immutable=1", uri=True)) as journal:
                ((answer,),) = journal.execute("PRAGMA integrity_check").fetchall()
        except (sqlite3.Error, ValueError) as error:
            answer = str(error)
        if answer != "ok":
            yield Finding(
                where=str(file.relative_to(backup)), what=f"is no whole journal: {answer[:200]}", remedy=_AGAIN
            )
