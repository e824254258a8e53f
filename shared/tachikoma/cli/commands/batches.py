"""`tachikoma batches`: the batches that the ledger knows."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Annotated

import typer

from tachikoma.cli import completion
from tachikoma.cli.batch_view import show_groups, show_totals, words_of_state
from tachikoma.cli.documents import BatchReport
from tachikoma.cli.lookup import with_full_batch_id
from tachikoma.cli.output import Output, OutputOption, WideOption, show_list, show_value
from tachikoma.cli.show import age, facts, moment, short_id
from tachikoma.cli.tables import Column, printable, table
from tachikoma.client.sync import Client
from tachikoma.targets.answers import Bodies
from tachikoma.vocabulary.batches import BatchResult, BatchStatus, TargetState

__all__ = ["batches"]

batches = typer.Typer(no_args_is_help=True, help="List batches, show one with its answers, and cancel them.")


@batches.command("ls")
def list_batches(
    limit: Annotated[int, typer.Option("--limit", "-l", min=1, max=1000, help="At most n batches.")] = 50,
    wide: WideOption = False,
    output: OutputOption = Output.TEXT,
) -> None:
    """List batches, newest first."""
    with Client() as client:
        found = client.batches(limit=limit)
    show_list(found, output, name=lambda item: item.id, text=lambda found: _show_list(found, wide))


def _show_list(found: Sequence[BatchStatus], wide: bool) -> None:
    columns = [
        Column("batch", 0), Column("state", 0), Column("succeeded", 1), Column("targets", 1), Column("age", 2),
        Column("by", 3), Column("command", 1),
    ]  # fmt: skip
    rows = [
        (
            item.id, item.state if item.ended else f"{item.state}…", str(item.totals.get(TargetState.SUCCEEDED, 0)),
            str(item.total), age(item.submit_time), short_id(item.requested_by), shlex.join(item.command),
        )
        for item in found
    ]  # fmt: skip
    table(columns, rows, wide=wide)


@batches.command()
def status(
    batch_id: Annotated[str, typer.Argument(help="The batch.", autocompletion=completion.batches)],
    group: Annotated[bool, typer.Option("--group", "-b", help="Also print the output of each group.")] = False,
    output: OutputOption = Output.TEXT,
) -> None:
    """Show a batch: its state, and the groups of equal answers so far."""
    with Client() as client:
        report = with_full_batch_id(client, batch_id, lambda full: _read(client, full, with_output=group))
    show_value(report, output, name=lambda report: report.batch.id, text=lambda report: _show(report, group=group))


def _read(client: Client, batch_id: str, *, with_output: bool) -> BatchReport:
    """Return a batch as it is now."""
    results: list[BatchResult] = []
    bodies, found = Bodies(), None
    for update in client.watch_batch(batch_id, output=with_output, follow=False):
        found = update.status or found
        if update.result is not None:
            results.append(bodies.completed(update.result))
    assert found is not None
    return BatchReport(batch=found, results=tuple(results))


def _show(report: BatchReport, *, group: bool) -> None:
    found = report.batch
    rows = [
        ("batch", found.id), ("state", words_of_state(found) if found.reason else found.state.lower()),
        ("command", shlex.join(found.command)), ("requested by", found.requested_by),
        ("submitted", moment(found.submit_time)), ("ended", moment(found.end_time)), ("digest", found.digest),
    ]  # fmt: skip
    facts(rows)
    if report.results:
        show_groups(report.results, bodies=group, diff=False)
    show_totals(found, report.results)


@batches.command()
def cancel(
    batch_id: Annotated[str, typer.Argument(help="The batch.", autocompletion=completion.batches)],
    output: OutputOption = Output.TEXT,
) -> None:
    """Start no further targets of a batch, and cancel its executions."""
    with Client() as client:
        found = with_full_batch_id(client, batch_id, client.cancel_batch)
    show_value(found, output, name=lambda found: found.id, text=_show_cancelled)


def _show_cancelled(found: BatchStatus) -> None:
    running = found.totals.get(TargetState.RUNNING, 0)
    typer.echo(f"{printable(found.id)}: {found.state.lower()}; {running} executions are being cancelled")
