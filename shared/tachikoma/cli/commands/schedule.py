"""`tachikoma schedule`: show, pause, resume and run schedules, and check their files."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer
from pydantic import TypeAdapter

from tachikoma.cli import completion
from tachikoma.cli.documents import ScheduleReport
from tachikoma.cli.options import ReasonOption
from tachikoma.cli.output import (
    Output,
    OutputOption,
    WatchOption,
    WideOption,
    report_failure,
    show_list,
    show_value,
    watch,
)
from tachikoma.cli.show import age, clock, raw_json, short_id, state_cell, warn
from tachikoma.cli.tables import Cell, Column, printable, table
from tachikoma.client.sync import Client
from tachikoma.schedules.file import ScheduleFile, ScheduleSet
from tachikoma.vocabulary.schedules import DueOutcome, ScheduledRun, ScheduleStatus
from tachikoma.vocabulary.types import Timestamp

__all__ = ["schedule", "schema_text"]

schedule = typer.Typer(no_args_is_help=True, help="Show, pause, resume and run schedules; check their files.")

NameArgument = Annotated[str, typer.Argument(help="The schedule.", autocompletion=completion.schedules)]
_COLOURS = {DueOutcome.MISSED: "red", DueOutcome.REFUSED: "red", DueOutcome.SKIPPED: "yellow", DueOutcome.TAKEN: "cyan"}


#: Columns of the list; the last ones to be left out have the smallest numbers.
COLUMNS = (
    Column("NAME", elastic=True),
    Column("STATE"),
    Column("WHEN", 4, elastic=True),
    Column("NEXT", 1),
    Column("LAST", 5),
    Column("OUTCOME", 2),
    Column("AGENT", 3, elastic=True),
    Column("COMMAND", 3, elastic=True),
)


@schedule.command()
def ls(wide: WideOption = False, again: WatchOption = False, output: OutputOption = Output.TEXT) -> None:
    """List the schedules and their state. Exits 1 if the newest file has a mistake; then an older one stays active."""

    def show(form: Output) -> None:
        found, error = client.schedules()
        show_list(found, form, name=lambda item: item.name, text=lambda found: _show_list(found, wide))
        if error:
            report_failure(
                f"the newest file is NOT active, since it has a mistake:\n{error}",
                reason="CONFIGURATION", code="FAILED_PRECONDITION",
            )  # fmt: skip
            if not again:
                raise typer.Exit(1)

    with Client() as client:
        watch(show, output, again=again)


def _show_list(found: Sequence[ScheduleStatus], wide: bool) -> None:
    table(COLUMNS, map(_row, found), wide=wide)
    for item in found:
        if item.paused:
            paused = f"paused by {short_id(item.paused_by)} at {clock(item.paused_at)}"
            warn(f"{item.name}: {paused}: {printable(item.pause_reason)}")


def _row(item: ScheduleStatus) -> tuple[str | Cell, ...]:
    return (
        item.name,
        _state(item),
        item.when,
        age(item.next_due),
        age(item.last.due if item.last else None),
        _last_outcome(item.last) if item.last else "-",
        item.agent_id or " ".join(item.targets),
        shlex.join(item.command),
    )


def _state(item: ScheduleStatus) -> Cell:
    if not item.enabled:
        return Cell("off", "yellow")
    return Cell("paused", "yellow") if item.paused else Cell("on", "green")


def _last_outcome(run: ScheduledRun) -> Cell:
    """Return the state of a run's execution or batch; without either, the outcome of the run."""
    return _run_state(run) if run.outcome is DueOutcome.RUN and (run.state or run.batch_state) else _outcome(run)


def _run_state(run: ScheduledRun) -> Cell:
    if run.batch_state is not None:
        return Cell(run.batch_state)
    return state_cell(run.state) if run.state is not None else Cell("-")


def _outcome(run: ScheduledRun) -> Cell:
    return Cell(run.outcome, _COLOURS.get(run.outcome, "green"))


@schedule.command("next")
def next_due(
    name: NameArgument,
    number: Annotated[int, typer.Option("--number", "-n", min=1, max=1000, help="Number of scheduled times.")] = 10,
    output: OutputOption = Output.TEXT,
) -> None:
    """Show the next scheduled times of a schedule."""
    with Client() as client:
        found = client.next_due_times(name, limit=number)
    times = TypeAdapter(tuple[Timestamp, ...]).dump_python(found, mode="json")
    if output is Output.JSON:
        raw_json(times)
        return
    for due, text in zip(found, times, strict=True):
        typer.echo(_date_and_time(due) if output is Output.TEXT else json.dumps(text))


