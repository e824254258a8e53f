"""A session at the user's terminal or pipe: input from standard input, output to standard output and error."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import threading
from collections.abc import Coroutine
from contextlib import aclosing, suppress
from typing import Any

from tachikoma.cli.descriptors import write_all
from tachikoma.cli.messages import notes_of, write_message
from tachikoma.cli.tables import printable
from tachikoma.cli.terminal import HELP, Escape, Escapes, Modes, RawMode, Typed, window_size
from tachikoma.client.interactive import AsyncSession
from tachikoma.errors import TachikomaError
from tachikoma.sessions.frames import MAX_DATA_BYTES
from tachikoma.vocabulary.results import ExecOutput, ExecResponse, ExecStatus
from tachikoma.vocabulary.states import ExecState

__all__ = ["Left", "run_session"]

#: Largest number of bytes of one read of standard input: the capacity of one message.
READ_BYTES = MAX_DATA_BYTES
#: Longest wait for the result after `~.`; then this program ends without it.
END_SECONDS = 3.0
#: Parts of what is typed that wait to be sent, in number. Beyond them, escapes wait too.
MAX_TYPED = 64
#: Longest wait for what was typed before an escape to be sent.
FLUSH_SECONDS = 0.5
#: Time without a connection after which the user is notified, and time between two looks.
LOST_SECONDS, LOOK_SECONDS = 3.0, 0.5
#: The character of Ctrl-C.
INTERRUPT = b"\x03"
#: Longest wait for the orchestrator to note that the user leaves.
LEAVE_SECONDS = 0.5
#: Signals that leave a session at a terminal; it continues without a caller.
LEAVING = (signal.SIGTERM, signal.SIGHUP)


class Left(Exception):
    """The user left a session."""

    def __init__(self, *, ending: bool) -> None:
        super().__init__()
        #: True if the session was asked to end; False if it continues.
        self.ending = ending


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
    running = _Running(session, tty=True)
    with RawMode(0):
        try:
            result = await running.run(before)
        except BaseException:
            running.reset()
            raise
        if result.state not in (ExecState.SUCCEEDED, ExecState.FAILED) or result.signal:
            # The program did not end by itself, so it may have left anything.
            running.reset()
        return result


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
        #: True once the session was asked to end.
        self._ending = False
        self._ended = False
        #: True while the execution waits for an approval.
        self._waiting = False
        self._modes = Modes()
        self._to_send: asyncio.Queue[bytes] = asyncio.Queue(MAX_TYPED)
        #: Tasks that go on beside the output.
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self, before: bytes) -> ExecResponse:
        """Copy both ways until the result comes."""
        if self._tty:
            self._resized()
            self._loop.add_signal_handler(signal.SIGWINCH, self._resized)
            for number in LEAVING:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._loop.add_signal_handler(number, self._leave)
            self._start(self._send_typed())
            self._start(self._watch_connection())
        # A thread of its own, since a file cannot be watched, and a read of it not be cancelled. It ends with the
        # process.
        threading.Thread(target=self._read, args=(before,), name="input", daemon=True).start()
        try:
            return await self._copy_output()
        except asyncio.CancelledError:
            if self._left or self._ending:
                raise Left(ending=self._ending) from None
            raise
        finally:
            self._ended = True
            for task in self._tasks:
                task.cancel()
            if self._tty:
                self._loop.remove_signal_handler(signal.SIGWINCH)

    async def _copy_output(self) -> ExecResponse:
        async with aclosing(aiter(self._session)) as messages:  # type: ignore[type-var]
            async for message in messages:
                if message.result is not None:
                    return message.result
                await self._show(message)
        raise Left(ending=False)

    def reset(self) -> None:
        """Reset the modes of the terminal that the program set."""
        if os.isatty(1):
            # A terminal that is gone needs no reset.
            with suppress(OSError):
                os.write(1, self._modes.reset())

    async def _show(self, message: ExecOutput) -> None:
        status = message.status
        if status is not None:
            self._waiting = status.state is ExecState.PENDING_APPROVAL
            if self._note_status(status):
                return
        if not self._tty:
            await write_message(message)
        elif message.data:
            self._modes.feed(message.data)
            await write_all(1, message.data)
        elif notes := notes_of(message):
            self._report(*notes)

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

    def _report(self, *texts: str) -> None:
        line = "\r\n" if self._tty else "\n"
        notes = "".join(f"tachikoma: {printable(text)}{line}" for text in texts)
        os.write(2, f"{line if self._tty else ''}{notes}".encode())

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _watch_connection(self) -> None:
        """Report a connection that stays broken, and its return."""
        reported = False
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            lost_seconds = self._session.lost_seconds
            if not reported and lost_seconds >= LOST_SECONDS:
                reported = True
                self._report("connection lost; trying again, ~. leaves")
            elif reported and not lost_seconds:
                reported = False
                self._report("connected again")

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
            if part.data and not self._interrupted(part):
                self._await(self._to_send.put(part.data))
            match part.escape:
                case Escape.END:
                    self._loop.call_soon_threadsafe(self._end)
                case Escape.DETACH:
                    self._loop.call_soon_threadsafe(self._leave)
                case Escape.HELP:
                    os.write(2, HELP.encode())
                case None:
                    pass

    def _interrupted(self, part: Typed) -> bool:
        """End the session at a Ctrl-C that no command can receive, since the execution waits for an approval."""
        if not self._waiting or INTERRUPT not in part.data:
            return False
        self._loop.call_soon_threadsafe(self._end)
        return True

    # --- input, in the loop -------------------------------------------------------------------------------------------

    async def _send_typed(self) -> None:
        """Send what is typed. It may wait for the command, but the thread goes on to look for escapes."""
        with suppress(TachikomaError):
            while True:
                await self._session.write(await self._to_send.get())
                self._to_send.task_done()

    async def _flush(self) -> None:
        """Wait until what was typed is sent, but not for long: the command may take nothing now."""
        with suppress(TimeoutError):
            async with asyncio.timeout(FLUSH_SECONDS):
                await self._to_send.join()

    def _end(self) -> None:
        """End the session, and wait a little for its result; the second time, leave at once."""
        if self._ending:
            self._give_up()
            return
        self._ending = True
        self._start(self._close())

    async def _close(self) -> None:
        await self._flush()
        await self._session.close()
        await asyncio.sleep(END_SECONDS)
        self._give_up()

    # --- signals ------------------------------------------------------------------------------------------------------

    def _resized(self) -> None:
        self._loop.create_task(self._session.resize(window_size(0)))

    def _leave(self) -> None:
        """Leave the session running."""
        if not self._left:
            self._left = True
            self._start(self._detach())

    async def _detach(self) -> None:
        await self._flush()
        await self._session.detach()
        # An orchestrator that is unavailable does not end the call.
        await asyncio.sleep(LEAVE_SECONDS)
        self._give_up()

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
