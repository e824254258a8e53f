"""Messages to an attached caller: output in its order, and the latest progress of input between it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator

from tachikoma.vocabulary.messages import OutputKind
from tachikoma.vocabulary.results import ExecOutput, InputAccepted

__all__ = ["Outbox"]

#: Messages that wait for the caller; the reader of the output then waits too.
MAX_WAITING = 2


class Outbox:
    """A short queue of output, and one place for the progress of input. For one reader."""

    def __init__(self) -> None:
        self._waiting: deque[ExecOutput] = deque()
        self._room = asyncio.Semaphore(MAX_WAITING)
        self._accepted: ExecOutput | None = None
        self._wake = asyncio.Event()
        self._finished = False
        self._error: Exception | None = None
        #: Number of output bytes, of both streams, that were handed to the connection; set with `sent_more`.
        self.sent_bytes = 0
        self.sent_more = asyncio.Event()

    async def put(self, message: ExecOutput) -> None:
        """Add a message. Wait first while too many messages are unread."""
        await self._room.acquire()
        self._waiting.append(message)
        self._wake.set()

    def accept(self, exec_id: str, progress: InputAccepted) -> None:
        """Replace the progress of input; never waits."""
        self._accepted = ExecOutput(id=exec_id, kind=OutputKind.ACCEPTED, accepted=progress)
        self._wake.set()

    def finish(self, error: Exception | None = None) -> None:
        """End the iteration after the messages that wait, with an error if there is one."""
        self._finished = True
        self._error = error
        self._wake.set()

    async def messages(self) -> AsyncIterator[ExecOutput]:
        """Yield messages until the result, or until `finish`; raise the error of `finish`, if it has one."""
        while True:
            self._wake.clear()
            if self._accepted is not None:
                message, self._accepted = self._accepted, None
                yield message
            while self._waiting:
                message = self._waiting.popleft()
                self._room.release()
                yield message
                self._note_sent(message)
                if message.kind is OutputKind.RESULT:
                    return
            if self._finished:
                if self._error is not None:
                    raise self._error
                return
            if self._accepted is None:
                await self._wake.wait()

    def _note_sent(self, message: ExecOutput) -> None:
        if message.kind in (OutputKind.STDOUT, OutputKind.STDERR):
            self.sent_bytes = message.offset + len(message.data)
            self.sent_more.set()
        elif message.kind is OutputKind.SCREEN:
            self.sent_bytes = message.offset
            self.sent_more.set()
