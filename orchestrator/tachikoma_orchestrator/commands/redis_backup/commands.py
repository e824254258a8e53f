"""`tachikoma redis backup` and `tachikoma redis restore`."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from tachikoma.cli.output import Output, OutputOption, show_value
from tachikoma.cli.tables import printable
from tachikoma.config.settings import read_settings
from tachikoma.diagnosis.findings import BackupFacts, RestoreReport
from tachikoma.errors import ConfigurationError
from tachikoma.identity.open import open_identity
from tachikoma.redis.access import RedisAccess, RedisSettings
from tachikoma.redis.users import BACKUP
from tachikoma.vocabulary.types import IdentityPlace
from tachikoma_orchestrator.commands.options import Identity, RedisUrl
from tachikoma_orchestrator.commands.redis_backup.backup import make_backup
from tachikoma_orchestrator.commands.redis_backup.manifest import Manifest
from tachikoma_orchestrator.commands.redis_backup.restore import check_backup, lay_out

__all__ = ["backup", "restore"]


class BackupSettings(RedisSettings):
    """The settings of a backup: access to Redis, from the same environment variables as the orchestrator's."""

    #: Identity to show to Redis over TLS: a folder with an X.509-SVID, or unix:///path of the Workload API.
    identity: IdentityPlace | None = None


def backup(
    folder: Annotated[Path, typer.Argument(help="Folder of the backup; it must be missing or empty.")],
    redis_url: RedisUrl = None,
    redis_user: Annotated[str | None, typer.Option(help=f"ACL user; by default {BACKUP}.")] = None,
    redis_password_file: Annotated[Path | None, typer.Option(help="File with the password of that user.")] = None,
    identity: Identity = None,
    audit: Annotated[list[Path] | None, typer.Option(help="Audit log to copy as well. May be repeated.")] = None,
    journal: Annotated[
        list[Path] | None,
        typer.Option(help="Data folder of an agent, to copy its journal as well. May be repeated."),
    ] = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Copy everything in a running Redis, with its users. The copy is consistent, and the server keeps running."""
    settings = read_settings(
        BackupSettings, "redis",
        redis_url=redis_url, redis_user=redis_user, redis_password_file=redis_password_file, identity=identity,
    )  # fmt: skip
    svid = None if settings.identity is None else open_identity(settings.identity)
    access = RedisAccess.of(settings, identity=svid, user=BACKUP)
    manifest = asyncio.run(make_backup(access, folder, audit=audit or (), journals=journal or ()))
    show_value(_facts(folder, manifest), output, text=_show_backup)


def restore(
    folder: Annotated[Path, typer.Argument(help="Folder of the backup.")],
    into: Annotated[
        Path | None, typer.Argument(help="Folder in which a Redis server will start; it must be missing or empty.")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Only check the backup. Exits 1 if there is a finding.")
    ] = False,
    output: OutputOption = Output.TEXT,
) -> None:
    """Check a backup, and lay it out so that a server with `appendonly yes` starts with it.

    Such a server ignores a dump.rdb, and would start empty."""
    if check == (into is not None):
        raise ConfigurationError("name the folder of the server, or use --check")
    found = check_backup(folder)
    restored = None if found.damage else into
    if restored is not None:
        lay_out(folder, restored)
    report = RestoreReport(
        backup=_facts(folder, found.manifest),
        restored_into="" if restored is None else str(restored),
        damage=tuple(found.damage),
        remarks=tuple(found.remarks),
    )
    failed = bool(report.damage or (check and report.remarks))
    show_value(report, output, text=lambda report: _show_report(report, failed=failed))
    if failed:
        raise typer.Exit(1)


def _facts(folder: Path, manifest: Manifest) -> BackupFacts:
    return BackupFacts(
        folder=str(folder),
        made_at=manifest.made_at,
        server=manifest.server,
        keys=manifest.keys,
        audit_seq=manifest.audit_seq,
        files=len(manifest.files),
        total_bytes=sum(content.size for content in manifest.files.values()),
    )


def _show_backup(facts: BackupFacts) -> None:
    summary = (
        f"{facts.folder}: {facts.keys} keys of {facts.server} up to audit event {facts.audit_seq}, "
        f"{facts.made_at:%Y-%m-%d %H:%M:%S} UTC, {facts.files} files, {facts.total_bytes / 1e6:.1f} MB"
    )
    typer.echo(printable(summary))


def _show_report(report: RestoreReport, *, failed: bool) -> None:
    for item in (*report.damage, *report.remarks):
        typer.echo(printable(f"{item.where}: {item.what}"), err=True)
        typer.echo(printable(f"  {item.remedy}"), err=True)
    if failed:
        return
    _show_backup(report.backup)
    if into := report.restored_into:
        typer.echo(
            printable(
                f"restored into {into}. Give the folder to the user of Redis, and start the server with: dir {into}, "
                f"aclfile {into}/users.acl, appendonly yes. Keep orchestrators and agents running: they know what "
                "happened since the backup. Do not restore journals and audit logs of hosts that still have theirs."
            )
        )
