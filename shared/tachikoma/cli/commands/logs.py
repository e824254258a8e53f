"""`tachikoma logs`, and the output of another host's command on this one's descriptors."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated

import typer

from tachikoma.cli import completion
from tachikoma.cli.descriptors import OutputFailed, abandon_output, write_all
from tachikoma.cli.lookup import with_full_id_async
from tachikoma.cli.output import INTERRUPTED, Output, OutputOption, report_failure
from tachikoma.cli.show import clock, warn
from tachikoma.cli.tables import printable
from tachikoma.client.aio import AsyncClient
from tachikoma.vocabulary.messages import OutputKind
from tachikoma.vocabulary.results import ExecOutput, ExecResponse, ExecStatus
from tachikoma.vocabulary.states import ExecState

__all__ = ["BROKEN_PIPE", "add_to", "note", "note_approval", "write_message", "write_output"]

#: Exit code when the reader of the output has gone, as a shell reports SIGPIPE.
BROKEN_PIPE = 141
#: Exit code of `logs` when its output cannot be written.
FAILED = 1


def add_to(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command()(logs)


def logs(
    exec_id: Annotated[str, typer.Argument(help="The execution.", autocompletion=completion.executions)],
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Wait for more output until the execution ends.")
    ] = False,
    after: Annotated[int, typer.Option(min=0, help="Begin after the chunk with this number.")] = 0,
    output: OutputOption = Output.TEXT,
) -> None:
    """Show the output of an execution, also of one that has ended."""

    async def show() -> None:
        async with AsyncClient() as client:
            await with_full_id_async(
                client,
                exec_id,
                lambda full: write_output(client.attach(full, after_seq=after, follow=follow), output),
            )

    try:
        asyncio.run(show())
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    except OutputFailed as error:
        abandon_output()
        if error.reader_gone:
            raise typer.Exit(BROKEN_PIPE) from None
        report_failure(str(error), reason="OUTPUT_FAILED", code="ABORTED")
        raise typer.Exit(FAILED) from None


async def write_output(stream: AsyncIterator[ExecOutput], output: Output) -> ExecResponse | None:
    """Write each chunk to the descriptor it belongs to, and notes to standard error.

    Returns:
        The result, or None if the stream ended without one.

    Raises:
        OutputFailed: a descriptor of this process takes no more output.
    """
    result: ExecResponse | None = None
    async for item in stream:
        if item.kind is OutputKind.RESULT:
            result = item.result
        if output.for_programs:
            await write_all(1, f"{item.to_json()}\n".encode())
        else:
            await write_message(item)
    return result


async def write_message(message: ExecOutput) -> None:
    """Write a chunk to the descriptor it belongs to, or a note about a gap or an approval to standard error.

    Raises:
        OutputFailed: the descriptor takes no more output.
    """
    match message.kind:
        case OutputKind.STDOUT | OutputKind.SCREEN:
            await write_all(1, message.data)
        case OutputKind.STDERR:
            await write_all(2, message.data)
        case OutputKind.GAP:
            note(f"{message.missing_bytes} bytes of output are missing")
        case OutputKind.STATUS if message.status is not None:
            note_approval(message.status)


def note(text: str) -> None:
    """Print a message of this program, apart from the output of the other host's command."""
    warn(f"tachikoma: {printable(text)}")


def note_approval(status: ExecStatus) -> None:
    """Print the approval that an execution waits for, or the one that it got."""
    if status.state is ExecState.PENDING_APPROVAL:
        note(f"waiting until {clock(status.deadline)} for an approval by {' or '.join(status.approvers)}")
        note(f"to approve: tachikoma approve {status.id}")
    elif status.approved_by:
        note(f"approved by {status.approved_by}: {status.approval_reason}")
