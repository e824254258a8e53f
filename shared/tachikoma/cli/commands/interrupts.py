"""Ctrl-C, SIGTERM, a closed terminal and output that fails during `tachikoma exec` and `tachikoma run`."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import typer

from tachikoma.cli.descriptors import OutputFailed, abandon_output
from tachikoma.cli.messages import BROKEN_PIPE, note
from tachikoma.cli.output import chosen_output, report, report_failure
from tachikoma.errors import (
    AlreadyExists,
    NotFound,
    OutputAltered,
    ResultUnknown,
    ServerError,
    TachikomaError,
    Unavailable,
)

__all__ = ["NOT_RUN", "Interrupts", "output_failed", "reported"]

#: Exit code of a command that did not run, or whose output cannot be written.
NOT_RUN = 125

#: The signals by which a user, a supervisor or a closed terminal ends this program.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
#: After the second Ctrl-C, how long the cancel request of the first one may take to arrive.
LEAVE_SECONDS = 2.0


#: Errors whose message says by itself what came of the command, also if their metadata has its id.
_CERTAIN = (AlreadyExists, OutputAltered, ResultUnknown)


class Interrupts:
    """Handler of SIGINT, SIGTERM and SIGHUP: the first cancels the execution, the second ends this program at once.

    A signal that the parent made ignored stays ignored, as `nohup` and the background jobs of a shell rely on.
    """

    def __init__(self, cancel: Callable[[str], Awaitable[object]], subject: str) -> None:
        """Install the handler; the current task is cancelled by the second signal.

        Args:
            cancel: the call that cancels an execution, or a batch.
            subject: id of the execution or batch.
        """
        self._cancel_call = cancel
        self._subject = subject
        self._main = asyncio.current_task()
        #: The request to cancel; None before the first signal.
        self._request: asyncio.Task[None] | None = None
        loop = asyncio.get_running_loop()
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                loop.add_signal_handler(number, self.on_signal)

    def on_signal(self) -> None:
        """Handle one signal."""
        if self._request is not None:
            self._leave()
            return
        note("cancelling; Ctrl-C again to leave")
        self._request = asyncio.get_running_loop().create_task(self._cancel())

    def _leave(self) -> None:
        if self._main is not None:
            self._main.cancel()

    async def _cancel(self) -> None:
        try:
            await self._cancel_call(self._subject)
        except NotFound:
            # Not accepted yet, so there is nothing to cancel.
            self._leave()
        except TachikomaError as error:
            note(f"cannot cancel: {error}")

    async def delivered(self) -> None:
        """Wait briefly for the request to cancel, so that leaving in a hurry still ends the command."""
        if self._request is not None:
            await asyncio.wait((self._request,), timeout=LEAVE_SECONDS)

    def close(self) -> None:
        """Abandon a cancel request that is still in progress."""
        if self._request is not None:
            self._request.cancel()


async def output_failed(
    error: OutputFailed, cancel: Callable[[str], Awaitable[object]], subject: str, noun: str = "execution"
) -> int:
    """Cancel an execution or batch whose output cannot be written, and return the exit code of this program.

    Args:
        error: the fault of a descriptor of this process, or of a file.
        cancel: the call that cancels it.
        subject: id of the execution or batch.
        noun: the word for it in messages.
    """
    if error.standard:
        abandon_output()
    outcome = f"the {noun} is cancelled"
    try:
        await cancel(subject)
    except TachikomaError as failure:
        outcome = f"the {noun} continues as {subject}, since it cannot be cancelled: {failure}"
    if error.reader_gone:
        return BROKEN_PIPE
    report_failure(f"{error}; {outcome}", reason="OUTPUT_FAILED", code="ABORTED", metadata={"id": subject})
    return NOT_RUN


@contextmanager
def reported(noun: str = "command") -> Iterator[None]:
    """Report an error of a command that runs something, with the exit code of a command that did not run.

    Args:
        noun: what runs: `command` or `batch`.

    Raises:
        typer.Exit: instead of the error.
    """
    try:
        yield
    except TachikomaError as error:
        report(error)
        subject = error.metadata.get("id", "")
        doubtful = not isinstance(error, _CERTAIN) and (subject or type(error) in (Unavailable, ServerError))
        if doubtful and not chosen_output().for_programs:
            note(_fate(subject, noun))
        raise typer.Exit(NOT_RUN) from None


def _fate(subject: str, noun: str) -> str:
    """Say whether something may run whose caller gives up; the subject is empty if it was never sent."""
    if not subject:
        return f"the {noun} did not run"
    prefix = "tachikoma batches" if noun == "batch" else "tachikoma"
    return f"the {noun} may run: `{prefix} status {subject}` shows it, `{prefix} cancel {subject}` ends it"
