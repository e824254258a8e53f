"""`tachikoma dev`."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = ["add_to"]


def add_to(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command()(dev)


def dev(
    count: Annotated[int, typer.Option("--agents", min=1, max=64, help="How many agents to run.")] = 1,
    data: Annotated[str | None, typer.Option(help="Folder for state; it survives a restart.")] = None,
    listen: Annotated[
        str, typer.Option(help="Address of the orchestrator; port 0 takes a free one.")
    ] = "127.0.0.1:8534",
    flower: Annotated[
        bool, typer.Option("--flower", help="Also run Flower, a web page that shows executions.")
    ] = False,
    flower_listen: Annotated[str, typer.Option(help="Address of that page.")] = "127.0.0.1:5555",
    schedules: Annotated[
        str | None, typer.Option(help="File of schedules, or module:app; runs a submitter and a beat too.")
    ] = None,
    submitter: Annotated[
        bool, typer.Option("--submitter/--no-submitter", help="Run a submitter, for Celery applications.")
    ] = True,
) -> None:
    """Run the whole system on this machine, in the foreground; Ctrl-C stops it."""
    from tachikoma.dev.command import run_dev

    run_dev(
        agents=count,
        data=data,
        listen=listen,
        flower=flower_listen if flower else None,
        schedules=schedules,
        submitter=submitter,
    )
