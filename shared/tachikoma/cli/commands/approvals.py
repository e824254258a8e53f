"""`tachikoma approvals`, `approve` and `reject`."""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Iterator, Sequence
from typing import Annotated

import typer

from tachikoma.cli import completion
from tachikoma.cli.lookup import with_full_id
from tachikoma.cli.options import YesOption, confirm, required_reason
from tachikoma.cli.output import Output, OutputOption, WatchOption, WideOption, show_list, show_value, watch
from tachikoma.cli.show import age, facts, moment, short_id
from tachikoma.cli.tables import Column, table
from tachikoma.client.sync import Client
from tachikoma.vocabulary.durations import format_duration
from tachikoma.vocabulary.results import Approval, ExecStatus

__all__ = ["ReasonOption", "add_to", "quoted", "stdin_facts"]

#: Lines and characters of standard input that are shown; its digest covers all of it.
STDIN_LINES = 20
STDIN_CHARACTERS = 2000

ReasonOption = Annotated[
    str | None, typer.Option("--reason", "-m", help="Reason, recorded in the audit trail; asked for if not given.")
]


def add_to(app: typer.Typer) -> None:
    """Add the commands of this module."""
    for command in (approvals, approve, reject):
        app.command()(command)


def approvals(
    exec_id: Annotated[
        str, typer.Argument(help="Show everything that this execution would run.", autocompletion=completion.waiting)
    ] = "",
    wide: WideOption = False,
    again: WatchOption = False,
    output: OutputOption = Output.TEXT,
) -> None:
    """List the waiting executions that you may approve or have requested, or show one in full."""

    def show(form: Output) -> None:
        if exec_id:
            found = with_full_id(client, exec_id, client.approval)
            show_value(found, form, name=lambda found: found.status.id, text=_show_in_full)
        else:
            waiting = client.approvals()
            show_list(waiting, form, name=lambda item: item.id, text=lambda found: _show_list(found, wide))

    with Client() as client:
        watch(show, output, again=again)


#: Columns of the list; the last ones to be left out have the smallest numbers.
COLUMNS = (
    Column("ID", is_id=True),
    Column("AGENT", 1, elastic=True),
    Column("BY", 2, elastic=True),
    Column("ASKED", 5),
    Column("UNTIL", 3),
    Column("APPROVERS", 4, elastic=True),
    Column("COMMAND", elastic=True),
)


def _show_list(found: Sequence[ExecStatus], wide: bool) -> None:
    rows = (
        (
            item.id,
            item.agent_id,
            short_id(item.requested_by),
            age(item.request_time),
            age(item.deadline),
            ", ".join(short_id(text) for text in item.approvers),
            shlex.join(item.command),
        )
        for item in found
    )
    table(COLUMNS, rows, wide=wide)


def _show_in_full(found: Approval) -> None:
    """Print everything that would run, for the approver who is responsible for it."""
    # A line break in a value must not look like another fact.
    facts((name, value.replace("\n", "\\n")) for name, value in _facts(found))


def quoted(word: str) -> str:
    r"""Return a word as a shell reads it. A word with a line break is $'a\nb', the one with a backslash is 'a\nb'."""
    if word.isprintable():
        return shlex.quote(word)
    escaped = word.replace("\\", "\\\\").replace("'", "\\'")
    return "$'" + "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in escaped) + "'"


def _facts(found: Approval) -> Iterator[tuple[str, str]]:
    request, status = found.request, found.status
    yield "id", status.id
    yield "agent", status.agent_id
    yield "requested by", status.requested_by
    yield "asked at", moment(status.request_time)
    yield "until", moment(status.deadline)
    yield "policy", found.policy
    yield "command", " ".join(map(quoted, request.command))
    yield "user", request.user or "the agent's default user"
    yield "directory", quoted(request.work_dir) if request.work_dir else "the user's home"
    for name, value in sorted(request.environment.items()):
        yield "variable", f"{name}={quoted(value)}"
    if request.timeout is not None:
        yield "timeout", format_duration(request.timeout)
    limits = found.limits.model_dump(by_alias=True, exclude_none=True)
    if limits:
        yield "limits", ", ".join(f"{name} {value}" for name, value in limits.items())
    yield "isolation", request.isolation.value if request.isolation else "that of the agent"
    if request.tty:
        yield "terminal", "yes"
    if request.interactive:
        yield "input", "follows while the command runs: it is not shown here, and the approval covers all of it"
    yield from stdin_facts(request.stdin)
    yield "digest", found.digest


def stdin_facts(stdin: bytes) -> Iterator[tuple[str, str]]:
    """Yield the size, the digest and the first lines of a request's standard input, if it has any."""
    if not stdin:
        return
    yield "stdin", f"{len(stdin)} bytes, SHA-256 {hashlib.sha256(stdin).hexdigest()}"
    text = stdin.decode("utf-8", "backslashreplace")
    lines = text[:STDIN_CHARACTERS].splitlines()[:STDIN_LINES]
    for line in lines:
        yield "", f"| {line}"
    if lines != text.splitlines():
        yield "", "| … (--output json has all of it)"


def approve(
    exec_id: Annotated[str, typer.Argument(help="The execution.", autocompletion=completion.waiting)],
    reason: ReasonOption = None,
    digest: Annotated[
        str, typer.Option(help="Digest of the reviewed request; a changed request is not approved.")
    ] = "",
    yes: YesOption = False,
    output: OutputOption = Output.TEXT,
) -> None:
    """Show everything that a waiting execution would run, and approve it."""
    with Client() as client:
        status = with_full_id(
            client,
            exec_id,
            lambda full: client.approve(full, digest or _reviewed(client, full, yes, output), required_reason(reason)),
        )
    _show(status, "approved", output)


def _reviewed(client: Client, exec_id: str, yes: bool, output: Output) -> str:
    """Show an execution in full, ask for a confirmation, and return the digest of what was shown."""
    found = client.approval(exec_id)
    if output is Output.TEXT:
        _show_in_full(found)
    confirm("approve this", yes=yes, instead="--digest of the request that you reviewed, or --yes")
    return found.digest


def reject(
    exec_id: Annotated[str, typer.Argument(help="The execution.", autocompletion=completion.waiting)],
    reason: ReasonOption = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Reject a waiting execution; it never runs, and its requester sees the reason."""
    with Client() as client:
        given = required_reason(reason)
        status = with_full_id(client, exec_id, lambda full: client.reject(full, given))
    _show(status, "rejected", output)


def _show(status: ExecStatus, outcome: str, output: Output) -> None:
    show_value(
        status,
        output,
        name=lambda status: status.id,
        text=lambda status: typer.echo(f"{status.id}: {outcome} ({status.state})"),
    )
