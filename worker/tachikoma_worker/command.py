"""The commands `tachikoma worker` and `tachikoma spawner`."""

from __future__ import annotations

import asyncio
import faulthandler
import os
import pwd
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import structlog
import typer

from tachikoma.cli.host_setup import JoinedAgent, report_steps
from tachikoma.cli.output import Output, OutputOption, show_value
from tachikoma.client.membership import joining
from tachikoma.client.membership.token_file import read_token
from tachikoma.config import error_reporting, logs, stages, trace_export
from tachikoma.config.readiness import report_ready
from tachikoma.config.settings import read_settings
from tachikoma.diagnosis.findings import Health
from tachikoma.errors import ConfigurationError
from tachikoma.identity.join_token import JoinToken, agent_of
from tachikoma.setup.layout import Layout
from tachikoma.setup.steps import Host
from tachikoma.vocabulary.limits import capability_mask
from tachikoma_worker.celery_app import make_app, run_worker
from tachikoma_worker.cgroups.detect import detect
from tachikoma_worker.confinement.launch import become_spawner
from tachikoma_worker.engine.descriptors import fitting_slots
from tachikoma_worker.engine.engine import Engine
from tachikoma_worker.engine.lease import read_lease
from tachikoma_worker.engine.takeover import sweep
from tachikoma_worker.installation import Installation
from tachikoma_worker.options import CAPABILITY_HELP, CGROUP_HELP, CGROUP_NAME_HELP, WorkerOptions, with_options
from tachikoma_worker.settings import PASSWORD_FILE, WorkerSettings

__all__ = ["spawner", "worker"]

log = structlog.get_logger(__name__)

#: Time that Celery may take to stop beyond the engine's own bound; the timeouts of its connections are part of it.
STOP_SLACK_SECONDS = 30.0

spawner = typer.Typer(invoke_without_command=True, help="Run a spawner for a worker that is not root.")
worker = typer.Typer(invoke_without_command=True, help="Run an agent's worker, which runs commands on this host.")


@worker.callback()
@with_options(WorkerOptions)
def run(context: typer.Context, options: WorkerOptions) -> None:
    """Run an agent's worker. Every option is also an environment variable TACHIKOMA_…"""
    given = options.settings()
    if context.invoked_subcommand is not None:
        context.obj = given
        return
    settings = read_settings(WorkerSettings, "worker", **given)
    logs.configure(settings.log_level)
    error_reporting.configure("worker", agent=settings.agent_id)
    if options.sweep_up:
        asyncio.run(sweep(settings))
        return
    raise typer.Exit(_run_worker(settings, options.ready_fd))


def _run_worker(settings: WorkerSettings, ready_fd: int | None) -> int:
    """Run a worker until it is stopped.

    Args:
        settings: its settings.
        ready_fd: descriptor for a report once it receives orders (`report_ready`); None for none.

    Returns:
        The exit code of the process.
    """
    settings = settings.model_copy(update={"slots": fitting_slots(settings.slots)})
    if settings.stages is not None:
        stages.write_to(settings.stages)
    trace_export.configure("worker", agent=settings.agent_id)
    engine = Engine.open(settings)
    if settings.worker_metrics is not None:
        # Imported here, since an agent whose metrics nobody reads needs no memory for it.
        from tachikoma_worker.metrics import serve_metrics

        serve_metrics(settings.worker_metrics, engine.heartbeat)

    def on_ready() -> None:
        log.info("agent.ready", agent=settings.agent_id, slots=settings.slots, pid=os.getpid())
        report_ready(ready_fd)

    def on_stopping() -> None:
        # A worker that hangs while it stops blocks the next one. So it is ended, and its log says where it hung. The
        # next start finds everything in journal and spools.
        faulthandler.dump_traceback_later(engine.stop_seconds + STOP_SLACK_SECONDS, exit=True)

    return run_worker(make_app(settings, engine), settings, on_ready=on_ready, on_stopping=on_stopping)


@worker.command()
def health(context: typer.Context, output: OutputOption = Output.TEXT) -> None:
    """Check whether the worker with these settings is online on this host. Exits 1 if not; for health checks."""
    found = asyncio.run(read_lease(read_settings(WorkerSettings, "worker", **context.obj)))
    facts = Health(part="worker", running=found.running, slots=found.slots)
    show_value(facts, output, text=lambda _: typer.echo(f"online, {found.running} of {found.slots} slots in use"))


