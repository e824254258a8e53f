"""`tachikoma batches approvals`, `approve` and `reject`."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, TypeVar

import typer

from tachikoma.cli import completion
from tachikoma.cli.batch_view import describe_needs
from tachikoma.cli.commands.approvals import ReasonOption, quoted, stdin_facts
from tachikoma.cli.lookup import LEAST_CHARACTERS
from tachikoma.cli.options import YesOption, confirm, required_reason
from tachikoma.cli.output import Output, OutputOption, WatchOption, WideOption, show_list, show_value, watch
from tachikoma.cli.show import age, facts, moment, short_id
from tachikoma.cli.tables import Column, printable, table
from tachikoma.client.sync import Client
from tachikoma.errors import NotFound
from tachikoma.targets.nodesets import fold
from tachikoma.vocabulary.batches import BatchApproval, BatchStatus
from tachikoma.vocabulary.durations import format_duration

__all__ = ["add_to"]

R = TypeVar("R")

BatchArgument = Annotated[str, typer.Argument(help="The batch.", autocompletion=completion.waiting_batches)]
#: Longest short form of the targets that is shown, in characters. `-o json` has all of them.
MAX_NAMES = 2000

#: Columns of the list; the last ones to be left out have the smallest numbers.
COLUMNS = (
    Column("BATCH", is_id=True),
    Column("TARGETS", 1),
    Column("BY", 2, elastic=True),
    Column("ASKED", 5),
    Column("UNTIL", 3),
    Column("APPROVERS", 4, elastic=True),
    Column("COMMAND", elastic=True),
)


def add_to(app: typer.Typer) -> None:
    """Add the commands of this module."""
    for command in (approvals, approve, reject):
        app.command()(command)


def approvals(
    batch_id: Annotated[
        str,
        typer.Argument(help="Show everything that this batch would run.", autocompletion=completion.waiting_batches),
    ] = "",
    wide: WideOption = False,
    again: WatchOption = False,
    output: OutputOption = Output.TEXT,
) -> None:
    """List the waiting batches that you may approve or have requested, or show one in full."""

    def show(form: Output) -> None:
        if batch_id:
            found = _with_full_id(client, batch_id, client.batch_approval)
            show_value(found, form, name=lambda found: found.status.id, text=_show_in_full)
        else:
            waiting = client.batch_approvals()
            show_list(waiting, form, name=lambda item: item.id, text=lambda found: _show_list(found, wide))

    with Client() as client:
        watch(show, output, again=again)


def approve(
    batch_id: BatchArgument,
    reason: ReasonOption = None,
    digest: Annotated[str, typer.Option(help="Digest of the reviewed batch; a changed batch is not approved.")] = "",
    yes: YesOption = False,
    output: OutputOption = Output.TEXT,
) -> None:
    """Show the targets and the command of a waiting batch, and approve it as a whole."""

    def approved(full: str) -> BatchStatus:
        return client.approve_batch(full, digest or _reviewed(client, full, yes, output), required_reason(reason))

    with Client() as client:
        found = _with_full_id(client, batch_id, approved)
    _show(found, "approved", output)


def reject(
    batch_id: BatchArgument,
    reason: ReasonOption = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Reject a waiting batch; nothing of it runs, and its requester sees the reason."""
    with Client() as client:
        given = required_reason(reason)
        found = _with_full_id(client, batch_id, lambda full: client.reject_batch(full, given))
    _show(found, "rejected", output)


def _with_full_id(client: Client, batch_id: str, call: Callable[[str], R]) -> R:
    """Make a call with a batch's id, or with the id of the only waiting batch that begins with the text."""
    try:
        return call(batch_id)
    except NotFound:
        found = [item.id for item in client.batch_approvals() if item.id.startswith(batch_id)]
        if len(found) != 1 or len(batch_id) < LEAST_CHARACTERS:
            raise
    return call(found[0])


def _reviewed(client: Client, batch_id: str, yes: bool, output: Output) -> str:
    """Show a batch in full, ask for a confirmation, and return the digest of what was shown."""
    found = client.batch_approval(batch_id)
    if output is Output.TEXT:
        _show_in_full(found)
    confirm(f"approve this on {len(found.targets)} targets", yes=yes, instead="--digest of what you reviewed, or --yes")
    return found.digest


def _show_list(found: Sequence[BatchStatus], wide: bool) -> None:
    rows = (
        (
            item.id, str(item.total), short_id(item.requested_by), age(item.submit_time), age(item.deadline),
            ", ".join(short_id(text) for need in item.needs for text in need.approvers), shlex.join(item.command),
        )
        for item in found
    )  # fmt: skip
    table(COLUMNS, rows, wide=wide)


def _show_in_full(found: BatchApproval) -> None:
    """Print everything that would run, for the approver who is responsible for it."""
    # A line break in a value must not look like another fact.
    facts((name, value.replace("\n", "\\n")) for name, value in _facts(found))


def _facts(found: BatchApproval) -> Iterator[tuple[str, str]]:
    request, status = found.request, found.status
    yield "id", status.id
    yield "requested by", status.requested_by
    yield "asked at", moment(status.submit_time)
    yield "until", moment(status.deadline)
    for need in describe_needs(found.needs):
        yield "approval", need
    yield "command", " ".join(map(quoted, request.command))
    yield "targets", f"{len(found.targets)}: {_short(found.targets)}"
    if found.denied:
        yield "denied", f"{len(found.denied)}: {_short(found.denied)}"
    yield "user", request.user or "the default user of each agent"
    yield "directory", quoted(request.work_dir) if request.work_dir else "the user's home"
    for name, value in sorted(request.environment.items()):
        yield "variable", f"{name}={quoted(value)}"
    yield from stdin_facts(request.stdin)
    if request.gate is not None:
        yield "health gate", f"on {request.gate.agent_id}: {' '.join(map(quoted, request.gate.command))}"
    yield "parallel", request.parallel
    if request.timeout is not None:
        yield "timeout", format_duration(request.timeout)
    for name, limit in (("canary", request.canary), ("wave", request.wave), ("stop after", request.stop_after)):
        if limit:
            yield name, str(limit)
    yield "deadline", f"{format_duration(request.deadline)} after the approval"
    yield "digest", found.digest


def _short(names: Sequence[str]) -> str:
    folded = fold(names)
    return folded if len(folded) <= MAX_NAMES else f"{folded[:MAX_NAMES]}… (--output json has all of them)"


def _show(found: BatchStatus, outcome: str, output: Output) -> None:
    show_value(
        found,
        output,
        name=lambda found: found.id,
        text=lambda found: typer.echo(f"{printable(found.id)}: {outcome} ({found.state})"),
    )
