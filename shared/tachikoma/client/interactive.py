"""A session: an interactive execution with its input, output and terminal, over as many connections as it takes."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, suppress
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeAlias

import grpc.aio

from tachikoma.client.connection import Connection
from tachikoma.client.model_stream import ModelStream
from tachikoma.client.retry import Attempts, leave
from tachikoma.errors import FailedPrecondition
from tachikoma.exec.v1 import remote_execution_pb2 as pb
from tachikoma.sessions.frames import INPUT_CREDIT_BYTES, MAX_DATA_BYTES, SignalName
from tachikoma.vocabulary.messages import OutputKind
from tachikoma.vocabulary.requests import WindowSize
from tachikoma.vocabulary.results import ExecOutput, InputAccepted

if TYPE_CHECKING:
    from tachikoma.exec.v1.remote_execution_pb2_grpc import RemoteExecutionAsyncStub

    Call: TypeAlias = grpc.aio.StreamStreamCall[pb.ExecInput, pb.ExecOutput]

__all__ = ["AsyncSession"]

#: Bytes of output after which progress in writing it is reported.
REPORT_BYTES = 8 * 1024


class AsyncSession:
    """An interactive execution. An async context manager and an async iterator.

    Input is sent and output received while the session is iterated, so `write` is called from another task, or between
    two messages. A connection that breaks is made again: input continues where the command has taken it, output after
    the last chunk. Leaving the block cancels the execution, unless it has ended or `detach` was called.
    """

    #: Progress of the command in taking input.
    accepted = InputAccepted()
    _input_ended = False
    _size: WindowSize | None = None
    _output_written = 0
    #: The wish to leave: `detach` or `close`.
    _wish: pb.ExecInput | None = None
    #: True once the iteration has ended, so that nothing sends input any more.
    _over = False

    def __init__(
        self,
        connection: Connection,
        attempts: Attempts,
        first: pb.ExecInput,
        *,
        cancel: Callable[[str], Awaitable[object]],
        after_seq: int = 0,
    ) -> None:
        """Prepare a session; the first call is made by the iteration.

        Args:
            connection: where the calls go.
            attempts: the call's attempts; they limit the waits after a refusal by a limit and a broken connection.
            first: the request, or the attach.
            cancel: cancels an execution, when the caller leaves.
            after_seq: number of the last chunk that the caller already has; 0 for none.
        """
        new = first.HasField("request")
        #: Id of the execution.
        self.id: str = first.request.id if new else first.attach.id
        self._cancel = cancel
        self._first = first
        self._attempts = attempts
        #: The window that output so far is drawn for; None for the output itself.
        self._screen = first.attach.screen if first.attach.HasField("screen") else None
        self._stream = ModelStream(
            connection, attempts, self._open, after_seq=after_seq, changes=True, reopen=self._reopen
        )
        #: Number of input bytes so far; None until the server says where the input of an older session continues.
        self._end_offset: int | None = 0 if new else None
        #: Input that the command has not taken, with its offsets.
        self._retained: deque[tuple[int, bytes]] = deque()
        self._signals: deque[SignalName] = deque()
        #: True once the execution is none that leaving cancels: ended, or detached.
        self._released = first.attach.observe
        #: Set when there is something to send.
        self._changed = asyncio.Event()
        #: Set when the command has taken input, or will take no more.
        self._progressed = asyncio.Event()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._released:
            self._released = True
            await leave(self._cancel, self.id)

    @property
    def lost_seconds(self) -> float:
        """Seconds since the connection broke; 0 while it works."""
        lost_at = self._attempts.lost_at
        return 0.0 if lost_at is None else time.monotonic() - lost_at

    # --- input --------------------------------------------------------------------------------------------------------

    async def write(self, data: bytes) -> None:
        """Send input. Wait while the command has yet to take more than 4 MiB of earlier input.

        Raises:
            FailedPrecondition: input has ended, or the session ended while this call waited.
        """
        if self._input_ended:
            raise FailedPrecondition("input has ended")
        while self._end_offset is None:
            await self._progress()
        for start in range(0, len(data), MAX_DATA_BYTES):
            part = data[start : start + MAX_DATA_BYTES]
            while not self.accepted.ended and self._end_offset - self.accepted.offset > INPUT_CREDIT_BYTES:
                await self._progress()
            self._retained.append((self._end_offset, part))
            self._end_offset += len(part)
            self._changed.set()

    async def end(self) -> None:
        """Send the end of input."""
        self._input_ended = True
        self._changed.set()

    async def resize(self, size: WindowSize) -> None:
        """Send the size of the window."""
        self._size = size
        self._changed.set()

    async def signal(self, name: SignalName) -> None:
        """Send a signal to the foreground processes of the command."""
        self._signals.append(name)
        self._changed.set()

    async def detach(self) -> None:
        """Leave the command running; the iteration ends without a result. `AsyncClient.attach_session` returns."""
        self._wish = pb.ExecInput(detach=pb.SessionDetach())
        self._released = True
        self._changed.set()

    async def close(self) -> None:
        """End the command: its terminal is hung up. The iteration ends with the result."""
        self._wish = pb.ExecInput(close=pb.SessionClose())
        self._changed.set()

    async def _progress(self) -> None:
        """Wait until the command takes input.

        Raises:
            FailedPrecondition: the session has ended.
        """
        self._progressed.clear()
        if not self._over:
            await self._progressed.wait()
        if self._over:
            raise FailedPrecondition("the session has ended")

    # --- output -------------------------------------------------------------------------------------------------------

    async def __aiter__(self) -> AsyncIterator[ExecOutput]:
        """Yield the status, state changes and output; the result is last, and absent after `detach`.

        A chunk counts as written when the next message is asked for. A command on a slow terminal therefore waits,
        and does not fill buffers on the way.

        Raises:
            OutputAltered: the output is not the one that the agent signed.
            TachikomaError: the call failed, and is not repeated.
        """
        self._over = False
        try:
            async with aclosing(self._stream.read()) as messages:
                async for message in messages:
                    if message.kind is OutputKind.ACCEPTED:
                        self._note_accepted(message.accepted or InputAccepted())
                        continue
                    if message.kind is OutputKind.RESULT:
                        self._released = True
                    yield message
                    if message.kind is OutputKind.SCREEN:
                        self._note_written(message.offset)
                    elif message.data:
                        self._note_written(message.offset + len(message.data))
        finally:
            self._over = True
            self._progressed.set()

    def _note_accepted(self, accepted: InputAccepted) -> None:
        self.accepted = accepted
        if self._end_offset is None:
            self._end_offset = accepted.offset
        while self._retained and self._retained[0][0] + len(self._retained[0][1]) <= accepted.offset:
            self._retained.popleft()
        if accepted.ended:
            self._retained.clear()
        self._progressed.set()

    def _note_written(self, output: int) -> None:
        if output - self._output_written >= REPORT_BYTES:
            self._output_written = output
            self._changed.set()

    # --- calls --------------------------------------------------------------------------------------------------------

    def _open(self, stub: RemoteExecutionAsyncStub) -> Call:
        """Make a call, and send input until it ends."""
        return self._call(stub, self._first)

    def _reopen(self, stub: RemoteExecutionAsyncStub, after_seq: int) -> Call:
        """Make the call that continues after a chunk."""
        attach = pb.SessionAttach(id=self.id, after_seq=after_seq, observe=self._first.attach.observe)
        if self._screen is not None and not after_seq:
            attach.screen.CopyFrom(self._screen)
        return self._call(stub, pb.ExecInput(attach=attach))

    def _call(self, stub: RemoteExecutionAsyncStub, first: pb.ExecInput) -> Call:
        call = stub.ExecuteInteractive()
        sending = asyncio.get_running_loop().create_task(self._send(call, first))

        def stop(_: object) -> None:
            sending.cancel()

        call.add_done_callback(stop)
        return call

    async def _send(self, call: Call, first: pb.ExecInput) -> None:
        """Send messages over one call until it ends; the reader of the call gets the error, if there is one."""
        with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            await call.write(first)
            cursor = _Cursor()
            while True:
                self._changed.clear()
                for message in self._due(cursor):
                    await call.write(message)
                await self._changed.wait()

    def _due(self, cursor: _Cursor) -> Iterator[pb.ExecInput]:
        """Yield the messages that a call has not carried yet."""
        if self._size is not None and self._size != cursor.size:
            cursor.size = self._size
            rows, columns = self._size.rows, self._size.columns
            yield pb.ExecInput(
                resize=pb.Terminal(
                    rows=rows, columns=columns, x_pixels=self._size.x_pixels, y_pixels=self._size.y_pixels
                )
            )
        if self._output_written > cursor.output:
            cursor.output = self._output_written
            yield pb.ExecInput(written=pb.OutputWritten(bytes=cursor.output))
        while self._signals:
            yield pb.ExecInput(signal=self._signals.popleft())
        for offset, data in list(self._retained):
            if offset >= cursor.sent:
                cursor.sent = offset + len(data)
                yield pb.ExecInput(data=pb.InputData(data=data, offset=offset))
        # More may have been written while the messages above were sent; the end follows it in the next round.
        sent_all = not self._retained or self._retained[-1][0] < cursor.sent
        if self._input_ended and sent_all and not cursor.ended and self._end_offset is not None:
            cursor.ended = True
            yield pb.ExecInput(end=pb.EndOfInput())
        if self._wish is not None and not cursor.wish:
            cursor.wish = True
            yield self._wish


class _Cursor:
    """The progress of one call: bytes and facts that it has sent and received."""

    def __init__(self) -> None:
        self.sent = 0
        self.output = 0
        self.size: WindowSize | None = None
        self.ended = False
        self.wish = False
