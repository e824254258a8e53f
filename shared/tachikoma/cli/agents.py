"""`tachikoma agents`: who there is, and who takes executions."""

from __future__ import annotations

import sys
import time
from typing import Annotated

import typer
from rich.text import Text

from tachikoma.cli.show import Output, OutputOption, as_json, clock, printable, table
from tachikoma.client.sync import Client
from tachikoma.errors import InvalidRequest
from tachikoma.vocabulary.agents import AgentInfo
from tachikoma.vocabulary.states import ExecState
from tachikoma.vocabulary.types import parse_duration

__all__ = ["agents"]

#: Between looks at an agent that is being drained.
POLL_SECONDS = 0.5

agents = typer.Typer(
    invoke_without_command=True, help="List the agents and how they are; drain, resume, enroll and revoke them."
)


def _state(value: AgentInfo) -> Text:
    if value.revoked:
        return Text("revoked", style="red")
    if not value.online:
        return Text("offline", style="red")
    return Text("draining", style="yellow") if value.draining else Text("online", style="green")


@agents.callback()
def ls(context: typer.Context, output: OutputOption = Output.TEXT) -> None:
    """List the agents and how they are; drain, resume, enroll and revoke them."""
    if context.invoked_subcommand is not None:
        return
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
            "CERTIFICATE",
            "VERSION",
            "HOST",
            "LABELS",
        ),
        [
            (
                item.id,
                _state(item),
                clock(item.last_seen),
                f"{item.running}/{item.slots}",
                str(item.queued),
                f"{item.load:.2f}",
                f"{item.memory_used:.0%}",
                f"{item.disk_used:.0%}",
                clock(item.trust.expires if item.trust else None),
                item.version,
                item.hostname,
                " ".join(f"{name}={value}" for name, value in item.labels.items()),
            )
            for item in found
        ],
    )
    for item in found:
        for warning in item.warnings:
            typer.echo(f"{item.id}: {printable(warning)}", err=True)
        if item.draining:
            typer.echo(f"{item.id}: drained by {item.drained_by}: {printable(item.drain_reason)}", err=True)
        if item.revoked:
            typer.echo(f"{item.id}: revoked by {item.revoked_by}: {printable(item.revoke_reason)}", err=True)


@agents.command()
def drain(
    agent: Annotated[str, typer.Argument(help="The agent.")],
    reason: Annotated[str, typer.Option("--reason", "-r", help="Why; it goes on the record.")],
    wait: Annotated[bool, typer.Option("--wait", "-w", help="Return when nothing runs or waits on it.")] = False,
    output: OutputOption = Output.TEXT,
) -> None:
    """Let an agent take no new executions; what it has goes on."""
    with Client() as client:
        found = client.drain_agent(agent, reason)
        # Asked of the ledger: what an agent says of itself is some seconds old.
        while wait and client.list(agent, states=(ExecState.QUEUED, ExecState.STARTED), page_size=1)[0]:
            time.sleep(POLL_SECONDS)
            found = next((item for item in client.agents() if item.id == agent), found)
            if not found.draining:
                typer.echo(f"{agent}: was resumed", err=True)
                raise typer.Exit(1)
    _tell(found, output)


@agents.command()
def resume(agent: Annotated[str, typer.Argument(help="The agent.")], output: OutputOption = Output.TEXT) -> None:
    """Let an agent take executions again."""
    with Client() as client:
        found = client.resume_agent(agent)
    _tell(found, output)


@agents.command()
def enroll(
    agent: Annotated[str, typer.Argument(help="The agent that a host is to become.")],
    ttl: Annotated[str, typer.Option(help="How long the token lasts, at most 24h.")] = "15m",
    output: OutputOption = Output.TEXT,
) -> None:
    """Print a token, with which one host may join once as an agent, for `tachikoma worker join`."""
    try:
        lasts = parse_duration(ttl)
    except ValueError as error:
        raise InvalidRequest(f"--ttl: {error}") from None
    with Client() as client:
        made = client.enroll_agent(agent, lasts)
    if output is Output.JSON:
        as_json(made)
        return
    typer.echo(made.token)
    typer.echo(f"whoever has it may join as {agent}, once, until {clock(made.expires)}; on that host:", err=True)
    typer.echo("  tachikoma worker join --token-file FILE --identity FOLDER", err=True)


@agents.command()
def revoke(
    agent: Annotated[str, typer.Argument(help="The agent.")],
    reason: Annotated[str, typer.Option("--reason", "-r", help="Why; it goes on the record.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    output: OutputOption = Output.TEXT,
) -> None:
    """Cut an agent off at once, until it joins again: what waits for it never starts, what it runs is lost."""
    if not yes:
        if not sys.stdin.isatty():
            raise InvalidRequest("nobody can be asked here: give --yes")
        typer.confirm(f"cut {agent} off? what it runs is lost", abort=True, err=True)
    with Client() as client:
        done = client.revoke_agent(agent, reason)
    for warning in done.warnings:
        typer.echo(f"{done.agent_id}: {printable(warning)}", err=True)
    if output is Output.JSON:
        as_json(done)
        return
    typer.echo(f"{done.agent_id}: cut off; {done.cancelled} that waited are cancelled, {done.lost} that ran are lost")


def _tell(found: AgentInfo, output: Output) -> None:
    if output is Output.JSON:
        as_json(found)
        return
    typer.echo(f"{found.id}: {'takes no new executions' if found.draining else 'takes executions'}")
