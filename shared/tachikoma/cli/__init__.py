"""The command `tachikoma`.

The client's commands stand here. Installed components add theirs through the entry-point group `tachikoma.commands`;
they are imported only when asked for, so that `tachikoma exec` does not wait for Celery.
"""

from __future__ import annotations

import os
import sys
from importlib.metadata import EntryPoint, entry_points, version
from typing import Annotated, Any, NoReturn

import typer
import typer.core
import typer.main

from tachikoma.cli import approvals, audit, executions, run
from tachikoma.cli.agents import agents
from tachikoma.client.profile import PROFILE_VARIABLE
from tachikoma.errors import TachikomaError

__all__ = ["main"]

#: What a command that could not do its work ends with; `exec` has its own (see `run`).
FAILED = 1


def _components() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group="tachikoma.commands")}


class _Group(typer.core.TyperGroup):
    """Commands of this package, and of installed components."""

    def list_commands(self, ctx: Any) -> list[str]:
        return sorted({*super().list_commands(ctx), *_components()})

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        command = super().get_command(ctx, cmd_name)
        if command is None and cmd_name in (components := _components()):
            command = typer.main.get_command(components[cmd_name].load())
            command.name = cmd_name
        return command


app = typer.Typer(
    cls=_Group,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Run commands on many machines: policy first, at most once, everything on the record.",
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"tachikoma {version('tachikoma-exec')}")
        raise typer.Exit


@app.callback()
def _options(
    profile: Annotated[
        str | None,
        typer.Option(help="Client profile to use instead of the user's own.", envvar=PROFILE_VARIABLE),
    ] = None,
    _: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")] = False,
) -> None:
    if profile:
        os.environ[PROFILE_VARIABLE] = profile


run.add_to(app)
executions.add_to(app)
approvals.add_to(app)
audit.add_to(app)
app.add_typer(agents, name="agents")


@app.command()
def dev(
    count: Annotated[int, typer.Option("--agents", min=1, max=64, help="How many agents to run.")] = 1,
    data: Annotated[str | None, typer.Option(help="Folder for state; it survives a restart.")] = None,
    listen: Annotated[
        str, typer.Option(help="Address of the orchestrator; port 0 takes a free one.")
    ] = "127.0.0.1:8534",
    flower: Annotated[bool, typer.Option("--flower", help="Also run Flower, a page that shows it all.")] = False,
    flower_listen: Annotated[str, typer.Option(help="Address of that page.")] = "127.0.0.1:5555",
    schedules: Annotated[
        str | None, typer.Option(help="File of schedules, or module:app; runs a submitter and a beat too.")
    ] = None,
) -> None:
    """Run the whole system on this machine, in the foreground; Ctrl-C stops it."""
    from tachikoma.dev.command import run_dev

    run_dev(agents=count, data=data, listen=listen, flower=flower_listen if flower else None, schedules=schedules)


@app.command()
def demo() -> None:
    """Start the whole system, run real work on it, show what happened, and stop."""
    from tachikoma.cli.demo import run_demo

    run_demo()


def main() -> NoReturn:
    """Run the command line."""
    try:
        app()
    except TachikomaError as error:
        typer.echo(f"tachikoma: {error}", err=True)
        sys.exit(FAILED)
    sys.exit(0)


if __name__ == "__main__":
    main()
