"""`tachikoma logs`, and the output of another host's command on this one's descriptors."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated

import typer

from tachikoma.cli import completion
from tachikoma.cli.descriptors import OutputFailed, abandon_output, write_all
from tachikoma.cli.lookup import with_full_id_async
from tachikoma.cli.messages import BROKEN_PIPE, write_message
from tachikoma.cli.output import INTERRUPTED, Output, OutputOption, refuse_names, report_failure
from tachikoma.client.aio import AsyncClient
from tachikoma.vocabulary.messages import OutputKind
from tachikoma.vocabulary.results import ExecOutput, ExecResponse

__all__ = ["add_to", "write_output"]

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
    refuse_names(output)

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
