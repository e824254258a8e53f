"""`tachikoma exec`.

`exec` exits as the remote command does. Its own exit codes are those of `timeout`, `env` and `docker`: 124 when the
command was killed at its timeout, 125 when it did not run (refused, offline, expired) or its outcome is unknown.
126 and 127 are as in a shell, 130 means cancelled. Output that this process cannot write cancels the command: 141 when
the reader has gone, 125 for another fault. A session that is left running ends this program with 0.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

import typer

from tachikoma.cli import completion
from tachikoma.cli.commands import ordinary
from tachikoma.cli.commands.interrupts import reported
from tachikoma.cli.descriptors import read_input
from tachikoma.cli.messages import note
from tachikoma.cli.options import (
    DetachOption,
    EnvironmentOption,
    OutputFolderOption,
    duration,
    environment,
    refuse_option,
    remote_command,
)
from tachikoma.cli.output import Output, OutputOption
from tachikoma.errors import InvalidRequest
from tachikoma.vocabulary.isolation import Isolation
from tachikoma.vocabulary.request_rules import MAX_STDIN_BYTES

__all__ = ["Channel", "Form", "add_to"]

InteractiveOption = Annotated[
    bool, typer.Option("--interactive", "-i", help="Send standard input while the command runs.")
]
IsolationOption = Annotated[
    Isolation | None, typer.Option(help="Isolation that it needs. Can only raise the policy's and the agent's.")
]


def add_to(app: typer.Typer) -> None:
    """Add the commands of this module."""
    # Options end at the agent's name, so that those of the remote command need no `--`.
    app.command("exec", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})(execute)
    app.command()(shell)


def execute(
    context: typer.Context,
    agent: Annotated[str, typer.Argument(help="The agent to run on.", autocompletion=completion.agents)],
    command: Annotated[list[str], typer.Argument(help="The program and its arguments.")],
    timeout: Annotated[str | None, typer.Option(help="How long it may run: 30s, 5m, 1h30m.")] = None,
    env: EnvironmentOption = None,
    cwd: Annotated[str, typer.Option(help="Working directory on the agent.")] = "",
    user: Annotated[str, typer.Option("--user", "-u", help="User on the agent.")] = "",
    memory: Annotated[str | None, typer.Option(help="Limit of memory: 512MiB. Can only lower the policy's.")] = None,
    cpus: Annotated[float | None, typer.Option(help="Limit of processor time, in processors: 0.5.")] = None,
    pids: Annotated[int | None, typer.Option(help="Limit of processes and threads.")] = None,
    isolation: IsolationOption = None,
    interactive: InteractiveOption = False,
    tty: Annotated[bool, typer.Option("--tty", "-t", help="With a terminal; implies --interactive.")] = False,
    no_tty: Annotated[bool, typer.Option("--no-tty", "-T", help="Without a terminal.")] = False,
    no_stdin: Annotated[bool, typer.Option("--no-stdin", "-n", help="Do not read standard input.")] = False,
    detach: DetachOption = False,
    exec_id: Annotated[
        str | None, typer.Option("--id", help="Id of the execution; the same id never runs twice.")
    ] = None,
    output_dir: OutputFolderOption = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Run a command on an agent, stream its output, and exit with its exit code.

    Ctrl-C, SIGTERM, a closed terminal, and the exit of the reader of the output cancel the command. A broken connection
    does not: it is made again, and the output continues. With --detach the command continues without this program.

    Piped input of up to 4 MiB is a part of the request. Longer input is streamed while the command runs, as with
    --interactive, if policy allows interactive commands. In a terminal, ~. at the beginning of a line ends the session,
    ~d leaves it running, and ~? lists all such escapes.

    The exit code is that of the command, or 124 if it was killed at its timeout, 125 if it did not run or its result is
    unknown, 130 if it was cancelled, and 141 if the reader of the output exited.
    """
    refuse_option(context, [agent, *command])
    channel = Channel.of(interactive=interactive, tty=tty, no_tty=no_tty, no_stdin=no_stdin)
    values: dict[str, Any] = {"agent_id": agent, "work_dir": cwd, "user": user, "id": exec_id, "isolation": isolation}
    with reported():
        values |= {"command": remote_command(command), "environment": environment(env or [])}
        values |= {"timeout": _timeout(timeout), "limits": _limits(memory, cpus, pids)}
        raise typer.Exit(_start(_given(values), channel, Form(detach, output, output_dir)))


