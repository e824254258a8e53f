"""`tachikoma agents`: list, drain, resume, enroll and revoke agents."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Annotated

import typer
from rich.text import Text

from tachikoma.cli.options import ReasonOption, YesOption, confirm, duration
from tachikoma.cli.show import Output, OutputOption, as_json, clock, printable, table, warn
from tachikoma.client.sync import Client
from tachikoma.vocabulary.agents import AgentInfo
from tachikoma.vocabulary.states import ExecState

__all__ = ["add_to", "agents"]

#: Between two questions for the executions of an agent that is being drained, in seconds.
POLL_SECONDS = 0.5

agents = typer.Typer(
    invoke_without_command=True, help="List the agents and their state; drain, resume, enroll and revoke them."
)

AgentArgument = Annotated[str, typer.Argument(help="The agent.")]


def add_to(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.add_typer(agents, name="agents")


@agents.callback()
def ls(context: typer.Context, output: OutputOption = Output.TEXT) -> None:
    """List the agents and their state; drain, resume, enroll and revoke them."""
    if context.invoked_subcommand is not None:
        return
    with Client() as client:
        found = client.agents()
    if output is Output.JSON:
        as_json(found)
        return
    columns = ("AGENT", "STATE", "SEEN", "RUNNING", "QUEUED", "LOAD", "MEMORY", "DISK", "CERTIFICATE", "VERSION")
    table((*columns, "HOST", "LABELS"), [_row(item) for item in found])
    for item in found:
        for line in _notes(item):
            warn(f"{item.id}: {line}")


def _row(item: AgentInfo) -> tuple[str | Text, ...]:
    return (
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


def _state(item: AgentInfo) -> Text:
    if item.revoked:
        return Text("revoked", style="red")
    if not item.online:
        return Text("offline", style="red")
    return Text("draining", style="yellow") if item.draining else Text("online", style="green")


def _notes(item: AgentInfo) -> Iterator[str]:
    """Yield the warnings of an agent, and the operators who drained or revoked it."""
    yield from map(printable, item.warnings)
    if item.draining:
        yield f"drained by {item.drained_by}: {printable(item.drain_reason)}"
    if item.revoked:
        yield f"revoked by {item.revoked_by}: {printable(item.revoke_reason)}"


@agents.command()
def drain(
    agent: AgentArgument,
    reason: ReasonOption,
    wait: Annotated[
        bool, typer.Option("--wait", "-w", help="Return when no execution runs or waits on the agent.")
    ] = False,
    output: OutputOption = Output.TEXT,
) -> None:
    """Stop sending new executions to an agent; its present ones continue."""
    with Client() as client:
        found = client.drain_agent(agent, reason)
        if wait:
            found = _wait_until_idle(client, found)
    _show(found, output)


def _wait_until_idle(client: Client, agent: AgentInfo) -> AgentInfo:
    """Wait until an agent has no open execution; exit with 1 if it is resumed in the meantime."""
    # The ledger is asked, since an agent's own report is some seconds old.
    while client.list(agent.id, states=(ExecState.QUEUED, ExecState.STARTED), page_size=1)[0]:
        time.sleep(POLL_SECONDS)
        agent = next((item for item in client.agents() if item.id == agent.id), agent)
        if not agent.draining:
            warn(f"{agent.id}: was resumed")
            raise typer.Exit(1)
    return agent


@agents.command()
def resume(agent: AgentArgument, output: OutputOption = Output.TEXT) -> None:
    """Send executions to a drained agent again."""
    with Client() as client:
        found = client.resume_agent(agent)
    _show(found, output)


@agents.command()
def enroll(
    agent: Annotated[str, typer.Argument(help="The agent as which a host may join.")],
    ttl: Annotated[str, typer.Option(help="Lifetime of the token, at most 24h.")] = "15m",
    output: OutputOption = Output.TEXT,
) -> None:
    """Create and print a token with which one host may join once as an agent, by `tachikoma worker join`."""
    lifetime = duration(ttl, "--ttl")
    with Client() as client:
        made = client.enroll_agent(agent, lifetime)
    if output is Output.JSON:
        as_json(made)
        return
    typer.echo(made.token)
    warn(f"a host with this token may join as {agent}, once, until {clock(made.expires)}; run on that host:")
    warn("  tachikoma worker join --token-file FILE --identity FOLDER")


@agents.command()
def revoke(
    agent: AgentArgument,
    reason: ReasonOption,
    yes: YesOption = False,
    output: OutputOption = Output.TEXT,
) -> None:
    """Revoke an agent at once, until it joins again.

    Its waiting executions are cancelled, its running ones are lost.
    """
    confirm(f"revoke {agent}, whose running executions are then lost", yes=yes)
    with Client() as client:
        done = client.revoke_agent(agent, reason)
    for warning in done.warnings:
        warn(f"{done.agent_id}: {printable(warning)}")
    if output is Output.JSON:
        as_json(done)
        return
    typer.echo(
        f"{done.agent_id}: revoked; {done.cancelled} waiting executions cancelled, {done.lost} running ones lost"
    )


def _show(found: AgentInfo, output: Output) -> None:
    if output is Output.JSON:
        as_json(found)
        return
    typer.echo(f"{found.id}: {'takes no new executions' if found.draining else 'takes executions'}")
