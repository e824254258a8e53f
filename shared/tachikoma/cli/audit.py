"""`tachikoma audit`."""

from __future__ import annotations

import time
from typing import Annotated

import typer
from rich.text import Text

from tachikoma.cli.show import Output, OutputOption, as_json, clock, short_id, table
from tachikoma.client import Client
from tachikoma.models import ExecAuditLog

__all__ = ["add_to", "show_events"]

#: Between looks with --follow.
FOLLOW_SECONDS = 1.0

audit = typer.Typer(no_args_is_help=True, help="Read the audit trail.")


def add_to(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.add_typer(audit, name="audit")


def show_events(events: tuple[ExecAuditLog, ...]) -> None:
    """Print events as a table."""
    table(
        ("TIME", "EVENT", "ID", "AGENT", "BY", "EXIT", "COMMAND / REASON"),
        [
            (
                clock(event.time),
                Text(event.event, style="" if event.authorized else "red"),
                event.id,
                event.agent_id,
                short_id(event.requested_by),
                str(event.exit_code) if event.exit_code >= 0 else "-",
                " — ".join(part for part in (event.command, event.reason) if part),
            )
            for event in events
        ],
    )


@audit.command()
def tail(
    lines: Annotated[int, typer.Option("--lines", "-n", min=1, max=1000, help="How many events.")] = 20,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until Ctrl-C.")] = False,
    exec_id: Annotated[str, typer.Option("--id", help="Only of this execution.")] = "",
    output: OutputOption = Output.TEXT,
) -> None:
    """Show the latest events, oldest first."""
    show = as_json if output is Output.JSON else show_events
    with Client() as client:
        events = client.audit(limit=lines, exec_id=exec_id)
        show(events)
        cursor = events[-1].cursor if events else "0-0"
        try:
            while follow:
                time.sleep(FOLLOW_SECONDS)
                events = client.audit(after=cursor, limit=1000, exec_id=exec_id)
                if events:
                    show(events)
                    cursor = events[-1].cursor
        except KeyboardInterrupt:
            raise typer.Exit(130) from None
