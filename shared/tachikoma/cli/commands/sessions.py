"""`tachikoma sessions`: interactive executions that run, attaching to them, and ending them."""

from __future__ import annotations

import asyncio
import os
import shlex
from collections.abc import Sequence
from contextlib import aclosing, suppress
from typing import Annotated

import typer

from tachikoma.cli import completion
from tachikoma.cli.commands.attended import attend
from tachikoma.cli.commands.executions import outcome_of, session_facts
from tachikoma.cli.descriptors import write_all
from tachikoma.cli.lookup import with_full_id, with_full_id_async
from tachikoma.cli.output import Output, OutputOption, WatchOption, WideOption, show_list, show_value
from tachikoma.cli.output import watch as watch_list
from tachikoma.cli.show import age, state_cell
from tachikoma.cli.tables import Column, table
from tachikoma.cli.terminal import Modes, window_size
from tachikoma.client.aio import AsyncClient
from tachikoma.client.sync import Client
from tachikoma.errors import FailedPrecondition
from tachikoma.vocabulary.messages import OutputKind
from tachikoma.vocabulary.results import CancelResponse, ExecStatus

__all__ = ["sessions"]

sessions = typer.Typer(no_args_is_help=True, help="List interactive executions, attach to them and end them.")

#: Executions of one page, and most pages that are searched.
PAGE, MAX_PAGES = 1000, 20
COLUMNS = (
    Column("ID", is_id=True),
    Column("AGENT", 1, elastic=True),
    Column("STATE"),
    Column("ASKED", 2),
    Column("SESSION", 4, elastic=True),
    Column("RECORDED", 5),
    Column("COMMAND", elastic=True),
)


@sessions.command("ls")
def list_sessions(
    agent: Annotated[str, typer.Argument(help="Only sessions on this agent.", autocompletion=completion.agents)] = "",
    wide: WideOption = False,
    again: WatchOption = False,
    output: OutputOption = Output.TEXT,
) -> None:
    """List the interactive executions that have not ended, and their attached callers."""

    def show(form: Output) -> None:
        found = _interactive(client, agent)
        show_list(found, form, name=lambda item: item.id, text=lambda found: _show(found, wide))

    with Client() as client:
        watch_list(show, output, again=again)


def _interactive(client: Client, agent: str) -> list[ExecStatus]:
    """Return the interactive executions that have not ended."""
    found: list[ExecStatus] = []
    token = ""
    for _ in range(MAX_PAGES):
        page, token = client.list_page(agent, page_size=PAGE, page_token=token)
        found += (status for status in page if status.interactive)
        if not token:
            break
    return found


def _show(found: Sequence[ExecStatus], wide: bool) -> None:
    rows = (
        (
            item.id,
            item.agent_id,
            state_cell(item.state),
            age(item.request_time),
            ", ".join(session_facts(item)) or "-",
            "yes" if item.recorded else "-",
            shlex.join(item.command),
        )
        for item in found
    )
    table(COLUMNS, rows, wide=wide)


@sessions.command()
def attach(exec_id: Annotated[str, typer.Argument(help="The execution.", autocompletion=completion.sessions)]) -> None:
    """Attach to your interactive execution, and exit with its exit code. Another attached caller is detached.

    The screen is drawn again, with up to 1000 lines above it. If it has no terminal, its output so far is shown first.
    """
    raise typer.Exit(asyncio.run(_attach(exec_id)))


async def _attach(exec_id: str) -> int:
    async with AsyncClient() as client:
        status = await with_full_id_async(client, exec_id, client.status)
        if not status.interactive:
            raise FailedPrecondition(
                f"{status.id} is not interactive; `tachikoma logs -f {status.id}` follows its output"
            )
        if status.tty and not os.isatty(0):
            raise FailedPrecondition(f"{status.id} has a terminal, but standard input is none; attach from a terminal")
        screen = window_size(0) if status.tty else None
        return await attend(client, client.attach_session(status.id, screen=screen), tty=status.tty)


@sessions.command()
def watch(exec_id: Annotated[str, typer.Argument(help="The execution.", autocompletion=completion.sessions)]) -> None:
    """Follow the output of an interactive execution without typing; Ctrl-C leaves it. For observers by policy.

    The attached caller and `tachikoma sessions ls` see that you observe it. Nothing that you type reaches it. The list
    contains your own executions, so an observer needs the whole id of another requester's: ask its requester for it.
    """
    with suppress(KeyboardInterrupt):
        asyncio.run(_watch(exec_id))


async def _watch(exec_id: str) -> None:
    at_terminal = os.isatty(1)
    modes = Modes()
    async with AsyncClient() as client:

        async def follow(full_id: str) -> None:
            stream = client.watch_session(full_id, screen=window_size(1) if at_terminal else None)
            async with aclosing(stream) as messages:  # type: ignore[type-var]
                async for message in messages:
                    if message.data:
                        modes.feed(message.data)
                        await write_all(2 if message.kind is OutputKind.STDERR else 1, message.data)

        try:
            # Policy decides who observes, so an observer may know no status: the attempt itself shows what is allowed.
            await with_full_id_async(client, exec_id, follow)
        finally:
            if at_terminal:
                os.write(1, modes.reset())


@sessions.command()
def close(
    exec_id: Annotated[str, typer.Argument(help="The execution.", autocompletion=completion.sessions)],
    output: OutputOption = Output.TEXT,
) -> None:
    """End an interactive execution, attached or not; the same as `tachikoma cancel`."""
    with Client() as client:
        answer = with_full_id(client, exec_id, client.cancel)
    show_value(answer, output, name=lambda answer: answer.status.id, text=_show_closed)


def _show_closed(answer: CancelResponse) -> None:
    typer.echo(f"{answer.status.id}: {outcome_of(answer)}")
