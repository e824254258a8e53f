"""`tachikoma run`: one command on many agents.

The exit code is 0 if the command succeeded on all targets, 1 if it failed on some, and 125 if it did not run on some or
their end is unknown.
"""

from __future__ import annotations

import asyncio
import inspect
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from tachikoma.cli import completion
from tachikoma.cli.batch_view import (
    BatchReport,
    HostLines,
    Progress,
    describe_needs,
    exit_code,
    note_approval,
    show_groups,
    show_totals,
    states_of,
    words,
)
from tachikoma.cli.commands.following import NOT_FOUND, hint_of
from tachikoma.cli.commands.interrupts import NOT_RUN, Interrupts, output_failed, reported
from tachikoma.cli.descriptors import OutputFailed, read_input
from tachikoma.cli.lookup import with_full_batch_id_async
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
from tachikoma.cli.output import INTERRUPTED, Output, OutputOption, report_failure, show_value
from tachikoma.cli.result import prepare_folder, save_output
from tachikoma.cli.tables import printable
from tachikoma.client.aio import AsyncClient
from tachikoma.errors import InvalidRequest
from tachikoma.targets.answers import Answers
from tachikoma.targets.expressions import read_lines
from tachikoma.targets.nodesets import fold
from tachikoma.vocabulary.batches import (
    BatchPreview,
    BatchRequest,
    BatchResult,
    BatchStatus,
    BatchUpdate,
    TargetState,
)
from tachikoma.vocabulary.model import describe_validation_error
from tachikoma.vocabulary.request_rules import MAX_STDIN_BYTES

__all__ = ["add_retry_to", "add_to"]

WordsArgument = Annotated[
    list[str] | None,
    typer.Argument(metavar="TARGETS -- COMMAND", help="Targets, `--`, the command.", autocompletion=completion.agents),
]
FromFileOption = Annotated[
    Path | None, typer.Option("--from-file", "-f", help="Read targets from a file; - for standard input.")
]
RetryOption = Annotated[
    tuple[str, str] | None,
    typer.Option(
        help="Batch and states: run again on its targets in these states; `failed` is every state but success.",
        autocompletion=completion.retried,
    ),
]
StopOnOption = Annotated[
    list[str] | None, typer.Option(help="Count this as a failure too: unreachable, denied, expired, rejected.")
]
GateOption = Annotated[
    tuple[str, str] | None, typer.Option(help="Agent and command that must succeed before each wave.")
]
SimilarOption = Annotated[
    bool, typer.Option("--similar", help="Like --group, but ignore numbers, times and host names.")
]


#: Parameters of `run` that `retry` takes from the earlier batch.
_OF_COMMAND = ("words_given", "from_file", "retry", "timeout", "env", "cwd", "user", "stdin")


def add_to(app: typer.Typer) -> None:
    """Add `run`."""
    app.command("run", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})(run)


def add_retry_to(app: typer.Typer) -> None:
    """Add `retry`, which has the options of `run` except those about the command and its targets."""
    own = list(inspect.signature(retry, eval_str=True).parameters.values())[:-1]
    options = inspect.signature(run, eval_str=True).parameters
    shared = [option for name, option in options.items() if name not in {"context", *_OF_COMMAND}]
    retry.__signature__ = inspect.Signature([*own, *shared])  # type: ignore[attr-defined]
    app.command("retry")(retry)


