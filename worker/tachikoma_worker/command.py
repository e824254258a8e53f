"""`tachikoma worker`."""

from __future__ import annotations

import asyncio
import faulthandler
import logging
import os
import pwd
import sys
from pathlib import Path
from typing import Annotated, Any

import structlog
import typer
from celery import signals

from tachikoma.config import error_reporting, logs
from tachikoma.config.settings import read_settings
from tachikoma.errors import ConfigurationError
from tachikoma.identity.join_token import JoinToken
from tachikoma.vocabulary.limits import capability_mask
from tachikoma.vocabulary.pairs import parse_pairs
from tachikoma_worker.celery_app import make_app, make_worker
from tachikoma_worker.cgroups.cgroups import detect
from tachikoma_worker.confinement.spawner import become_spawner
from tachikoma_worker.engine import joining
from tachikoma_worker.engine.engine import Engine, sweep
from tachikoma_worker.engine.joining import PASSWORD_FILE
from tachikoma_worker.engine.lease import read_lease
from tachikoma_worker.settings import WorkerSettings

__all__ = ["spawner", "worker"]

log = structlog.get_logger(__name__)

#: How long Celery's own end may take beyond the engine's; the timeouts of its connections are in it.
STOP_SLACK_SECONDS = 30.0

CAPABILITY_HELP = "CAP_… that commands run as root may keep where policy grants it; may be repeated."

CGROUP_HELP = "top, own, or the path of a cgroup: where cgroups are made."

spawner = typer.Typer(invoke_without_command=True, help="Run a spawner for a worker that is not root.")
worker = typer.Typer(invoke_without_command=True, help="Run an agent's worker: it runs commands on this host.")


def _labels(given: list[str]) -> dict[str, str]:
    try:
        return parse_pairs(given)
    except ValueError as error:
        raise ConfigurationError(f"--label: {error}") from None


@worker.callback()
def run(
    context: typer.Context,
    agent_id: Annotated[str | None, typer.Option(help="The agent this worker is.")] = None,
    redis_url: Annotated[str | None, typer.Option(help="redis://, rediss:// or unix:///path")] = None,
    identity: Annotated[str | None, typer.Option(help="Folder with the agent's X.509-SVID, or unix:///path.")] = None,
    data: Annotated[Path | None, typer.Option(help="Folder for the journal; keep it.")] = None,
    label: Annotated[list[str] | None, typer.Option(help="name=value; may be repeated.")] = None,
    slots: Annotated[int | None, typer.Option(help="Commands that run at once.")] = None,
    user: Annotated[str | None, typer.Option(help="User for requests that name none.")] = None,
    limits: Annotated[
        str | None, typer.Option(help="enforce, or best-effort where the host cannot enforce a limit.")
    ] = None,
    capability: Annotated[list[str] | None, typer.Option(help=CAPABILITY_HELP)] = None,
    local_policy: Annotated[Path | None, typer.Option(help="A policy file of this agent's own; only narrows.")] = None,
    cgroup: Annotated[str | None, typer.Option(help=CGROUP_HELP)] = None,
    cgroup_name: Annotated[str | None, typer.Option(help="Name of the directory of the cgroups.")] = None,
    sweep_up: Annotated[
        bool, typer.Option("--sweep", help="Only end what a worker left that was killed, and exit.")
    ] = False,
    spawner: Annotated[Path | None, typer.Option(help="Socket of a spawner that runs already.")] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error.")] = None,
    ready_fd: Annotated[int | None, typer.Option(hidden=True)] = None,
) -> None:
    """Run an agent's worker. Every option is also an environment variable TACHIKOMA_…"""
    given = {
        "agent_id": agent_id, "redis_url": redis_url, "identity": identity, "data": data,
        "labels": _labels(label) if label else None, "slots": slots, "user": user, "log_level": log_level,
        "limits": limits, "local_policy": local_policy, "spawner": spawner,
        "cgroup": cgroup, "cgroup_name": cgroup_name, "capabilities": tuple(capability) if capability else None,
    }  # fmt: skip
    if context.invoked_subcommand is not None:
        context.obj = given
        return
    settings = read_settings(WorkerSettings, "worker", **given)
    logs.configure(settings.log_level)
    error_reporting.configure("worker", agent=settings.agent_id)
    if sweep_up:
        asyncio.run(sweep(settings))
        return
    # One line for each message, at the cost of a noticeable part of its handling.
    logging.getLogger("celery.worker.strategy").setLevel(logging.WARNING)
    engine = Engine(settings)
    app = make_app(settings, engine)
    celery_worker = make_worker(app, settings)

    @signals.worker_ready.connect(weak=False)
    def on_ready(**_: Any) -> None:
        log.info("agent.ready", agent=settings.agent_id, slots=settings.slots, pid=os.getpid())
        if ready_fd is not None:
            os.close(ready_fd)

    @signals.worker_shutting_down.connect(weak=False)
    def on_shutting_down(**_: Any) -> None:
        # One that does not end is no agent, and in the way of the next: it is made to, and its log says where it hung.
        # Nothing is lost by that which the next start does not find in journal and spools.
        faulthandler.dump_traceback_later(engine.stop_seconds + STOP_SLACK_SECONDS, exit=True)

    celery_worker.start()
    raise typer.Exit(celery_worker.exitcode or 0)


