"""`tachikoma exec` and `tachikoma logs`: commands that carry another command's output.

`exec` ends as the remote command does. Its own endings are those that `timeout`, `env` and `docker` use: 124 when the
command was killed at its timeout, 125 when it was not run (refused, offline, expired) or its end is unknown; 126 and
127 as in a shell; 130 when it was cancelled.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from typing import Annotated, Any

import typer

from tachikoma.cli.show import Output, OutputOption, as_json, clock, printable
from tachikoma.client.aio import AsyncClient
from tachikoma.errors import InvalidRequest, NotFound, TachikomaError
from tachikoma.vocabulary.pairs import parse_pair
from tachikoma.vocabulary.requests import MAX_STDIN_BYTES, ExecRequest, make_request
from tachikoma.vocabulary.results import ExecOutput, ExecResponse, ExecStatus, OutputKind
from tachikoma.vocabulary.states import ExecState
from tachikoma.vocabulary.types import parse_duration

__all__ = ["add_to"]

TIMED_OUT = 124
NOT_RUN = 125
CANCELLED = 130
BROKEN_PIPE = 141
#: After the second Ctrl-C, how long the first one's cancel may take to arrive.
LEAVE_SECONDS = 2.0


def add_to(app: typer.Typer) -> None:
    """Add the commands of this module."""
    # Options end where the agent stands, so that those of the remote command need no `--`.
    app.command("exec", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})(execute)
    app.command()(logs)


def _say(text: str) -> None:
    typer.echo(f"tachikoma: {printable(text)}", err=True)


def _environment(given: list[str]) -> dict[str, str]:
    environment: dict[str, str] = {}
    for item in given:
        if "=" not in item:
            # As with `docker run -e NAME`: the caller's own value.
            if item not in os.environ:
                raise InvalidRequest(f"the variable {item!r} is not set here; write {item}=value")
            environment[item] = os.environ[item]
            continue
        try:
            name, value = parse_pair(item)
        except ValueError as error:
            raise InvalidRequest(f"--env: {error}") from None
        environment[name] = value
    return environment


def _stdin() -> bytes:
    """What is piped in. One byte beyond the bound is read, so that too much is refused rather than cut."""
    if sys.stdin is None or sys.stdin.isatty():
        return b""
    return sys.stdin.buffer.read(MAX_STDIN_BYTES + 1)


def execute(
    agent: Annotated[str, typer.Argument(help="The agent to run on.")],
    command: Annotated[list[str], typer.Argument(help="The program and its arguments.")],
    timeout: Annotated[str | None, typer.Option(help="How long it may run: 30s, 5m, 1h30m.")] = None,
    env: Annotated[
        list[str] | None, typer.Option("--env", "-e", help="NAME=value, or NAME for the value here.")
    ] = None,
    cwd: Annotated[str, typer.Option(help="Working directory on the agent.")] = "",
    user: Annotated[str, typer.Option("--user", "-u", help="User on the agent.")] = "",
    memory: Annotated[str | None, typer.Option(help="At most so much memory: 512MiB. Lowers policy's limit.")] = None,
    cpus: Annotated[float | None, typer.Option(help="At most so many processors' time: 0.5.")] = None,
    pids: Annotated[int | None, typer.Option(help="At most so many processes and threads.")] = None,
    no_stdin: Annotated[bool, typer.Option("--no-stdin", "-n", help="Do not read standard input.")] = False,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Do not wait; print the execution's id.")] = False,
    exec_id: Annotated[str | None, typer.Option("--id", help="Id of the execution; safe to repeat with it.")] = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Run a command on an agent, show its output as it comes, and end as it ends."""
    if command[0] == "--":
        command = command[1:]
    values: dict[str, Any] = {"agent_id": agent, "command": command, "work_dir": cwd, "user": user}
    try:
        if timeout is not None:
            try:
                values["timeout"] = parse_duration(timeout)
            except ValueError as error:
                raise InvalidRequest(f"--timeout: {error}") from None
        if exec_id is not None:
            values["id"] = exec_id
        limits = {"memory": memory, "cpus": cpus, "pids": pids}
        if any(value is not None for value in limits.values()):
            values["limits"] = limits
        values["environment"] = _environment(env or [])
        values["stdin"] = b"" if no_stdin else _stdin()
        code = asyncio.run(_execute(make_request(values), detach=detach, output=output))
    except TachikomaError as error:
        _say(str(error))
        code = NOT_RUN
    raise typer.Exit(code)