def run(
    context: typer.Context,
    words_given: WordsArgument = None,
    from_file: FromFileOption = None,
    retry: RetryOption = None,
    parallel: Annotated[str, typer.Option("--parallel", "-p", help="At most n targets at once: 10, or 25%.")] = "",
    canary: Annotated[int, typer.Option(min=0, help="Run on n targets first; the rest only if all succeeded.")] = 0,
    wave: Annotated[str | None, typer.Option(help="Targets of a wave, which ends before the next: 10, or 25%.")] = None,
    gate: GateOption = None,
    gate_timeout: Annotated[str | None, typer.Option(help="Longest run time of the gate; a minute by default.")] = None,
    pause: Annotated[str | None, typer.Option(help="Time between waves: 30s, 5m.")] = None,
    stop_after: Annotated[str | None, typer.Option(help="Start no more after n failures: 3, or 5%.")] = None,
    stop_on: StopOnOption = None,
    deadline: Annotated[str | None, typer.Option(help="Start no more after this time; an hour by default.")] = None,
    timeout: Annotated[str | None, typer.Option(help="How long each command may run: 30s, 5m.")] = None,
    env: EnvironmentOption = None,
    cwd: Annotated[str, typer.Option(help="Working directory on the agents.")] = "",
    user: Annotated[str, typer.Option("--user", "-u", help="User on the agents.")] = "",
    stdin: Annotated[bool, typer.Option("--stdin", "-i", help="Give standard input to each command.")] = False,
    preview: Annotated[bool, typer.Option("--preview", help="Show the targets and their state; run nothing.")] = False,
    detach: DetachOption = False,
    group: Annotated[bool, typer.Option("--group", "-b", help="Print equal answers once, at the end.")] = False,
    diff: Annotated[bool, typer.Option("--diff", help="Like --group, with differences to the largest group.")] = False,
    similar: SimilarOption = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")] = False,
    output_dir: OutputFolderOption = None,
    batch_id: Annotated[str | None, typer.Option("--id", help="Id of the batch; the same id never runs twice.")] = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Run a command on many agents, and show their answers.

    Targets are names and node sets (web[01-40]!web07), wildcards ('web-*') and labels (role=web). In the command,
    {agent} and {label:NAME} are replaced for each target. With --from-file and --retry, all words are the command.
    Ctrl-C cancels the batch; a second one leaves it.
    """
    refuse_option(context, words_given or ())
    of_command = {"timeout": timeout, "env": env, "cwd": cwd, "user": user, "stdin": stdin}
    values: dict[str, Any] = {"id": batch_id, "canary": canary, "wave": wave, "work_dir": cwd, "user": user}
    values |= {"parallel": parallel or None, "stop_after": stop_after}
    times = {"pause": pause, "deadline": deadline, "timeout": timeout}
    form = _Form(output, group=group or diff or similar, diff=diff, similar=similar, quiet=quiet, folder=output_dir)
    with reported("batch"):
        if retry is not None and not words_given:
            _refuse_unused(of_command)
        values |= _targets(words_given or [], from_file, retry) | _times(times)
        values |= {"stop_on": tuple(cause.upper() for cause in stop_on or ()), "environment": environment(env or [])}
        values["gate"] = _gate(gate, gate_timeout)
        values["stdin"] = read_input(MAX_STDIN_BYTES + 1) if stdin else None
        raise typer.Exit(asyncio.run(_run(_request(values), form, preview=preview, detach=detach)))


def retry(
    context: typer.Context,
    earlier: Annotated[
        str, typer.Argument(metavar="BATCH_ID", help="The earlier batch.", autocompletion=completion.batches)
    ],
    states: Annotated[
        str,
        typer.Argument(
            help="States of targets, with commas; failed: every state but success.",
            autocompletion=completion.target_states,
        ),
    ] = "failed",
    **options: Any,
) -> None:
    """Run the command of a batch again, where it did not succeed or on its targets in other states.

    Command, user, environment, input and timeout are those of the earlier batch. The rules of the new batch, such as
    --parallel and --stop-after, are those of the options.
    """
    run(context, retry=(earlier, states), **options)


def _refuse_unused(options: dict[str, Any]) -> None:
    """Raise InvalidRequest if an option is given that the command of an earlier batch has already."""
    if given := [f"--{name}" for name, value in options.items() if value]:
        raise InvalidRequest(f"{', '.join(given)}: a retry without a command has those of its batch; add the command")


def _targets(given: list[str], file: Path | None, retry: tuple[str, str] | None) -> dict[str, Any]:
    """Return the fields of a request that contain command and targets.

    Args:
        given: the words of the command line.
        file: a file with the targets; None for none.
        retry: an earlier batch, and the states of its targets that run again; None for none.
    """
    targets, command = _split(given, file, elsewhere=retry is not None)
    values: dict[str, Any] = {"targets": targets, "command": command}
    return values if retry is None else values | {"retry_of": retry[0], "retry_states": states_of(retry[1], "--retry")}


def _times(given: dict[str, str | None]) -> dict[str, timedelta]:
    """Return the durations in the options of the command line, by their names."""
    return {name: duration(text, f"--{name}") for name, text in given.items() if text is not None}


def _gate(given: tuple[str, str] | None, timeout: str | None) -> dict[str, Any] | None:
    """Return the health gate that the options name; None for none. The command is split as a shell splits it."""
    if given is None:
        if timeout is not None:
            raise InvalidRequest("--gate-timeout needs --gate AGENT COMMAND")
        return None
    try:
        command = shlex.split(given[1])
    except ValueError as error:
        raise InvalidRequest(f"--gate: {given[1][:80]!r} is no command: {error}") from None
    values: dict[str, Any] = {"agent_id": given[0], "command": command}
    return values if timeout is None else values | {"timeout": duration(timeout, "--gate-timeout")}


def _split(given: list[str], file: Path | None, *, elsewhere: bool) -> tuple[tuple[str, ...], list[str]]:
    """Return the targets and the command.

    Args:
        given: the words of the command line.
        file: a file with the targets; None for none.
        elsewhere: whether the targets come from an earlier batch.
    """
    if file is not None or elsewhere:
        text = ""
        if file is not None:
            try:
                text = sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise InvalidRequest(f"--from-file {file}: {getattr(error, 'strerror', None) or error}") from None
        return read_lines(text), remote_command(given) if given else []
    if "--" in given:
        place = given.index("--")
        return tuple(given[:place]), given[place + 1 :]
    return tuple(given[:1]), given[1:]


def _request(values: dict[str, Any]) -> BatchRequest:
    try:
        return BatchRequest.model_validate({name: value for name, value in values.items() if value is not None})
    except ValidationError as error:
        raise InvalidRequest(f"invalid request: {describe_validation_error(error)}") from None


@dataclass(frozen=True, slots=True)
class _Form:
    """The form in which a batch is shown."""

    output: Output
    #: Whether each distinct output is printed once, at the end.
    group: bool
    diff: bool
    similar: bool
    quiet: bool
    #: The folder for the output and result of each execution; None to save none.
    folder: Path | None = None


class _View:
    """The view of a batch: everything that this program prints about it."""

    def __init__(self, form: _Form) -> None:
        self._form = form
        text = form.output is Output.TEXT
        self._progress = Progress(asyncio.get_running_loop(), quiet=form.quiet or not text)
        self._hosts = HostLines()
        self._answers = Answers(similar=form.similar)
        #: The results of the one document, which contains each distinct output.
        self._document: list[BatchResult] = []
        self._status: BatchStatus | None = None

    @property
    def results(self) -> Sequence[BatchResult]:
        """The results so far, without their outputs."""
        return self._answers.results

    def update(self, update: BatchUpdate) -> None:
        """Take one update and print its news."""
        if update.result is not None:
            self._add(update.result)
        if update.status is not None:
            if self._status is None and self._form.output is Output.TEXT:
                note_approval(update.status)
            self._status = update.status
            self._progress.update(update.status)

    def _add(self, result: BatchResult) -> None:
        whole = self._answers.add(result)
        match self._form.output:
            case Output.JSON:
                self._document.append(result)
            case Output.JSONL:
                _line(BatchUpdate(result=result))
            case Output.TEXT if not self._form.group:
                self._progress.clear()
                self._hosts.show(whole)

    def end(self) -> None:
        """Print the final status, after all results."""
        assert self._status is not None
        self.close()
        if self._form.output is Output.JSONL:
            _line(BatchUpdate(status=self._status))
            return
        found = BatchReport(batch=self._status, results=tuple(self._document))
        show_value(found, self._form.output, name=lambda found: found.batch.id, text=lambda _: self._show())

    def close(self) -> None:
        """Remove the line of progress."""
        self._progress.close()

    def _show(self) -> None:
        assert self._status is not None
        if self._form.group or len(self.results) > 1:
            show_groups(self._answers.groups(), bodies=self._form.group, diff=self._form.diff)
        show_totals(self._status, self.results)


def _line(update: BatchUpdate) -> None:
    """Print an update as a line at once, since the next one may be minutes away."""
    sys.stdout.write(update.to_json() + "\n")
    sys.stdout.flush()


async def _run(request: BatchRequest, form: _Form, *, preview: bool, detach: bool) -> int:
    """Run a batch and return the exit code of this program."""
    prepare_folder(form.folder, runs=not (preview or detach))
    async with AsyncClient() as client:
        if request.retry_of is not None:
            earlier = await with_full_batch_id_async(client, request.retry_of, client.batch)
            request = request.model_copy(update={"retry_of": earlier.id})
        if preview:
            show_value(await client.preview_batch(request), form.output, text=_show_preview)
            return 0
        if detach:
            status = await client.submit_batch(request)
            show_value(status, form.output, name=lambda status: status.id, text=lambda status: typer.echo(status.id))
            return 0
        view, unsaved = _View(form), False
        interrupts = Interrupts(client.cancel_batch, request.id)
        try:
            # This function cancels by itself, since it reports what came of it.
            async for update in client.run(request, detach=True):
                view.update(update)
                if form.folder is not None and update.result is not None:
                    unsaved |= not await save_output(client, update.result, form.folder)
            view.end()
        except OutputFailed as error:
            return await output_failed(error, client.cancel_batch, request.id, "batch")
        except asyncio.CancelledError:
            await interrupts.delivered()
            report_failure(
                f"left; the batch continues as {request.id}", reason="LEFT", code="CANCELLED",
                metadata={"id": request.id},
            )  # fmt: skip
            return INTERRUPTED
        finally:
            view.close()
            interrupts.close()
        if form.output is Output.TEXT:
            _hint(request.command, view.results)
        return NOT_RUN if unsaved else exit_code(view.results)


def _hint(command: Sequence[str], results: Sequence[BatchResult]) -> None:
    """Explain a command that was refused or not found since it was written as for a shell, or after an option."""
    missed = any(
        result.state is TargetState.DENIED or (result.state is TargetState.FAILED and result.exit_code == NOT_FOUND)
        for result in results
    )
    if missed and command and (hint := hint_of("run", "TARGETS --", command)):
        note(hint)


def _show_preview(found: BatchPreview) -> None:
    groups: dict[tuple[str, str], list[str]] = {}
    for target in found.targets:
        groups.setdefault((words(target.state), target.reason), []).append(target.agent_id)
    for (state, reason), agents in groups.items():
        shown = "can start" if state == "pending" else f"{state}: {reason}"
        typer.echo(f"{len(agents)} {shown}: {fold(agents)}")
    for need in describe_needs(found.needs):
        typer.echo(printable(need))
    typer.echo(f"{len(found.targets)} targets, digest {found.digest[:12]}")