def shell(
    agent: Annotated[str, typer.Argument(help="The agent to run on.", autocompletion=completion.agents)],
    user: Annotated[str, typer.Option("--user", "-u", help="User on the agent.")] = "",
    program: Annotated[str, typer.Option(help="The shell.")] = "bash",
) -> None:
    """Run a login shell on an agent; the same as `exec -it AGENT -- bash -l`."""
    channel = Channel.of(tty=True)
    with reported():
        values: dict[str, Any] = {"agent_id": agent, "command": [program, "-l"], "user": user}
        raise typer.Exit(_start(values, channel, Form()))


@dataclass(frozen=True)
class Channel:
    """The way that input takes to the command."""

    #: True if it follows the request while the command runs.
    interactive: bool
    #: True if the command gets a terminal.
    tty: bool
    #: True if there is none.
    no_stdin: bool

    @classmethod
    def of(
        cls, *, interactive: bool = False, tty: bool = False, no_tty: bool = False, no_stdin: bool = False
    ) -> Channel:
        """Return the channel that the options request. It has a terminal only if the caller has one."""
        tty = _terminal_wanted(tty) and not no_tty
        return cls(interactive or tty, tty, no_stdin)


@dataclass(frozen=True)
class Form:
    """The form in which this program reports."""

    #: True if it does not wait for the command.
    detach: bool = False
    output: Output = Output.TEXT
    #: The folder for a copy of output and result, or None.
    folder: Path | None = None

    @property
    def streams(self) -> bool:
        """True if this program streams the command's output, so that input can follow as well."""
        return not (self.detach or self.folder or self.output.for_programs)


def _start(values: dict[str, Any], channel: Channel, form: Form) -> int:
    """Run a request in the way that its input and output need, and return the exit code of this program.

    Args:
        values: the fields of the request, without its input.
        channel: the way of the input.
        form: the form of the report.

    Raises:
        InvalidRequest: two options contradict each other, or a field cannot be used.
    """
    if channel.interactive and (channel.no_stdin or not form.streams):
        raise InvalidRequest("--interactive and --tty take none of --detach, -n, --output-dir and -o json")
    if form.output is Output.NAME and not form.detach:
        raise InvalidRequest("-o name needs --detach; then it prints the id of the execution")
    if form.detach and form.folder:
        raise InvalidRequest("--output-dir saves the output when it comes, so it takes no --detach")
    # One byte beyond the bound: more than that streams.
    stdin = b"" if channel.no_stdin or channel.interactive else read_input(MAX_STDIN_BYTES + 1)
    if form.streams and not channel.interactive:
        request = ordinary.ordinary_request(values, stdin)
        if request is not None:
            return ordinary.run(request)
    # Imported here: with it come all models, which take longer to import than most commands run.
    from tachikoma.cli.commands import attended

    return attended.run(values, stdin, channel, form)


def _terminal_wanted(tty: bool) -> bool:
    """Return whether the command gets a terminal: it needs the option and a terminal on the caller's side."""
    if tty and not os.isatty(0):
        note("standard input is not a terminal, so the command gets none")
        return False
    return tty


def _timeout(text: str | None) -> timedelta | None:
    return None if text is None else duration(text, "--timeout")


def _limits(memory: str | None, cpus: float | None, pids: int | None) -> dict[str, Any] | None:
    """Return the limits in the options; None if the command line has no such option."""
    return _given({"memory": memory, "cpus": cpus, "pids": pids}) or None


def _given(values: dict[str, Any]) -> dict[str, Any]:
    """Remove the options that the command line lacks; the request has its own defaults for them."""
    return {name: value for name, value in values.items() if value is not None}
