"""The output of one execution as it arrives: resumed when its connection breaks, checked against its digests."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Iterator
from typing import TYPE_CHECKING, Generic, TypeAlias, TypeVar

import grpc.aio

from tachikoma.client.connection import Connection
from tachikoma.client.retry import Attempts
from tachikoma.errors import OutputAltered, TachikomaError
from tachikoma.exec.v1 import remote_execution_pb2 as pb
from tachikoma.streams.frames import OutputCheck
from tachikoma.vocabulary.messages import Message, Result, Status
from tachikoma.vocabulary.states import ExecState

if TYPE_CHECKING:
    from tachikoma.exec.v1.remote_execution_pb2_grpc import RemoteExecutionAsyncStub

    #: One attempt of a stream: the call of an RPC that sends output.
    Opening: TypeAlias = Callable[
        [RemoteExecutionAsyncStub],
        grpc.aio.UnaryStreamCall[pb.ExecRequest, pb.ExecOutput]
        | grpc.aio.UnaryStreamCall[pb.AttachRequest, pb.ExecOutput]
        | grpc.aio.StreamStreamCall[pb.ExecInput, pb.ExecOutput],
    ]
    #: A later attempt: the same, for the output after a chunk.
    Reopening: TypeAlias = Callable[
        [RemoteExecutionAsyncStub, int], grpc.aio.StreamStreamCall[pb.ExecInput, pb.ExecOutput]
    ]

__all__ = ["OutputStream"]

#: A form of the messages.
M = TypeVar("M", bound=Message)


class OutputStream(ABC, Generic[M]):
    """The messages of one output stream, over as many calls as it takes. A subclass decides their form."""

    def __init__(
        self,
        connection: Connection,
        attempts: Attempts,
        opening: Opening,
        *,
        after_seq: int = 0,
        follow: bool = True,
        changes: bool = False,
        reopen: Reopening | None = None,
    ) -> None:
        """Prepare a stream; the first call is made by `read`.

        Args:
            connection: where the calls go.
            attempts: the call's attempts; they limit the waits after a refusal by a limit and a broken connection.
            opening: makes the first call. Later calls attach to the execution.
            after_seq: number of the last chunk that the caller already has; 0 for none.
            follow: True to continue until the execution ends.
            changes: True to yield every change of state; False for only the change after an approval.
            reopen: makes the later calls; None to attach to the output.
        """
        self._connection = connection
        self._attempts = attempts
        self._opening = opening
        self._after_seq = after_seq
        self._follow = follow
        self._changes = changes
        self._reopen = reopen
        self._check = OutputCheck(from_start=not after_seq)
        #: The latest status; None until the server has accepted the request.
        self._status: Status | None = None

    @abstractmethod
    def _message(self, received: pb.ExecOutput) -> M:
        """Read a message that the server sent. Raises ServerError if this client cannot read it."""

    @abstractmethod
    def _gap(self, exec_id: str, seq: int, missing_bytes: int) -> M:
        """Make the message about bytes that never came, after the chunk with a number."""

    async def read(self) -> AsyncGenerator[M]:
        """Yield the messages in their order, each once.

        Raises:
            OutputAltered: the output is not the one that the agent signed.
            TachikomaError: the call failed, and is not repeated.
        """
        while True:
            call = None
            try:
                self._attempts.connected(await self._connection.ready(self._attempts.subject))
                call = self._opening(self._connection.stub())
                async for message in call:
                    self._attempts.answered()
                    for output in self._accept(self._message(message)):
                        self._attempts.succeeded()
                        yield output
                return
            except grpc.aio.AioRpcError as error:
                translated = self._connection.error_of(error)
                await self._attempts.wait_or_raise(error, translated, accepted=self._status is not None)
            except TachikomaError as error:
                self._attempts.name(error, accepted=self._status is not None)
                raise
            finally:
                if call is not None:
                    call.cancel()
            if self._status is not None:
                self._opening = self._attach_again(self._status.id)

    def _attach_again(self, exec_id: str) -> Opening:
        """Return the call that continues an accepted execution after the last chunk that came."""
        if (reopen := self._reopen) is not None:
            after_seq = self._after_seq
            return lambda stub: reopen(stub, after_seq)
        message = pb.AttachRequest(id=exec_id, after_seq=self._after_seq, no_follow=not self._follow)
        return lambda stub: stub.Attach(message)

    def _accept(self, output: M) -> Iterator[M]:
        """Take a message from the server; yield the messages that it adds to the stream."""
        if output.status is not None and not self._is_new(output.status):
            return
        self._check.add(output)
        if output.result is not None:
            yield from self._missing(output, output.result)
            self._raise_if_altered(output.result)
        self._after_seq = max(self._after_seq, output.seq)
        yield output

    def _is_new(self, status: Status) -> bool:
        """Remember a status; return False if it is the one that a resumed stream repeats first."""
        before, self._status = self._status, status
        if before is None:
            return True
        reported = self._changes or before.state is ExecState.PENDING_APPROVAL
        return reported and (status.state, status.observers) != (before.state, before.observers)

    def _missing(self, output: M, result: Result) -> Iterator[M]:
        """Yield a gap for the bytes that the agent wrote and the server neither sent nor reported missing."""
        if missing := self._check.missing(result):
            gap = self._gap(output.id, self._after_seq, missing)
            self._check.add(gap)
            yield gap

    def _raise_if_altered(self, result: Result) -> None:
        if stream := self._check.altered(result):
            raise OutputAltered(
                f"the {stream} of {result.id} that arrived is not the one that its agent signed; "
                f"the execution ended {result.state} with exit code {result.exit_code}"
            )
