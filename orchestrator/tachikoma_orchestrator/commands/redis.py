"""`tachikoma redis`: it makes the users of a Redis server, and checks the server."""

from __future__ import annotations

import asyncio
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from tachikoma.cli.output import Output, OutputOption, show_value
from tachikoma.cli.tables import printable
from tachikoma.config.settings import read_settings
from tachikoma.diagnosis.findings import RedisReport
from tachikoma.errors import ConfigurationError
from tachikoma.identity.open import open_identity
from tachikoma.redis.access import RedisAccess, RedisSettings
from tachikoma.redis.acl_file import acl_file, agents_in, sentinel_acl_file
from tachikoma.redis.passwords import Passwords
from tachikoma.redis.users import (
    BACKUP,
    CHECK,
    ENROLLER,
    REPLICA,
    SENTINEL,
    SERVICES,
    agent_user,
    application_user,
    rules,
)
from tachikoma.vocabulary.types import IdentityPlace
from tachikoma_orchestrator.commands.options import Identity, RedisUrl
from tachikoma_orchestrator.commands.redis_backup.commands import backup, restore
from tachikoma_orchestrator.commands.redis_check.everywhere import examine_all

__all__ = ["redis"]

redis = typer.Typer(
    no_args_is_help=True, help="Create the users of a Redis server, check the server, back it up and restore it."
)
redis.command()(backup)
redis.command()(restore)


class Format(StrEnum):
    """Values of `--format`."""

    ACLFILE = "aclfile"
    SETUSER = "setuser"
    SENTINEL = "sentinel"


class CheckSettings(RedisSettings):
    """The settings of the check: the orchestrator's, from the same environment variables."""

    #: Identity to show to Redis over TLS: a folder with an X.509-SVID, or unix:///path of the Workload API.
    identity: IdentityPlace | None = None
    #: Whether the orchestrators need WAITAOF, as their own setting of this name says.
    audit_durable: bool = True


FormatOption = Annotated[
    Format,
    typer.Option(
        "--format", help="aclfile: all users; setuser: commands for redis-cli; sentinel: the file of the Sentinels."
    ),
]


@redis.command()
def acl(
    passwords: Annotated[
        Path, typer.Option(help="Folder with a password file for each user; missing ones are generated.")
    ],
    agent: Annotated[list[str] | None, typer.Option(help="An agent that may connect. May be repeated.")] = None,
    application: Annotated[
        list[str] | None, typer.Option(help="A Celery application that may request commands. May be repeated.")
    ] = None,
    enroller: Annotated[
        bool,
        typer.Option("--enroller", help="Add the user enroller, with which orchestrators create the users of agents."),
    ] = False,
    with_backup: Annotated[bool, typer.Option("--backup", help="Add the user of `redis backup`.")] = False,
    sentinel: Annotated[
        bool, typer.Option("--sentinel", help="Add the users of replicas and Sentinels, for several servers.")
    ] = False,
    keep: Annotated[
        Path | None,
        typer.Option(help="The server's ACL file; agents that joined keep their users and passwords in it."),
    ] = None,
    form: FormatOption = Format.ACLFILE,
) -> None:
    """Print the Redis users of all parts, as an ACL file or as commands.

    The ACL file contains all agents and applications that have a file in the folder of passwords. The commands of
    --format setuser are for the users that --agent and --application name, or for all. Passwords are printed as their
    SHA-256.
    """
    kept = Passwords(passwords)
    named = [*map(agent_user, agent or []), *map(application_user, application or [])]
    sentinel = sentinel or form is Format.SENTINEL
    optional = [*([ENROLLER] if enroller else []), *([BACKUP] if with_backup else [])]
    optional += [REPLICA, SENTINEL] if sentinel else []
    _make_missing(kept, [*SERVICES, *optional, *named])
    if form is Format.SENTINEL:
        typer.echo(sentinel_acl_file(kept), nl=False)
        return
    if form is Format.ACLFILE:
        typer.echo(acl_file(kept, joined={} if keep is None else _joined(keep)), nl=False)
        return
    for user in named or kept.users():
        typer.echo(f"ACL SETUSER {user} {' '.join(rules(user, kept.hashes(user)))}")


def _make_missing(kept: Passwords, users: list[str]) -> None:
    """Make the passwords that do not exist yet, and report each."""
    before = set(kept.users())
    for user in users:
        kept.make(user)
    for user in kept.users():
        if user not in before:
            typer.echo(f"made {kept.path(user)}", err=True)


def _joined(file: Path) -> dict[str, list[str]]:
    """Return the agents that joined, with the SHA-256 of their passwords, from an ACL file.

    Raises:
        ConfigurationError: the file cannot be read.
    """
    try:
        return agents_in(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"cannot read the ACL file {file}: {error}") from error


@redis.command()
def check(
    passwords: Annotated[Path | None, typer.Option(help="Folder of `redis acl`, to compare with the users.")] = None,
    redis_url: RedisUrl = None,
    redis_user: Annotated[str | None, typer.Option(help=f"ACL user; by default {CHECK}.")] = None,
    redis_password_file: Annotated[
        Path | None, typer.Option(help="File with the password of that user; by default the one in --passwords.")
    ] = None,
    identity: Identity = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Compare a live Redis with the requirements. Exits 1 if there is a finding.

    With the URL of Sentinels, each replica and each Sentinel is checked too.
    """
    kept = None
    if passwords is not None:
        if not passwords.is_dir():
            raise ConfigurationError(f"{passwords} is not a folder of passwords; `tachikoma redis acl` creates one")
        kept = Passwords(passwords)
        redis_password_file = redis_password_file or kept.path(redis_user or CHECK)
    settings = read_settings(
        CheckSettings, "redis",
        redis_url=redis_url, redis_user=redis_user, redis_password_file=redis_password_file,
        identity=identity,
    )  # fmt: skip
    svid = None if settings.identity is None else open_identity(settings.identity)
    access = RedisAccess.of(settings, identity=svid, user=CHECK)
    report = asyncio.run(examine_all(access, passwords=kept, durable=settings.audit_durable))
    show_value(report, output, text=_show)
    if report.findings:
        raise typer.Exit(1)


def _show(report: RedisReport) -> None:
    agents = "1 agent" if len(report.agents) == 1 else f"{len(report.agents)} agents"
    if not report.findings:
        typer.echo(f"{report.version}, {agents}: all as it should be")
        return
    for item in report.findings:
        typer.echo(printable(f"{item.where}: {item.what}"))
        typer.echo(printable(f"  {item.remedy}"))
    number = "1 finding" if len(report.findings) == 1 else f"{len(report.findings)} findings"
    typer.echo(f"{report.version}, {agents}: {number}")
