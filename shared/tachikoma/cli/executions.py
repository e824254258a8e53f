"""`tachikoma ps`, `status` and `cancel`."""

from __future__ import annotations

import shlex
from contextlib import suppress
from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.text import Text

from tachikoma.cli.show import Output, OutputOption, as_json, clock, colour_of, printable, short_id, table
from tachikoma.client.sync import Client
from tachikoma.errors import InvalidRequest
from tachikoma.vocabulary.results import CancelOutcome, ExecStatus
from tachikoma.vocabulary.states import ExecState
from tachikoma.vocabulary.types import format_duration, parse_duration

__all__ = ["add_to"]


def add_to(app: typer.Typer) -> None:
    """Add the commands of this module."""
    for command in (ps, status, cancel):
        app.command()(command)


def _state(value: ExecStatus) -> Text:
    return Text(value.state, style=colour_of(value.state))


def _moment(text: str, option: str) -> datetime | None:
    """A time as people write it: ISO 8601, in the local time zone where it names none, or how long ago."""
    if not text:
        return None
    with suppress(ValueError):
        return datetime.fromisoformat(text).astimezone()
    with suppress(ValueError):
        return datetime.now(UTC) - parse_duration(text)
    raise InvalidRequest(f"{option}: {text!r} is no time; write 2026-01-31T12:00, or 1h for an hour ago")


def ps(
    agent: Annotated[str, typer.Argument(help="Only this agent.")] = "",
    everything: Annotated[bool, typer.Option("--all", "-a", help="Also those that have ended.")] = False,
    by: Annotated[str, typer.Option(help="Only those of this SPIFFE ID.")] = "",
    state: Annotated[list[ExecState] | None, typer.Option(help="Only those in this state; may be repeated.")] = None,
    on: Annotated[str, typer.Option(help="Only on agents of this pattern or label: 'web-*', 'role=web'.")] = "",
    since: Annotated[str, typer.Option(help="Only newer ones: 2026-01-31T12:00, or 1h for an hour ago.")] = "",
    until: Annotated[str, typer.Option(help="Only older ones, likewise.")] = "",
    limit: Annotated[int, typer.Option("--limit", "-l", min=1, max=1000, help="At most so many.")] = 50,
    output: OutputOption = Output.TEXT,
) -> None:
    """List executions, newest first."""
    with Client() as client:
        found, token = client.list(
            agent, include_ended=everything, page_size=limit, requested_by=by, states=state or (), agents=on,
            since=_moment(since, "--since"), until=_moment(until, "--until"),
        )  # fmt: skip
    if output is Output.JSON:
        as_json(found)
        return
    table(
        ("ID", "AGENT", "STATE", "EXIT", "ASKED", "BY", "COMMAND"),
        [
            (
                item.id,
                item.agent_id,
                _state(item),
                str(item.exit_code) if item.exit_code >= 0 else "-",
                clock(item.request_time),
                short_id(item.requested_by),
                shlex.join(item.command),
            )
            for item in found
        ],
    )
    if token:
        typer.echo(f"there are more than these {len(found)}; use --limit", err=True)


def status(exec_id: Annotated[str, typer.Argument(help="The execution.")], output: OutputOption = Output.TEXT) -> None:
    """Tell where an execution stands, and how it came there."""
    with Client() as client:
        found = client.status(exec_id)
    if output is Output.JSON:
        as_json(found)
        return
    facts: list[tuple[str, str | Text]] = [
        ("id", found.id),
        ("agent", found.agent_id),
        ("state", _state(found)),
        ("command", shlex.join(found.command)),
        ("requested by", found.requested_by),
        ("policy", found.policy_applied),
        ("timeout", format_duration(found.timeout)),
    ]
    if found.user:
        facts.append(("user", found.user))
    if found.work_dir:
        facts.append(("directory", found.work_dir))
    if found.state.terminal:
        facts.append(("exit code", str(found.exit_code)))
    if found.error:
        facts.append(("error", found.error))
    if found.approvers:
        facts.append(("approvers", ", ".join(found.approvers)))
    if found.approved_by:
        facts.append(("approved by", f"{found.approved_by}: {found.approval_reason}"))
    if found.state in (ExecState.PENDING_APPROVAL, ExecState.QUEUED):
        facts.append(("waits until", clock(found.deadline)))
    if found.cancel_requested_by:
        facts.append(("cancelled by", found.cancel_requested_by))
    facts += [(f"at {clock(step.time)}", step.state) for step in found.history]
    width = max(len(name) for name, _ in facts)
    for name, value in facts:
        typer.echo(f"{name:<{width}}  {printable(str(value))}")


_TOLD = {
    CancelOutcome.CANCELLED: "cancelled before it started",
    CancelOutcome.REQUESTED: "its agent was told to end it",
    CancelOutcome.ALREADY_ENDED: "had ended before",
}


def cancel(
    exec_ids: Annotated[list[str], typer.Argument(help="The executions.")], output: OutputOption = Output.TEXT
) -> None:
    """End executions; what happened to each is told."""
    with Client() as client:
        answers = [client.cancel(exec_id) for exec_id in exec_ids]
    if output is Output.JSON:
        as_json(answers)
        return
    for answer in answers:
        typer.echo(f"{answer.status.id}: {_TOLD[answer.outcome]} ({answer.status.state})")
