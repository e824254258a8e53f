"""`tachikoma submitter`."""

from __future__ import annotations

import logging
from typing import Annotated

import typer

from tachikoma.config import error_reporting, logs, stages, trace_export
from tachikoma.config.settings import read_settings
from tachikoma_orchestrator.commands.options import Identity, LogLevel, PolicyPath, ReadyFd, RedisUrl, Schedules
from tachikoma_orchestrator.processes.settings import SubmitterSettings
from tachikoma_orchestrator.processes.submitter_app import serve

__all__ = ["submitter"]

submitter = typer.Typer(
    invoke_without_command=True,
    help="Run a submitter, which admits the requests of Celery applications and celery beat.",
)


@submitter.callback()
def run(
    redis_url: RedisUrl = None,
    identity: Identity = None,
    policy_path: PolicyPath = None,
    schedules: Schedules = None,
    slots: Annotated[int | None, typer.Option(help="Largest number of tasks that wait for their execution.")] = None,
    log_level: LogLevel = None,
    ready_fd: ReadyFd = None,
) -> None:
    """Run a submitter. It takes the orchestrator's settings, as options or environment variables TACHIKOMA_…"""
    settings = read_settings(
        SubmitterSettings, "submitter",
        redis_url=redis_url, identity=identity, policy=policy_path, schedules=schedules,
        submitter_slots=slots, log_level=log_level,
    )  # fmt: skip
    logs.configure(settings.log_level)
    error_reporting.configure("submitter")
    trace_export.configure("submitter")
    if settings.stages is not None:
        stages.write_to(settings.stages)
    # Both log a line for each message; the second logs its result, too, which contains the output of a command.
    for name in ("celery.worker.strategy", "celery.app.trace"):
        logging.getLogger(name).setLevel(logging.WARNING)
    raise typer.Exit(serve(settings, ready_fd))