async def _execute(request: ExecRequest, *, detach: bool, output: Output) -> int:
    async with AsyncClient() as client:
        if detach:
            status = await client.submit(request)
            if output is Output.JSON:
                as_json(status)
            else:
                typer.echo(status.id)
                _say_approval(status)
            return 0
        interrupts = _Interrupts(client, request.id)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, interrupts.on_signal)
        try:
            result = await _carry(client.execute_stream(request), output)
        except BrokenPipeError:
            # Whoever read the output has left: so has the reason to run.
            await client.cancel(request.id)
            # Nothing more can be written; and nobody is to complain of that at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            return BROKEN_PIPE
        except asyncio.CancelledError:
            await interrupts.delivered()
            _say(f"left; the execution goes on as {request.id}")
            return CANCELLED
        finally:
            interrupts.done()
        assert result is not None
        return _exit_code(result, told=output is Output.JSON)


class _Interrupts:
    """Ctrl-C: the first asks for the end of the remote command, the second leaves at once."""

    def __init__(self, client: AsyncClient, exec_id: str) -> None:
        self._client = client
        self._exec_id = exec_id
        self._main = asyncio.current_task()
        self._asking: asyncio.Task[None] | None = None

    def on_signal(self) -> None:
        if self._asking is not None:
            if self._main is not None:
                self._main.cancel()
            return
        _say("cancelling; Ctrl-C again to leave")
        self._asking = asyncio.get_running_loop().create_task(self._ask())

    async def _ask(self) -> None:
        try:
            await self._client.cancel(self._exec_id)
        except NotFound:
            # Not accepted yet: then there is nothing to cancel.
            if self._main is not None:
                self._main.cancel()
        except TachikomaError as error:
            _say(f"cannot cancel: {error}")

    async def delivered(self) -> None:
        """Give the wish to cancel a moment to arrive, so that leaving in a hurry still ends the command."""
        if self._asking is not None:
            await asyncio.wait((self._asking,), timeout=LEAVE_SECONDS)

    def done(self) -> None:
        if self._asking is not None:
            self._asking.cancel()


async def _carry(stream: AsyncIterator[ExecOutput], output: Output) -> ExecResponse | None:
    """Bring output where it belongs; the result, if one came."""
    result: ExecResponse | None = None
    async for item in stream:
        if item.kind is OutputKind.RESULT:
            result = item.result
        if output is Output.JSON:
            sys.stdout.write(item.to_json() + "\n")
            sys.stdout.flush()
        elif item.kind is OutputKind.STDOUT:
            _write(1, item.data)
        elif item.kind is OutputKind.STDERR:
            _write(2, item.data)
        elif item.kind is OutputKind.GAP:
            _say(f"{item.missing_bytes} bytes of output are no longer there")
        elif item.status is not None:
            _say_approval(item.status)
    return result


def _say_approval(status: ExecStatus) -> None:
    if status.state is ExecState.PENDING_APPROVAL:
        _say(f"waits until {clock(status.deadline)} for an approval by {' or '.join(status.approvers)}")
        _say(f"they can give it with: tachikoma approve {status.id}")
    elif status.approved_by:
        _say(f"approved by {status.approved_by}: {status.approval_reason}")


def _write(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _exit_code(result: ExecResponse, *, told: bool) -> int:
    if result.error and not told:
        _say(f"{result.agent_id}: {result.error}")
    if result.state in (ExecState.SUCCEEDED, ExecState.FAILED, ExecState.OUT_OF_MEMORY):
        return result.exit_code
    return {ExecState.TIMED_OUT: TIMED_OUT, ExecState.CANCELLED: CANCELLED}.get(result.state, NOT_RUN)


def logs(
    exec_id: Annotated[str, typer.Argument(help="The execution.")],
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until it ends.")] = False,
    after: Annotated[int, typer.Option(min=0, help="Begin after the chunk of this number.")] = 0,
    output: OutputOption = Output.TEXT,
) -> None:
    """Show the output of an execution, also after its end."""

    async def show() -> None:
        async with AsyncClient() as client:
            await _carry(client.attach(exec_id, after_seq=after, follow=follow), output)

    try:
        asyncio.run(show())
    except KeyboardInterrupt:
        raise typer.Exit(CANCELLED) from None
