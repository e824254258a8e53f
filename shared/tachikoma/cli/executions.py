"""`tachikoma ps`, `status`, `cancel` and `agents`."""

from __future__ import annotations

import shlex
from typing import Annotated

import typer
from rich.text import Text

from tachikoma.cli.show import Output, OutputOption, as_json, clock, colour_of, printable, short_id, table
from tachikoma.client import Client
from tachikoma.fields import format_duration
from tachikoma.models import CancelOutcome, ExecState, ExecStatus

__all__ = ["add_to"]


def add_to(app: typer.Typer) -> None:
    """Add the commands of this module."""
    for command in (ps, status, cancel, agents):
        app.command()(command)


def _state(value: ExecStatus) -> Text:
    return Text(value.state, style=colour_of(value.state))


def ps(
    agent: Annotated[str, typer.Argument(help="Only this agent.")] = "",
    everything: Annotated[bool, typer.Option("--all", "-a", help="Also those that have ended.")] = False,
    limit: Annotated[int, typer.Option("--limit", "-l", min=1, max=1000, help="At most so many.")] = 50,
    output: OutputOption = Output.TEXT,
) -> None:
    """List executions, newest first."""
    with Client() as client:
        found, token = client.list(agent, include_ended=everything, page_size=limit)
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


def agents(output: OutputOption = Output.TEXT) -> None:
    """List the agents and how they are."""
    with Client() as client:
        found = client.agents()
    if output is Output.JSON:
        as_json(found)
        return
    table(
        (
            "AGENT",
            "STATE",
            "SEEN",
            "RUNNING",
            "QUEUED",
            "LOAD",
            "MEMORY",
            "DISK",
            "VERSION",
            "CERTIFICATE",
            "HOST",
            "LABELS",
        ),
        [
            (
                item.id,
                Text("online", style="green") if item.online else Text("offline", style="red"),
                clock(item.last_seen),
                f"{item.running}/{item.slots}",
                str(item.queued),
                f"{item.load:.2f}",
                f"{item.memory_used:.0%}",
                f"{item.disk_used:.0%}",
                item.version,
                clock(item.trust.expires if item.trust else None),
                item.hostname,
                " ".join(f"{name}={value}" for name, value in item.labels.items()),
            )
            for item in found
        ],
    )
    for item in found:
        for warning in item.warnings:
            typer.echo(f"{item.id}: {printable(warning)}", err=True)