def _date_and_time(due: datetime) -> str:
    """Format a time with its date and time zone, as a plan needs it."""
    return due.astimezone().isoformat(" ", "milliseconds" if due.microsecond else "seconds")


@schedule.command()
def pause(
    name: NameArgument,
    reason: ReasonOption,
    output: OutputOption = Output.TEXT,
) -> None:
    """Pause a schedule until it is resumed; runs in progress continue."""
    with Client() as client:
        found = client.pause_schedule(name, reason)
    _show(found, output)


@schedule.command()
def resume(name: NameArgument, output: OutputOption = Output.TEXT) -> None:
    """Resume a paused schedule. Runs that were due in the meantime stay skipped."""
    with Client() as client:
        found = client.resume_schedule(name)
    _show(found, output)


def _show(found: ScheduleStatus, output: Output) -> None:
    show_value(found, output, name=lambda found: found.name, text=_show_paused)


def _show_paused(found: ScheduleStatus) -> None:
    typer.echo(f"{found.name}: {'paused' if found.paused else f'next due {clock(found.next_due)}'}")


@schedule.command()
def run(name: NameArgument, output: OutputOption = Output.TEXT) -> None:
    """Run a schedule now, even if it is paused. Exits 1 if the run is refused."""
    with Client() as client:
        found = client.run_schedule(name)
    show_value(found, output, name=lambda found: found.id, text=lambda found: _show_run(name, found))
    if found.outcome not in (DueOutcome.RUN, DueOutcome.TAKEN):
        raise typer.Exit(1)


def _show_run(name: str, found: ScheduledRun) -> None:
    if found.outcome is DueOutcome.RUN:
        typer.echo(f"{found.id}: {found.state or found.batch_state or found.outcome}")
    else:
        warn(f"{name}: {found.outcome}: {printable(found.reason)}")


#: Columns of the history; the last ones to be left out have the smallest numbers.
RUN_COLUMNS = (
    Column("DUE"),
    Column("OUTCOME"),
    Column("ID", 2, is_id=True),
    Column("STATE", 1),
    Column("AGENT", 3, elastic=True),
    Column("BY", 5, elastic=True),
    Column("REASON", 4, elastic=True),
)


@schedule.command()
def history(
    name: NameArgument,
    number: Annotated[int, typer.Option("--number", "-n", min=1, max=1000, help="Number of scheduled times.")] = 20,
    wide: WideOption = False,
    again: WatchOption = False,
    output: OutputOption = Output.TEXT,
) -> None:
    """Show the outcomes of a schedule's scheduled times, the latest last."""

    def show(form: Output) -> None:
        found = client.scheduled_runs(name, limit=number)[::-1]
        show_list(found, form, name=lambda run: run.id, text=lambda found: _show_history(found, wide))

    with Client() as client:
        watch(show, output, again=again)


def _show_history(found: Iterable[ScheduledRun], wide: bool) -> None:
    table(RUN_COLUMNS, _history(found), wide=wide)


def _history(runs: Iterable[ScheduledRun]) -> Iterable[tuple[str | Cell, ...]]:
    for run in runs:
        count = f"{run.count} times since {clock(run.first)}: " if run.count > 1 else ""
        yield (
            clock(run.due),
            _outcome(run),
            run.id or "-",
            _run_state(run),
            run.agent_id or ("batch" if run.is_batch else ""),
            short_id(run.requested_by) or "-",
            count + run.reason,
        )


@schedule.command()
def check(
    file: Annotated[Path, typer.Argument(help="The file, or a folder of them.")],
    strict: Annotated[bool, typer.Option("--strict", help="Fail also on warnings.")] = False,
    output: OutputOption = Output.TEXT,
) -> None:
    """Check a file of schedules: print each mistake with line and column, and warn of what is probably not meant."""
    found = ScheduleSet.load(file)
    report = ScheduleReport(file=str(file), schedules=len(found.schedules), warnings=tuple(found.warnings))
    show_value(report, output, text=_show_report)
    if strict and found.warnings:
        raise typer.Exit(1)


def _show_report(report: ScheduleReport) -> None:
    for warning in report.warnings:
        warn(f"warning: {warning}")
    schedules = "schedule" if report.schedules == 1 else "schedules"
    typer.echo(f"{report.file}: {report.schedules} {schedules}, {'valid' if report.warnings else 'all right'}")


@schedule.command()
def schema() -> None:
    """Print the JSON schema of files of schedules, for editors."""
    typer.echo(schema_text(), nl=False)


def schema_text() -> str:
    """Return the JSON schema of files of schedules, as it is shipped."""
    content = ScheduleFile.model_json_schema(by_alias=True)
    content |= {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "Tachikoma schedules"}
    return json.dumps(content, indent=2, sort_keys=True) + "\n"
