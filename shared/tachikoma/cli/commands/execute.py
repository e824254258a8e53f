"""`tachikoma exec`.

`exec` exits as the remote command does. Its own exit codes are those of `timeout`, `env` and `docker`: 124 when the
command was killed at its timeout, 125 when it did not run (refused, offline, expired) or its outcome is unknown.
126 and 127 are as in a shell, 130 means cancelled. Output that this process cannot write cancels the command: 141 when
the reader has gone, 125 for another fault.
"""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

import typer

from tachikoma.cli.commands.interrupts import Interrupts
from tachikoma.cli.commands.logs import BROKEN_PIPE, note, note_approval, write_output
from tachikoma.cli.descriptors import OutputFailed, abandon_output, read_input
from tachikoma.cli.options import duration, environment, remote_command
from tachikoma.cli.output import INTERRUPTED, Output, OutputOption
from tachikoma.cli.show import as_json
from tachikoma.client.aio import AsyncClient
from tachikoma.errors import TachikomaError
from tachikoma.vocabulary.requests import MAX_STDIN_BYTES, ExecRequest, make_request
from tachikoma.vocabulary.results import ExecResponse
from tachikoma.vocabulary.states import ExecState

__all__ = ["add_to"]

TIMED_OUT = 124
NOT_RUN = 125


def add_to(app: typer.Typer) -> None:
    """Add the commands of this module."""
    # Options end at the agent's name, so that those of the remote command need no `--`.
    app.command("exec", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})(execute)


def execute(
    agent: Annotated[str, typer.Argument(help="The agent to run on.")],
    command: Annotated[list[str], typer.Argument(help="The program and its arguments.")],
    timeout: Annotated[str | None, typer.Option(help="How long it may run: 30s, 5m, 1h30m.")] = None,
    env: Annotated[
        list[str] | None, typer.Option("--env", "-e", help="NAME=value, or NAME for the value on this host.")
    ] = None,
    cwd: Annotated[str, typer.Option(help="Working directory on the agent.")] = "",
    user: Annotated[str, typer.Option("--user", "-u", help="User on the agent.")] = "",
    memory: Annotated[str | None, typer.Option(help="Limit of memory: 512MiB. Can only lower the policy's.")] = None,
    cpus: Annotated[float | None, typer.Option(help="Limit of processor time, in processors: 0.5.")] = None,
    pids: Annotated[int | None, typer.Option(help="Limit of processes and threads.")] = None,
    no_stdin: Annotated[bool, typer.Option("--no-stdin", "-n", help="Do not read standard input.")] = False,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Do not wait; print the execution's id.")] = False,
    exec_id: Annotated[str | None, typer.Option("--id", help="Id of the execution; safe to repeat with it.")] = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Run a command on an agent, stream its output, and exit with its exit code.

    Ctrl-C, SIGTERM and a closed terminal cancel the command, as does a reader of the output that leaves. A connection
    that breaks cancels nothing, and is resumed. With --detach the command continues without this program.
    """
    values: dict[str, Any] = {
        "agent_id": agent,
        "command": remote_command(command),
        "work_dir": cwd,
        "user": user,
        "limits": {"memory": memory, "cpus": cpus, "pids": pids},
        "id": exec_id,
    }
    try:
        if timeout is not None:
            values["timeout"] = duration(timeout, "--timeout")
        values["environment"] = environment(env or [])
        # One byte beyond the bound, so that more is refused and not shortened.
        values["stdin"] = b"" if no_stdin else read_input(MAX_STDIN_BYTES + 1)
        code = asyncio.run(_run(make_request(_given(values)), detach=detach, output=output))
    except TachikomaError as error:
        note(str(error))
        code = NOT_RUN
    raise typer.Exit(code)


def _given(values: dict[str, Any]) -> dict[str, Any]:
    """Leave out the options that were not given, whose defaults are the request's own."""
    if all(limit is None for limit in values["limits"].values()):
        values = {**values, "limits": None}
    return {name: value for name, value in values.items() if value is not None}


async def _run(request: ExecRequest, *, detach: bool, output: Output) -> int:
    """Run a request and return the exit code of this program."""
    async with AsyncClient() as client:
        if detach:
            return await _submit(client, request, output)
        interrupts = Interrupts(client, request.id)
        try:
            # This function cancels by itself, since it reports what came of it.
            result = await write_output(client.execute_stream(request, detach=True), output)
        except OutputFailed as error:
            return await _output_failed(client, request.id, error)
        except asyncio.CancelledError:
            await interrupts.delivered()
            note(f"left; the execution continues as {request.id}")
            return INTERRUPTED
        finally:
            interrupts.close()
        assert result is not None
        return _exit_code(result, quiet=output is Output.JSON)


async def _submit(client: AsyncClient, request: ExecRequest, output: Output) -> int:
    status = await client.submit(request)
    if output is Output.JSON:
        as_json(status)
    else:
        typer.echo(status.id)
        note_approval(status)
    return 0


async def _output_failed(client: AsyncClient, exec_id: str, error: OutputFailed) -> int:
    """Cancel an execution whose output cannot be written, and return the exit code of this program."""
    abandon_output()
    outcome = "the execution is cancelled"
    try:
        await client.cancel(exec_id)
    except TachikomaError as failure:
        outcome = f"the execution continues as {exec_id}, since it cannot be cancelled: {failure}"
    if error.reader_gone:
        return BROKEN_PIPE
    note(f"{error}; {outcome}")
    return NOT_RUN


def _exit_code(result: ExecResponse, *, quiet: bool) -> int:
    """Return the exit code for a result, and print its error unless `quiet`."""
    if result.error and not quiet:
        note(f"{result.agent_id}: {result.error}")
    if result.state in (ExecState.SUCCEEDED, ExecState.FAILED, ExecState.OUT_OF_MEMORY):
        return result.exit_code
    return {ExecState.TIMED_OUT: TIMED_OUT, ExecState.CANCELLED: INTERRUPTED}.get(result.state, NOT_RUN)
