"""`tachikoma agents`: list, drain, resume, label, enroll and revoke agents."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated

import typer

from tachikoma.cli import completion
from tachikoma.cli.options import ReasonOption, YesOption, confirm, duration, pairs
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
from tachikoma.cli.show import age, clock, warn
from tachikoma.cli.tables import Cell, Column, printable, table
from tachikoma.client.sync import Client
from tachikoma.errors import InvalidRequest
from tachikoma.vocabulary.agents import AgentInfo, Enrolment, Revocation
from tachikoma.vocabulary.labels import LabelChange
from tachikoma.vocabulary.states import ExecState

__all__ = ["add_to", "agents"]

#: A range as shells write it, such as {1..3}.
_BRACES = re.compile(r"\{([0-9]+)\.\.([0-9]+)\}")
#: Between two questions for the executions of an agent that is being drained, in seconds.
POLL_SECONDS = 0.5

agents = typer.Typer(
    invoke_without_command=True, help="List the agents and their state; drain, resume, label, enroll and revoke them."
)

AgentArgument = Annotated[str, typer.Argument(help="The agent.", autocompletion=completion.agents)]


def add_to(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.add_typer(agents, name="agents")


#: Columns of the list; the last ones to be left out have the smallest numbers.
COLUMNS = (
    Column("AGENT"),
    Column("STATE"),
    Column("SEEN", 2),
    Column("RUNNING", 1),
    Column("QUEUED", 3),
    Column("LOAD", 5),
    Column("MEMORY", 4),
    Column("DISK", 4),
    Column("CERTIFICATE", 6),
    Column("VERSION", 8),
    Column("ISOLATION", 8),
    Column("HOST", 7, elastic=True),
    Column("LABELS", 6, elastic=True),
    Column("REPORTED", 9, elastic=True),
)


@agents.callback()
def ls(
    context: typer.Context,
    wide: WideOption = False,
    again: WatchOption = False,
    output: OutputOption = Output.TEXT,
) -> None:
    """List the agents and their state; drain, resume, label, enroll and revoke them."""
    if context.invoked_subcommand is not None:
        return

    def text(found: Sequence[AgentInfo]) -> None:
        table(COLUMNS, map(_row, found), wide=wide)
        for item in found:
            for line in _notes(item):
                warn(f"{item.id}: {line}")

    with Client() as client:
        watch(lambda form: show_list(client.agents(), form, name=lambda item: item.id, text=text), output, again=again)


def _row(item: AgentInfo) -> tuple[str | Cell, ...]:
    return (
        item.id,
        _state(item),
        age(item.last_seen),
        f"{item.running}/{item.slots}",
        str(item.queued),
        f"{item.load:.2f}",
        f"{item.memory_used:.0%}",
        f"{item.disk_used:.0%}",
        age(item.trust.expires if item.trust else None),
        item.version,
        item.isolation[-1] if item.isolation else "-",
        item.hostname,
        _pairs(item.labels),
        _pairs(item.reported_labels),
    )


def _pairs(labels: Mapping[str, str]) -> str:
    return " ".join(f"{name}={value}" for name, value in labels.items())


def _state(item: AgentInfo) -> Cell:
    if item.revoked:
        return Cell("revoked", "red")
    if not item.online:
        return Cell("offline", "red")
    return Cell("draining", "yellow") if item.draining else Cell("online", "green")


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
    while client.list_page(agent.id, states=(ExecState.QUEUED, ExecState.STARTED), page_size=1)[0]:
        time.sleep(POLL_SECONDS)
        agent = next((item for item in client.agents() if item.id == agent.id), agent)
        if not agent.draining:
            report_failure(
                f"{agent.id} was resumed", reason="FAILED_PRECONDITION", code="FAILED_PRECONDITION",
                metadata={"agent": agent.id},
            )  # fmt: skip
            raise typer.Exit(1)
    return agent


@agents.command()
def resume(agent: AgentArgument, output: OutputOption = Output.TEXT) -> None:
    """Send executions to a drained agent again."""
    with Client() as client:
        found = client.resume_agent(agent)
    _show(found, output)


@agents.command()
def label(
    agent: AgentArgument,
    changes: Annotated[
        list[str], typer.Argument(metavar="NAME=VALUE|NAME-...", help="Labels to bind, or to remove with a minus.")
    ],
    output: OutputOption = Output.TEXT,
) -> None:
    """Bind labels to an agent, by which policies and targets select it, or remove them."""
    try:
        change = LabelChange.parse(changes)
    except ValueError as error:
        raise InvalidRequest(str(error)) from None
    with Client() as client:
        found = client.label_agent(agent, change.bind, remove=change.remove)
    show_value(found, output, name=lambda found: found.id, text=_show_labels)


def _show_labels(found: AgentInfo) -> None:
    typer.echo(f"{found.id}: {_pairs(found.labels) or 'no labels'}")


@agents.command()
def enroll(
    names: Annotated[
        list[str],
        typer.Argument(metavar="AGENT...", help="Agents as which hosts may join: web-1, web-[1-3] or 'web-{1..3}'."),
    ],
    ttl: Annotated[str, typer.Option(help="Lifetime of the token, at most 24h.")] = "15m",
    label: Annotated[
        list[str] | None, typer.Option("--label", help="NAME=VALUE to bind when a host joins. May be repeated.")
    ] = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Create and print a token with which one host may join once as an agent, by `tachikoma worker install`.

    For several agents, print a line with name and token for each.
    """
    lifetime, labels = duration(ttl, "--ttl"), pairs(label, "--label")
    agents = _names(names)
    with Client() as client:
        made = [client.enroll_agent(agent, lifetime, labels=labels) for agent in agents]
    single = agents == names and len(agents) == 1
    show_list(made, output, name=lambda made: made.token, text=_show_token if single else _show_tokens)


def _names(given: Sequence[str]) -> list[str]:
    """Return the names of node sets, and of the shell's braces with numbers in them, each once."""
    # Imported here: the other commands need no node sets.
    from tachikoma.targets.nodesets import expand

    return list(dict.fromkeys(name for text in given for name in expand(_BRACES.sub(r"[\1-\2]", text))))


def _show_tokens(made: Sequence[Enrolment]) -> None:
    for item in made:
        typer.echo(f"{item.agent_id} {item.token}")
    warn("on each host: tachikoma worker install --token-file FILE")


def _show_token(made: Sequence[Enrolment]) -> None:
    (item,) = made
    typer.echo(item.token)
    warn(f"a host with this token may join as {item.agent_id}, once, until {clock(item.expires)}; run on that host:")
    warn("  tachikoma worker install --token-file FILE")
    warn("or, without a unit: tachikoma worker join --token-file FILE --identity FOLDER")


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
    show_value(done, output, name=lambda done: done.agent_id, text=_show_revocation)


def _show_revocation(done: Revocation) -> None:
    typer.echo(
        f"{done.agent_id}: revoked; {done.cancelled} waiting executions cancelled, {done.lost} running ones lost"
    )


def _show(found: AgentInfo, output: Output) -> None:
    show_value(found, output, name=lambda found: found.id, text=_show_drained)


def _show_drained(found: AgentInfo) -> None:
    typer.echo(f"{found.id}: {'takes no new executions' if found.draining else 'takes executions'}")
