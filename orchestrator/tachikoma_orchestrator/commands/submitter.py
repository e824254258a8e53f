"""`tachikoma submitter`."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer

from tachikoma.config import error_reporting, logs
from tachikoma.config.settings import read_settings
from tachikoma_orchestrator.processes.settings import SubmitterSettings
from tachikoma_orchestrator.processes.submitter_app import serve

__all__ = ["submitter"]

submitter = typer.Typer(
    invoke_without_command=True,
    help="Run a submitter, which admits the requests of Celery applications and celery beat.",
)


@submitter.callback()
def run(
    redis_url: Annotated[str | None, typer.Option(help="redis://, rediss:// or unix:///path")] = None,
    identity: Annotated[
        str | None, typer.Option(help="Folder with the orchestrator's X.509-SVID, or unix:///path.")
    ] = None,
    policy_file: Annotated[Path | None, typer.Option("--policy", help="The policy file.")] = None,
    schedules: Annotated[
        str | None, typer.Option(help="File or folder of schedules, or module:app of a Celery application.")
    ] = None,
    slots: Annotated[int | None, typer.Option(help="Tasks that wait for their execution at once.")] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error.")] = None,
    ready_fd: Annotated[int | None, typer.Option(hidden=True)] = None,
) -> None:
    """Run a submitter. It takes the orchestrator's settings, as options or environment variables TACHIKOMA_…"""
    settings = read_settings(
        SubmitterSettings, "submitter",
        redis_url=redis_url, identity=identity, policy=policy_file, schedules=schedules,
        submitter_slots=slots, log_level=log_level,
    )  # fmt: skip
    logs.configure(settings.log_level)
    error_reporting.configure("submitter")
    # Lines for each message; those of the latter hold its result, which is a command's output.
    for name in ("celery.worker.strategy", "celery.app.trace"):
        logging.getLogger(name).setLevel(logging.WARNING)
    raise typer.Exit(serve(settings, ready_fd))
