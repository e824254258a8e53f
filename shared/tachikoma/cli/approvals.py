"""`tachikoma approvals`, `approve` and `reject`."""

from __future__ import annotations

import hashlib
import shlex
import sys
from typing import Annotated

import typer

from tachikoma.cli.show import Output, OutputOption, as_json, clock, printable, short_id, table
from tachikoma.client.sync import Client
from tachikoma.errors import InvalidRequest
from tachikoma.vocabulary.results import Approval, ExecStatus
from tachikoma.vocabulary.types import format_duration

__all__ = ["add_to"]

#: Lines and characters of standard input that are shown; its digest is of all of it.
STDIN_LINES = 20
STDIN_CHARACTERS = 2000

ReasonOption = Annotated[str | None, typer.Option("--reason", "-m", help="Why; it goes on the record.")]


def add_to(app: typer.Typer) -> None:
    """Add the commands of this module."""
    for command in (approvals, approve, reject):
        app.command()(command)


def approvals(
    exec_id: Annotated[str, typer.Argument(help="All that would run of this execution.")] = "",
    output: OutputOption = Output.TEXT,
) -> None:
    """List what waits for an approval that you may give or asked for; or show all that would run of one."""
    with Client() as client:
        found: Approval | tuple[ExecStatus, ...] = client.approval(exec_id) if exec_id else client.approvals()
    if output is Output.JSON:
        as_json(found)
    elif isinstance(found, Approval):
        _show(found)
    else:
        table(
            ("ID", "AGENT", "BY", "ASKED", "UNTIL", "APPROVERS", "COMMAND"),
            [
                (
                    item.id,
                    item.agent_id,
                    short_id(item.requested_by),
                    clock(item.request_time),
                    clock(item.deadline),
                    ", ".join(short_id(text) for text in item.approvers),
                    shlex.join(item.command),
                )
                for item in found
            ],
        )


def _show(found: Approval) -> None:
    """Everything, for the one who answers for it; each value so that it cannot command the terminal."""
    request, status = found.request, found.status
    facts = [
        ("id", status.id),
        ("agent", status.agent_id),
        ("requested by", status.requested_by),
        ("asked at", clock(status.request_time)),
        ("until", clock(status.deadline)),
        ("policy", found.policy),
        ("command", shlex.join(request.command)),
        ("user", request.user or "the agent's default user"),
        ("directory", request.work_dir or "the user's home"),
    ]
    facts += [("variable", f"{name}={value}") for name, value in sorted(request.environment.items())]
    if request.timeout is not None:
        facts.append(("timeout", format_duration(request.timeout)))
    limits = found.limits.model_dump(by_alias=True, exclude_none=True)
    if limits:
        facts.append(("limits", ", ".join(f"{name} {value}" for name, value in limits.items())))
    if request.stdin:
        facts.append(("stdin", f"{len(request.stdin)} bytes, SHA-256 {hashlib.sha256(request.stdin).hexdigest()}"))
        lines = request.stdin.decode("utf-8", "backslashreplace")[:STDIN_CHARACTERS].splitlines()[:STDIN_LINES]
        facts += [("", f"| {line}") for line in lines]
        shown = sum(len(line) + 1 for line in lines)
        if shown < len(request.stdin):
            facts.append(("", "| … (--output json has all of it)"))
    facts.append(("digest", found.digest))
    width = max(len(name) for name, _ in facts)
    for name, value in facts:
        # A line break in a value must not look like another line of ours.
        shown_value = printable(value).replace("\n", "\\n")
        typer.echo(f"{name:<{width}}  {shown_value}")


def _ask_reason(given: str | None) -> str:
    if given is not None:
        return given
    if not sys.stdin.isatty():
        raise InvalidRequest("a reason is required: --reason TEXT")
    return str(typer.prompt("reason", err=True))


def approve(
    exec_id: Annotated[str, typer.Argument(help="The execution.")],
    reason: ReasonOption = None,
    digest: Annotated[str, typer.Option(help="Digest of what you looked at; what differs is not approved.")] = "",
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    output: OutputOption = Output.TEXT,
) -> None:
    """Let a waiting execution run, after showing all that would run."""
    with Client() as client:
        if not digest:
            found = client.approval(exec_id)
            digest = found.digest
            if output is Output.TEXT:
                _show(found)
            if not yes:
                if not sys.stdin.isatty():
                    raise InvalidRequest("nobody can be asked here: give --digest of what you looked at, or --yes")
                typer.confirm("approve this?", abort=True, err=True)
        status = client.approve(exec_id, digest, _ask_reason(reason))
    _tell(status, "approved", output)


def reject(
    exec_id: Annotated[str, typer.Argument(help="The execution.")],
    reason: ReasonOption = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """End a waiting execution; it never runs, and its requester is told why."""
    with Client() as client:
        status = client.reject(exec_id, _ask_reason(reason))
    _tell(status, "rejected", output)


def _tell(status: ExecStatus, what: str, output: Output) -> None:
    if output is Output.JSON:
        as_json(status)
    else:
        typer.echo(f"{status.id}: {what} ({status.state})")