@worker.command()
def join(
    token_file: Annotated[str, typer.Option(help="File with the token of `tachikoma agents enroll`; - is stdin.")],
    identity: Annotated[
        Path, typer.Option(envvar="TACHIKOMA_IDENTITY", help="Folder for the agent's X.509-SVID; created if missing.")
    ],
    redis_password_file: Annotated[
        Path | None,
        typer.Option(
            envvar="TACHIKOMA_REDIS_PASSWORD_FILE",
            help=f"File for the agent's Redis password; {PASSWORD_FILE} in the identity's folder by default.",
        ),
    ] = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Become an agent with a token: get its identity and its Redis password. The worker renews the identity."""
    token = _token_of_agent(token_file)
    password_file = redis_password_file or identity / PASSWORD_FILE
    answer = asyncio.run(joining.join(token, identity, password_file))
    joined = JoinedAgent(
        spiffe_id=str(token.spiffe_id),
        identity=str(identity),
        redis_password_file=str(password_file) if answer.redis_password else "",
    )

    def show(joined: JoinedAgent) -> None:
        typer.echo(f"{identity}: {joined.spiffe_id}")
        if joined.redis_password_file:
            named = "" if password_file == identity / PASSWORD_FILE else " (set TACHIKOMA_REDIS_PASSWORD_FILE to it)"
            typer.echo(f"{password_file}: its Redis password{named}")

    show_value(joined, output, text=show)


@worker.command()
def install(
    token_file: Annotated[str, typer.Option(help="File with the token of `tachikoma agents enroll`; - is stdin.")],
    redis_url: Annotated[
        str, typer.Option(help="URL of Redis, without credentials; by default the orchestrator sends it.")
    ] = "",
    wait: Annotated[float, typer.Option(help="Longest wait in seconds until the agent is online.")] = 60.0,
    root: Annotated[Path, typer.Option(help="Folder below which everything is written, instead of /.")] = Path("/"),
    output: OutputOption = Output.TEXT,
) -> None:
    """Install an agent on this host: join with a token, write settings and units, start, and wait until it is online.

    Safe to repeat. Without systemd the units are written, and the commands to start the agent printed.
    """
    token = _token_of_agent(token_file)
    layout = Layout(root.absolute())
    installation = Installation(layout, Host.real(layout.root), token, redis_url)
    report_steps(installation.run(), _left(installation, wait), output)


def _left(installation: Installation, wait: float) -> Iterator[str]:
    """Wait until an installed agent is online; without systemd, yield how to start it."""
    if installation.host.services:
        found = installation.wait(wait)
        yield f"{installation.agent} is online, with {found.slots} slots"
        return
    yield "start it:"
    for line in installation.units("").commands():
        yield f"  {line}"
    yield f"or, without systemd, with the variables of {installation.environment}: tachikoma worker"


def _token_of_agent(token_file: str) -> JoinToken:
    """Read the token of an agent.

    Raises:
        ConfigurationError: the file cannot be read, or the token is for a person.
        InvalidRequest: the text is not a token.
    """
    token = read_token(token_file)
    if not agent_of(token.spiffe_id):
        raise ConfigurationError(f"the token is for {token.spiffe_id}, a person: use it with `tachikoma login`")
    return token


@spawner.callback()
def run_spawner(
    agent_id: Annotated[str, typer.Option(envvar="TACHIKOMA_AGENT_ID", help="Id of the agent that it serves.")],
    socket: Annotated[Path, typer.Option(envvar="TACHIKOMA_SPAWNER", help="Path of the socket to listen at.")],
    user: Annotated[str, typer.Option("--worker-user", help="User of the worker.")],
    capability: Annotated[list[str] | None, typer.Option(help=CAPABILITY_HELP)] = None,
    cgroup: Annotated[str, typer.Option(envvar="TACHIKOMA_CGROUP", help=CGROUP_HELP)] = "top",
    cgroup_name: Annotated[str, typer.Option(envvar="TACHIKOMA_CGROUP_NAME", help=CGROUP_NAME_HELP)] = "tachikoma",
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
