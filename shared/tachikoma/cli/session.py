"""A session at the user's terminal or pipe: input from standard input, output to standard output and error."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import threading
from contextlib import aclosing, suppress

from tachikoma.cli.messages import write_message
from tachikoma.cli.tables import printable
from tachikoma.cli.terminal import HELP, Escape, Escapes, RawMode, window_size
from tachikoma.client.interactive import AsyncSession
from tachikoma.errors import TachikomaError
from tachikoma.sessions.frames import MAX_DATA_BYTES
from tachikoma.vocabulary.results import ExecOutput, ExecResponse, ExecStatus

__all__ = ["Left", "run_session"]

#: Largest number of bytes of one read of standard input: the capacity of one message.
READ_BYTES = MAX_DATA_BYTES
#: Longest wait for the result after `~.`; then this program ends without it.
END_SECONDS = 3.0
#: Longest wait for the orchestrator to note that the user leaves.
LEAVE_SECONDS = 0.5
#: Signals that leave a session at a terminal; it continues without a caller.
LEAVING = (signal.SIGTERM, signal.SIGHUP)


class Left(Exception):
    """The user left a session, which continues."""


async def run_session(session: AsyncSession, *, tty: bool, before: bytes = b"") -> ExecResponse:
    """Run a session until it ends, and return its result.

    Args:
        session: the session.
        tty: whether it has a terminal; then this process has one too.
        before: input that was read before.

    Raises:
        Left: the user left it.
        OutputFailed: the output cannot be written.
        TachikomaError: as of the session.
    """
    if not tty:
        return await _Running(session, tty=False).run(before)
    with RawMode(0):
        return await _Running(session, tty=True).run(before)


class _Running:
    """One session in progress."""

    def __init__(self, session: AsyncSession, *, tty: bool) -> None:
        self._session = session
        self._tty = tty
        self._loop = asyncio.get_running_loop()
        self._main = asyncio.current_task()
        self._escapes = Escapes()
        #: Observers that the user knows of.
        self._observers: tuple[str, ...] = ()
        self._recorded = False
        self._left = False
        self._ended = False

    async def run(self, before: bytes) -> ExecResponse:
        """Copy both ways until the result comes."""
        if self._tty:
            self._resized()
            self._loop.add_signal_handler(signal.SIGWINCH, self._resized)
            for number in LEAVING:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._loop.add_signal_handler(number, self._leave)
        # A thread of its own, since a file cannot be watched, and a read of it not be cancelled. It ends with the
        # process.
        threading.Thread(target=self._read, args=(before,), name="input", daemon=True).start()
        try:
            return await self._copy_output()
        except asyncio.CancelledError:
            if self._left:
                raise Left from None
            raise
        finally:
            self._ended = True
            if self._tty:
                self._loop.remove_signal_handler(signal.SIGWINCH)

    async def _copy_output(self) -> ExecResponse:
        async with aclosing(aiter(self._session)) as messages:  # type: ignore[type-var]
            async for message in messages:
                if message.result is not None:
                    return message.result
                await self._show(message)
        raise Left

    async def _show(self, message: ExecOutput) -> None:
        status = message.status
        if status is None or not self._note_status(status):
            await write_message(message)

    def _note_status(self, status: ExecStatus) -> bool:
        """Show that the session is recorded, and the observers whenever they change; return True if they have."""
        if status.recorded and not self._recorded and self._tty:
            self._recorded = True
            self._report("this session is recorded")
        if status.observers == self._observers:
            return False
        self._observers = status.observers
        self._report(f"observed by {', '.join(status.observers)}" if status.observers else "observed no longer")
        return True

    def _report(self, text: str) -> None:
        line = "\r\n" if self._tty else "\n"
        os.write(2, f"{line if self._tty else ''}tachikoma: {printable(text)}{line}".encode())

    # --- input, in a thread -------------------------------------------------------------------------------------------

    def _read(self, before: bytes) -> None:
        """Send standard input until it ends; each part waits until the session has room for it."""
        # The session has ended, or its loop.
        with suppress(TachikomaError, RuntimeError, asyncio.CancelledError):
            if before:
                self._await(self._session.write(before))
            while data := _read_some():
                if self._tty:
                    self._typed(data)
                else:
                    self._await(self._session.write(data))
            self._await(self._session.end())

    def _await(self, sending: object) -> None:
        asyncio.run_coroutine_threadsafe(sending, self._loop).result()  # type: ignore[arg-type]

    def _typed(self, data: bytes) -> None:
        for part in self._escapes.feed(data):
            if part.data:
                self._await(self._session.write(part.data))
            match part.escape:
                case Escape.END:
                    self._await(self._session.close())
                    self._loop.call_soon_threadsafe(self._loop.call_later, END_SECONDS, self._leave)
                case Escape.DETACH:
                    self._loop.call_soon_threadsafe(self._leave)
                case Escape.HELP:
                    os.write(2, HELP.encode())
                case None:
                    pass

    # --- signals ------------------------------------------------------------------------------------------------------

    def _resized(self) -> None:
        self._loop.create_task(self._session.resize(window_size(0)))

    def _leave(self) -> None:
        """Leave the session running."""
        if not self._left:
            self._left = True
            self._loop.create_task(self._session.detach())
            # An orchestrator that is unavailable does not end the call.
            self._loop.call_later(LEAVE_SECONDS, self._give_up)

    def _give_up(self) -> None:
        if not self._ended and self._main is not None:
            self._main.cancel()


def _read_some() -> bytes:
    """Read the next bytes of standard input; none at its end."""
    while True:
        try:
            return os.read(0, READ_BYTES)
        except BlockingIOError:
            select.select([0], [], [])
        except OSError:
            # For instance the terminal is gone.
            return b""
