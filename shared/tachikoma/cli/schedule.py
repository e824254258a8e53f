"""`tachikoma schedule`."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from tachikoma.cli.show import Output, OutputOption, as_json, clock, colour_of, printable, short_id, table
from tachikoma.client.sync import Client
from tachikoma.schedules.file import ScheduleFile, ScheduleSet
from tachikoma.vocabulary.schedules import DueOutcome, ScheduledRun, ScheduleStatus

__all__ = ["schedule", "schema_text"]

schedule = typer.Typer(no_args_is_help=True, help="Look at schedules, pause, resume and run them; check their files.")

NameArgument = Annotated[str, typer.Argument(help="The schedule.")]
_COLOURS = {DueOutcome.MISSED: "red", DueOutcome.REFUSED: "red", DueOutcome.SKIPPED: "yellow", DueOutcome.TAKEN: "cyan"}


@schedule.command()
def ls(output: OutputOption = Output.TEXT) -> None:
    """List the schedules and how they stand. Exits 1 if their file as it is now is wrong and therefore not in force."""
    with Client() as client:
        found, error = client.schedules()
    if output is Output.JSON:
        as_json(found)
    else:
        table(
            ("NAME", "STATE", "WHEN", "NEXT", "LAST", "OUTCOME", "AGENT", "COMMAND"),
            [
                (
                    item.name,
                    _state(item),
                    item.when,
                    clock(item.next_due),
                    clock(item.last.due if item.last else None),
                    _outcome(item.last) if item.last else "-",
                    item.agent_id,
                    shlex.join(item.command),
                )
                for item in found
            ],
        )
        for item in found:
            if item.paused:
                who = f"{short_id(item.paused_by)} at {clock(item.paused_at)}"
                typer.echo(f"{item.name}: paused by {who}: {printable(item.pause_reason)}", err=True)
    if error:
        typer.echo(f"NOT in force, for the file as it is now is wrong:\n{printable(error)}", err=True)
        raise typer.Exit(1)


def _state(item: ScheduleStatus) -> Text:
    if not item.enabled:
        return Text("off", style="yellow")
    return Text("paused", style="yellow") if item.paused else Text("on", style="green")


def _outcome(run: ScheduledRun) -> Text:
    if run.outcome is DueOutcome.RUN and run.state is not None:
        return Text(run.state, style=colour_of(run.state))
    return Text(run.outcome, style=_COLOURS.get(run.outcome, "green"))


@schedule.command("next")
def next_due(
    name: NameArgument,
    number: Annotated[int, typer.Option("--number", "-n", min=1, max=1000, help="How many.")] = 10,
    output: OutputOption = Output.TEXT,
) -> None:
    """Say when a schedule is due next."""
    with Client() as client:
        found = client.next_due_times(name, limit=number)
    if output is Output.JSON:
        sys.stdout.write(json.dumps([due.isoformat() for due in found], indent=2) + "\n")
        return
    for due in found:
        typer.echo(_whole(due))


def _whole(due: datetime) -> str:
    """A time with its day and zone, for who plans by it."""
    return due.astimezone().isoformat(" ", "milliseconds" if due.microsecond else "seconds")


@schedule.command()
def pause(
    name: NameArgument,
    reason: Annotated[str, typer.Option("--reason", "-r", help="Why; it goes on the record.")],
    output: OutputOption = Output.TEXT,
) -> None:
    """Let a schedule ask for nothing until it is resumed; what runs goes on."""
    with Client() as client:
        found = client.pause_schedule(name, reason)
    _tell(found, output)


@schedule.command()
def resume(name: NameArgument, output: OutputOption = Output.TEXT) -> None:
    """Let a schedule go on. What was due meanwhile stays skipped."""
    with Client() as client:
        found = client.resume_schedule(name)
    _tell(found, output)


def _tell(found: ScheduleStatus, output: Output) -> None:
    if output is Output.JSON:
        as_json(found)
        return
    typer.echo(f"{found.name}: {'paused' if found.paused else f'next due {clock(found.next_due)}'}")


@schedule.command()
def run(name: NameArgument, output: OutputOption = Output.TEXT) -> None:
    """Ask for a run now, paused or not. Exits 1 if it is refused."""
    with Client() as client:
        found = client.run_schedule(name)
    if output is Output.JSON:
        as_json(found)
    elif found.outcome is DueOutcome.RUN:
        typer.echo(f"{found.id}: {found.state or found.outcome}")
    else:
        typer.echo(f"{name}: {found.outcome}: {printable(found.reason)}", err=True)
    if found.outcome not in (DueOutcome.RUN, DueOutcome.TAKEN):
        raise typer.Exit(1)


@schedule.command()
def history(
    name: NameArgument,
    number: Annotated[int, typer.Option("--number", "-n", min=1, max=1000, help="How many.")] = 20,
    output: OutputOption = Output.TEXT,
) -> None:
    """Say what became of a schedule's due times, the latest last."""
    with Client() as client:
        found = client.scheduled_runs(name, limit=number)[::-1]
    if output is Output.JSON:
        as_json(found)
        return
    table(("DUE", "OUTCOME", "ID", "STATE", "AGENT", "BY", "REASON"), _history(found))


def _history(runs: Iterable[ScheduledRun]) -> Iterable[tuple[str | Text, ...]]:
    for run in runs:
        count = f"{run.count} times since {clock(run.first)}: " if run.count > 1 else ""
        yield (
            clock(run.due),
            Text(run.outcome, style=_COLOURS.get(run.outcome, "green")),
            run.id or "-",
            Text(run.state, style=colour_of(run.state)) if run.state else "-",
            run.agent_id,
            short_id(run.requested_by) or "-",
            count + run.reason,
        )


@schedule.command()
def check(
    file: Annotated[Path, typer.Argument(help="The file, or a folder of them.")],
    strict: Annotated[bool, typer.Option("--strict", help="Fail also on warnings.")] = False,
) -> None:
    """Say whether a file of schedules is right; each mistake with line and column, and what is hardly meant."""
    found = ScheduleSet.load(file)
    for warning in found.warnings:
        typer.echo(f"warning: {warning}", err=True)
    number = len(found.schedules)
    schedules = "schedule" if number == 1 else "schedules"
    typer.echo(f"{file}: {number} {schedules}, {'all right' if not found.warnings else 'valid'}")
    if strict and found.warnings:
        raise typer.Exit(1)


@schedule.command()
def schema() -> None:
    """Print the JSON schema of files of schedules, for editors."""
    typer.echo(schema_text(), nl=False)


def schema_text() -> str:
    """The JSON schema of files of schedules, as it is shipped."""
    content = ScheduleFile.model_json_schema(by_alias=True)
    content |= {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "Tachikoma schedules"}
    return json.dumps(content, indent=2, sort_keys=True) + "\n"
