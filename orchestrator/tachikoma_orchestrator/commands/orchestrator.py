"""`tachikoma orchestrator`."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from tachikoma.cli.output import Output, OutputOption, show_value
from tachikoma.config import error_reporting, logs, stages, trace_export
from tachikoma.config.settings import read_settings
from tachikoma.diagnosis.findings import Health
from tachikoma_orchestrator.commands.health import check_health
from tachikoma_orchestrator.commands.options import Identity, LogLevel, PolicyPath, ReadyFd, RedisUrl, Schedules
from tachikoma_orchestrator.commands.ready import announce
from tachikoma_orchestrator.processes.server import serve
from tachikoma_orchestrator.processes.settings import OrchestratorSettings

__all__ = ["orchestrator"]

orchestrator = typer.Typer(
    invoke_without_command=True, help="Run the orchestrator: the gRPC server and its background parts."
)


@orchestrator.callback()
def run(
    context: typer.Context,
    redis_url: RedisUrl = None,
    identity: Identity = None,
    policy_path: PolicyPath = None,
    schedules: Schedules = None,
    listen: Annotated[str | None, typer.Option(help="Address of the gRPC server, host:port.")] = None,
    log_level: LogLevel = None,
    ready_fd: ReadyFd = None,
) -> None:
    """Run the orchestrator. Every option is also an environment variable TACHIKOMA_…"""
    settings = read_settings(
        OrchestratorSettings, "orchestrator",
        redis_url=redis_url, identity=identity, policy=policy_path, schedules=schedules,
        listen=listen, log_level=log_level,
    )  # fmt: skip
    if context.invoked_subcommand is not None:
        context.obj = settings
        return
    logs.configure(settings.log_level)
    error_reporting.configure("orchestrator")
    trace_export.configure("orchestrator")
    if settings.stages is not None:
        stages.write_to(settings.stages)
    asyncio.run(serve(settings, announce(ready_fd) if ready_fd is not None else None))


@orchestrator.command()
def health(context: typer.Context, output: OutputOption = Output.TEXT) -> None:
    """Check whether the orchestrator with these settings accepts calls here. Exits 1 if not; for health checks."""
    check_health(context.obj)
    show_value(Health(part="orchestrator"), output, text=lambda _: typer.echo("SERVING"))
