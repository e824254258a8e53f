"""`tachikoma batches`: the batches that the ledger knows."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Iterable, Sequence
from typing import Annotated

import typer

from tachikoma.cli import completion
from tachikoma.cli.batch_view import (
    BatchReport,
    describe_needs,
    host_line,
    show_groups,
    show_totals,
    states_of,
    words_of_state,
)
from tachikoma.cli.commands.batch_approvals import add_to as add_approvals
from tachikoma.cli.commands.run import add_retry_to
from tachikoma.cli.lookup import with_full_batch_id
from tachikoma.cli.output import (
    Output,
    OutputOption,
    WatchOption,
    WideOption,
    refuse_names,
    show_list,
    show_value,
    watch,
)
from tachikoma.cli.show import age, facts, moment, short_id, warn
from tachikoma.cli.tables import Column, printable, table
from tachikoma.client.sync import Client
from tachikoma.errors import InvalidRequest
from tachikoma.targets.answers import Answers
from tachikoma.targets.expressions import resolve
from tachikoma.targets.nodesets import in_order
from tachikoma.vocabulary.batches import BatchResult, BatchStatus, TargetState
from tachikoma.vocabulary.messages import OutputKind
from tachikoma.vocabulary.results import ExecOutput

__all__ = ["batches"]

batches = typer.Typer(no_args_is_help=True, help="List batches, show one, approve, cancel and retry them.")


@batches.command("ls")
def list_batches(
    limit: Annotated[int, typer.Option("--limit", "-l", min=1, max=1000, help="At most n batches.")] = 50,
    wide: WideOption = False,
    again: WatchOption = False,
    output: OutputOption = Output.TEXT,
) -> None:
    """List batches, newest first."""

    def show(form: Output) -> None:
        found = client.batches(limit=limit)
        show_list(found, form, name=lambda item: item.id, text=lambda found: _show_list(found, wide))

    with Client() as client:
        watch(show, output, again=again)


#: Columns of the list; the last ones to be left out have the smallest numbers.
COLUMNS = (
    Column("ID", is_id=True),
    Column("STATE"),
    Column("SUCCEEDED", 1),
    Column("TARGETS", 1),
    Column("ASKED", 2),
    Column("BY", 3, elastic=True),
    Column("COMMAND", elastic=True),
)


def _show_list(found: Sequence[BatchStatus], wide: bool) -> None:
    rows = [
        (
            item.id, item.state if item.ended else f"{item.state}…", str(item.totals.get(TargetState.SUCCEEDED, 0)),
            str(item.total), age(item.submit_time), short_id(item.requested_by), shlex.join(item.command),
        )
        for item in found
    ]  # fmt: skip
    table(COLUMNS, rows, wide=wide)


@batches.command()
def status(
    batch_id: Annotated[str, typer.Argument(help="The batch.", autocompletion=completion.batches)],
    group: Annotated[bool, typer.Option("--group", "-b", help="Also print the output of each group.")] = False,
    similar: Annotated[
        bool, typer.Option("--similar", help="Like --group, but ignore numbers, times and host names.")
    ] = False,
    output: OutputOption = Output.TEXT,
) -> None:
    """Show a batch: its state, and the groups of equal answers so far."""
    with_output = group or similar

    def read(full: str) -> tuple[BatchReport, Answers]:
        return _read(client, full, with_output=with_output, similar=similar, document=output.for_programs)

    with Client() as client:
        report, answers = with_full_batch_id(client, batch_id, read)
    show_value(
        report,
        output,
        name=lambda report: report.batch.id,
        text=lambda report: _show(report.batch, answers, group=with_output),
    )


def _read(
    client: Client, batch_id: str, *, with_output: bool = False, similar: bool = False, document: bool = False
) -> tuple[BatchReport, Answers]:
    """Return a batch as it is now, and its answers.

    Args:
        client: a client.
        batch_id: the batch.
        with_output: request output.
        similar: see `Answers`.
        document: let the report contain each distinct output, in the first result that has it.
    """
    answers, whole = Answers(similar=similar), list[BatchResult]()
    found = None
    for update in client.watch_batch(batch_id, output=with_output, follow=False):
        found = update.status or found
        if update.result is not None:
            answers.add(update.result)
            if document:
                whole.append(update.result)
    assert found is not None
    return BatchReport(batch=found, results=tuple(whole if document else answers.results)), answers


def _show(found: BatchStatus, answers: Answers, *, group: bool) -> None:
    rows = [
        ("batch", found.id), ("state", words_of_state(found) if found.reason else found.state.lower()),
        ("command", shlex.join(found.command)), ("requested by", found.requested_by),
        *[("approval", need) for need in describe_needs(found.needs)],
        ("approved by", f"{found.approved_by}: {found.approval_reason}" if found.approved_by else ""),
        ("submitted", moment(found.submit_time)), ("ended", moment(found.end_time)), ("digest", found.digest),
    ]  # fmt: skip
    facts(rows)
    if answers.results:
        show_groups(answers.groups(), bodies=group)
    show_totals(found, answers.results)


@batches.command()
def logs(
    batch_id: Annotated[str, typer.Argument(help="The batch.", autocompletion=completion.batches)],
    targets: Annotated[
        list[str] | None, typer.Argument(help="Only these of its targets: names, node sets, wildcards.")
    ] = None,
    state: Annotated[
        str,
        typer.Option(
            help="Only targets in these states, with commas; failed: every state but success.",
            autocompletion=completion.target_states,
        ),
    ] = "",
    output: OutputOption = Output.TEXT,
) -> None:
    """Show the whole output of the targets of a batch, each line with the name of its host in front."""
    refuse_names(output)
    states = _wanted(state)
    with Client() as client:
        report, _ = with_full_batch_id(client, batch_id, lambda full: _read(client, full))
        chosen = _chosen(report.results, targets, states)
        width = max((len(result.agent_id) for result in chosen), default=0)
        for result in chosen:
            _show_logs(client.attach(result.exec_id, follow=False), f"{result.agent_id:<{width}}  ", output)


def _wanted(text: str) -> frozenset[TargetState]:
    """Return the states that `--state` selects; without it, all states."""
    every = frozenset(TargetState)
    return frozenset(states_of(text, "--state")) or every - {TargetState.SUCCEEDED} if text else every


def _chosen(
    results: Sequence[BatchResult], targets: Sequence[str] | None, states: Collection[TargetState]
) -> list[BatchResult]:
    """Return the results with an execution that the command line asks for, in the order of node sets."""
    names = {result.agent_id: result for result in results}
    wanted = resolve(targets, {name: {} for name in names}) if targets else in_order(names)
    if unknown := [name for name in wanted if name not in names]:
        raise InvalidRequest(f"no target of the batch that has ended: {', '.join(unknown)[:200]}")
    found = [names[name] for name in wanted]
    return [result for result in found if result.exec_id and result.state in states]


def _show_logs(stream: Iterable[ExecOutput], prefix: str, output: Output) -> None:
    """Print the output of one execution; a line that is cut into chunks is printed once."""
    partial = {OutputKind.STDOUT: b"", OutputKind.STDERR: b""}
    for item in stream:
        if output is not Output.TEXT:
            typer.echo(item.to_json())
        elif item.kind in partial:
            *lines, partial[item.kind] = (partial[item.kind] + item.data).split(b"\n")
            _show_lines(lines, prefix, item.kind)
        elif item.kind is OutputKind.GAP:
            warn(f"{prefix}{item.missing_bytes} bytes of output are missing")
    for kind, rest in partial.items():
        _show_lines([rest] if rest else [], prefix, kind)


def _show_lines(lines: Iterable[bytes], prefix: str, kind: OutputKind) -> None:
    for line in lines:
        typer.echo(prefix + host_line(line.decode(errors="replace")), err=kind is OutputKind.STDERR)


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


add_retry_to(batches)
add_approvals(batches)