@worker.command()
def health(context: typer.Context) -> None:
    """Ask Redis whether the worker of these settings, on this host, is online. Exits 1 if not; for health checks."""
    found = asyncio.run(read_lease(read_settings(WorkerSettings, "worker", **context.obj)))
    typer.echo(f"online, {found.running} of {found.slots} slots in use")


@worker.command()
def join(
    token_file: Annotated[Path, typer.Option(help="File with the token of `tachikoma agents enroll`; - is stdin.")],
    identity: Annotated[
        Path, typer.Option(envvar="TACHIKOMA_IDENTITY", help="Folder for the agent's X.509-SVID; made if missing.")
    ],
    redis_password_file: Annotated[
        Path | None,
        typer.Option(
            envvar="TACHIKOMA_REDIS_PASSWORD_FILE",
            help=f"File for the agent's Redis password; {PASSWORD_FILE} in the identity's folder by default.",
        ),
    ] = None,
) -> None:
    """Become an agent with a token: get its identity and its Redis password. The worker renews the identity."""
    try:
        text = sys.stdin.read() if str(token_file) == "-" else token_file.read_text(encoding="ascii")
    except UnicodeDecodeError:
        raise ConfigurationError("what --token-file names holds no token") from None
    except OSError as error:
        # Not its name: that may be a token, given in the place of one.
        raise ConfigurationError(f"cannot read what --token-file names: {error.strerror}") from None
    token = JoinToken.parse(text)
    password_file = redis_password_file or identity / PASSWORD_FILE
    has_password = asyncio.run(joining.join(token, identity, password_file))
    typer.echo(f"{identity}: {token.spiffe_id}")
    if has_password:
        typer.echo(f"{password_file}: its Redis password (TACHIKOMA_REDIS_PASSWORD_FILE)")


@spawner.callback()
def run_spawner(
    agent_id: Annotated[str, typer.Option(envvar="TACHIKOMA_AGENT_ID", help="The agent it is for.")],
    socket: Annotated[Path, typer.Option(envvar="TACHIKOMA_SPAWNER", help="Where to listen.")],
    user: Annotated[str, typer.Option("--worker-user", help="User the worker runs as.")],
    capability: Annotated[list[str] | None, typer.Option(help=CAPABILITY_HELP)] = None,
    cgroup: Annotated[str, typer.Option(envvar="TACHIKOMA_CGROUP", help=CGROUP_HELP)] = "top",
    cgroup_name: Annotated[
        str, typer.Option(envvar="TACHIKOMA_CGROUP_NAME", help="Name of the directory of the cgroups.")
    ] = "tachikoma",
) -> None:
    """Prepare the agent's cgroups for the worker's user and run the spawner. As root, under a service manager."""
    settings = read_settings(
        WorkerSettings, "worker",
        agent_id=agent_id, redis_url="unix:///", data=Path(), cgroup=cgroup,
        cgroup_name=cgroup_name, capabilities=tuple(capability or ()),
    )  # fmt: skip
    try:
        account = pwd.getpwnam(user)
    except KeyError:
        raise ConfigurationError(f"there is no user {user!r} on this host") from None
    cgroups = detect(settings.agent_id, name=settings.cgroup_name, where=settings.cgroup)
    for warning in cgroups.warnings:
        typer.echo(f"tachikoma: {warning}", err=True)
    cgroups.give_to(account.pw_uid, account.pw_gid)
    become_spawner(socket, account.pw_uid, account.pw_gid, capability_mask(settings.capabilities))
