"""Executions of `tachikoma exec` that need the models of the library: with a session, as JSON, in files, or detached.

Requests with a field out of its bounds come here as well, since the models report what is wrong with them.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import typer

from tachikoma.cli.commands.execute import Channel, Form
from tachikoma.cli.commands.executions import outcome_of
from tachikoma.cli.commands.following import exit_code, explain_unknown_agent, follow
from tachikoma.cli.commands.interrupts import Interrupts, output_failed
from tachikoma.cli.commands.logs import write_output
from tachikoma.cli.descriptors import OutputFailed, write_all
from tachikoma.cli.messages import note, note_approval
from tachikoma.cli.output import INTERRUPTED, Output, show_value
from tachikoma.cli.result import CollectedOutput, OutputFolder
from tachikoma.cli.session import Left, run_session
from tachikoma.cli.terminal import terminal_of
from tachikoma.client.aio import AsyncClient
from tachikoma.client.interactive import AsyncSession
from tachikoma.errors import AgentUnknown, ConfigurationError, TachikomaError
from tachikoma.vocabulary.request_rules import MAX_STDIN_BYTES
from tachikoma.vocabulary.requests import ExecRequest, make_request
from tachikoma.vocabulary.results import ExecOutput, ExecResponse, ExecStatus

__all__ = ["attend", "run"]

#: Longest wait for the orchestrator to confirm the end of a session.
CANCEL_SECONDS = 3.0


def run(values: dict[str, Any], stdin: bytes, channel: Channel, form: Form) -> int:
    """Run a request in the way that its input needs, and return the exit code of this program.

    Args:
        values: the fields of the request, without its input.
        stdin: the input that was read.
        channel: the way of the input.
        form: the form of the report.

    Raises:
        InvalidRequest: a field cannot be used.
    """
    if channel.interactive or (len(stdin) > MAX_STDIN_BYTES and form.streams):
        terminal = {"terminal": terminal_of(0)} if channel.tty else {}
        request = make_request(values | {"interactive": True, "tty": channel.tty} | terminal)
        return asyncio.run(_run_session(request, stdin))
    return asyncio.run(_run(make_request(values | {"stdin": stdin}), form))


async def _run(request: ExecRequest, form: Form) -> int:
    """Run a request and return the exit code of this program."""
    async with AsyncClient() as client:
        if form.detach:
            return await _submit(client, request, form.output)
        try:
            saved = OutputFolder(form.folder, request.id) if form.folder is not None else None
        except OutputFailed as error:
            # Nothing runs yet that would have to be cancelled.
            raise ConfigurationError(str(error)) from None
        try:
            # `follow` cancels by itself, since it reports what came of it.
            showing = _show(client.execute_stream(request, detach=True), form.output, saved)
            return await follow(showing, client.cancel, request.id, request.agent_id, request.command)
        finally:
            if saved is not None:
                saved.close()


async def _run_session(request: ExecRequest, stdin: bytes) -> int:
    """Run a request whose input follows it, and return the exit code of this program."""
    async with AsyncClient() as client:
        try:
            return await attend(client, client.session(request), tty=request.tty, before=stdin)
        except AgentUnknown as error:
            raise await explain_unknown_agent(error, request.agent_id) from None


async def attend(client: AsyncClient, session: AsyncSession, *, tty: bool, before: bytes = b"") -> int:
    """Run a session at this terminal or pipe, and return the exit code of this program.

    Args:
        client: of the session.
        session: the session.
        tty: whether it has a terminal.
        before: input that was read before.
    """
    interrupts = None if tty else Interrupts(client.cancel, session.id)
    try:
        result = await run_session(session, tty=tty, before=before)
    except Left as left:
        if left.ending:
            return await _ending(client, session.id)
        note(f"left; the session continues: `tachikoma sessions attach {session.id}` returns to it")
        return 0
    except OutputFailed as error:
        return await output_failed(error, client.cancel, session.id)
    except asyncio.CancelledError:
        if interrupts is not None:
            await interrupts.delivered()
        note(f"left; the execution continues as {session.id}")
        return INTERRUPTED
    finally:
        if interrupts is not None:
            interrupts.close()
    return exit_code(result, quiet=False)


async def _ending(client: AsyncClient, exec_id: str) -> int:
    """Report what came of a session that was asked to end and has not ended yet, and return the exit code."""
    try:
        async with asyncio.timeout(CANCEL_SECONDS):
            answer = await client.cancel(exec_id)
    except (TachikomaError, TimeoutError):
        note(f"left; no orchestrator answers, so it may continue: `tachikoma sessions close {exec_id}` ends it")
    else:
        note(f"left; {answer.status.id}: {outcome_of(answer)}")
    return INTERRUPTED


async def _show(stream: AsyncIterator[ExecOutput], output: Output, saved: OutputFolder | None) -> ExecResponse | None:
    """Write an execution's output in its form; with json, as one document at the end."""
    if saved is not None:
        stream = _saving(stream, saved)
    if output is not Output.JSON:
        return await write_output(stream, output)
    collected = CollectedOutput()
    result = None
    async for item in stream:
        collected.add(item)
        if item.result is not None:
            result = item.result
        elif item.status is not None:
            note_approval(item.status)
    if result is not None:
        document = json.dumps(collected.result(result).to_dict(), indent=2, ensure_ascii=False)
        await write_all(1, f"{document}\n".encode())
    return result


async def _saving(stream: AsyncIterator[ExecOutput], saved: OutputFolder) -> AsyncIterator[ExecOutput]:
    async for item in stream:
        saved.add(item)
        yield item


async def _submit(client: AsyncClient, request: ExecRequest, output: Output) -> int:
    status = await client.submit(request)
    show_value(status, output, name=lambda status: status.id, text=_show_submitted)
    return 0


def _show_submitted(status: ExecStatus) -> None:
    typer.echo(status.id)
    note_approval(status)
