"""Repetition of calls: after a limit, after a broken connection, and to cancel an execution that its caller leaves."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

import grpc
import grpc.aio

from tachikoma.client.rpc_errors import is_answer
from tachikoma.config.logs import get_logger
from tachikoma.config.retry import Backoff
from tachikoma.errors import NotFound, ResourceExhausted, ServerError, TachikomaError, Unavailable

if TYPE_CHECKING:
    from tachikoma.client.connection import Connection
    from tachikoma.exec.v1.remote_execution_pb2_grpc import RemoteExecutionAsyncStub

__all__ = ["DEFAULT_RECONNECT", "LEAVE_SECONDS", "Attempts", "Calls", "leave"]

log = get_logger(__name__)

A = TypeVar("A")

#: How long a broken connection is tried again by default.
DEFAULT_RECONNECT = timedelta(minutes=5)
#: The first and the longest delay between attempts to resume a broken call.
BACKOFF_SECONDS = (0.1, 2.0)
#: Delay of a refusal for a limit that names none.
LIMIT_SECONDS = 1.0
#: Status codes that gRPC itself gives to a call whose connection broke, or whose server stopped.
BROKEN = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.INTERNAL)
#: A resumed call that brought nothing new counts as working after this time, in seconds.
STEADY_SECONDS = 10.0
#: Longest time that leaving takes, in seconds.
LEAVE_SECONDS = 5.0
#: Longest time that a request which was sent before takes to be known, in seconds.
ARRIVAL_SECONDS = 0.5


class Calls:
    """Calls of a client, over its one connection."""

    #: How long a call waits for rate limits and full queues.
    _patience: timedelta
    #: How long a broken connection is tried again.
    _reconnect: timedelta
    _connection: Connection

    async def _call(
        self, rpc: Callable[[RemoteExecutionAsyncStub], Awaitable[A]], *, repeat: bool = True, subject: str = ""
    ) -> A:
        """Make a call, and repeat it as the client's settings allow.

        Args:
            rpc: makes one attempt.
            repeat: whether a call whose connection broke may be made again, since its second run changes nothing.
            subject: id of the execution or batch that the call starts; errors name it. Empty if there is none.
        """
        attempts = Attempts(self._patience, self._reconnect if repeat else timedelta(0), subject)
        while True:
            try:
                attempts.connected(await self._connection.ready(subject))
                return await rpc(self._connection.stub())
            except TachikomaError as error:
                attempts.name(error)
                raise
            except grpc.aio.AioRpcError as error:
                await attempts.wait_or_raise(error, self._connection.error_of(error))


class Attempts:
    """The attempts of one call. Not shared between calls."""

    def __init__(self, patience: timedelta, reconnect: timedelta, subject: str = "") -> None:
        """Prepare the first attempt.

        Args:
            patience: how long the call waits for rate limits and full queues, from now on.
            reconnect: how long each broken connection is tried again; zero for a call that must not be repeated.
            subject: id of the execution that the call runs or follows; messages name it. Empty if there is none.
        """
        self.subject = subject
        self._patient_until = time.monotonic() + patience.total_seconds()
        self._reconnect_seconds = reconnect.total_seconds()
        #: Whether the request of an earlier attempt may have been accepted.
        self._doubted = False
        #: Whether any attempt had a connection. A caller that never reached the server gets its error at once.
        self._reached = False
        self._backoff = Backoff(*BACKOFF_SECONDS)
        #: End of the attempts to resume, by the monotonic clock; None while the connection works.
        self._resume_until: float | None = None
        #: When the connection broke, by the monotonic clock; None while it works.
        self.lost_at: float | None = None
        #: When the last attempt was answered without anything new, by the monotonic clock; None if it brought more.
        self._answered_at: float | None = None

    def connected(self, connected: bool) -> None:
        """Note whether there is a connection for the next attempt."""
        self._reached = self._reached or connected

    def succeeded(self) -> None:
        """Record that the connection works; the next failure then begins a new wait."""
        self._resume_until = self._answered_at = None
        self._backoff.reset()

    def answered(self) -> None:
        """Record an answer without new content.

        It shows that the connection works only if the call lasts. Otherwise a server that answers and then always fails
        would get calls forever.
        """
        self.lost_at = None
        if self._answered_at is None:
            self._answered_at = time.monotonic()

    async def wait_or_raise(
        self, error: grpc.aio.AioRpcError, translated: TachikomaError, *, accepted: bool = False
    ) -> None:
        """Wait before the next attempt; raise the error if no further attempt is allowed.

        Args:
            error: the failure of the last attempt.
            translated: the same as an error of this library, which is raised.
            accepted: True if the server has accepted the request before. Then the call only follows it: it waits for
                an unavailable server, and no limit applies any more.
        """
        answered_at, self._answered_at = self._answered_at, None
        if answered_at is not None and time.monotonic() - answered_at >= STEADY_SECONDS:
            self.succeeded()
        broken = self._is_broken(error) or (accepted and type(translated) is Unavailable)
        if accepted or (self._reached and (broken or type(translated) in (Unavailable, ServerError))):
            self._doubted = True
        if broken and await self._wait_for_connection():
            return
        if accepted or not await self._wait_for_limit(translated):
            self.name(translated)
            raise translated from error

    def name(self, error: TachikomaError, *, accepted: bool = False) -> None:
        """Add the id to the metadata of an error with which the call ends, if its request may have been accepted.

        Args:
            error: the error, also one that this client raises before an attempt, such as an expired identity.
            accepted: True if the server has accepted the request.
        """
        if self.subject and (accepted or self._doubted):
            error.metadata.setdefault("id", self.subject)

    def _is_broken(self, error: grpc.aio.AioRpcError) -> bool:
        """Return whether a connection broke, so that the server itself gave no answer."""
        return self._reached and not is_answer(error) and error.code() in BROKEN

    async def _wait_for_connection(self) -> bool:
        """Wait for the next delay; return False if the time to resume is over."""
        now = time.monotonic()
        if self.lost_at is None:
            self.lost_at = now
        if self._resume_until is None:
            self._resume_until = now + self._reconnect_seconds
        if now + self._backoff.next_seconds > self._resume_until:
            return False
        await self._backoff.wait()
        return True

    async def _wait_for_limit(self, error: TachikomaError) -> bool:
        """Wait for the delay that a refusal for a limit names; return False for another error, or a longer delay."""
        delay = error.retry_after_seconds or LIMIT_SECONDS
        if not isinstance(error, ResourceExhausted) or time.monotonic() + delay > self._patient_until:
            return False
        await asyncio.sleep(delay)
        return True


async def leave(cancel: Callable[[str], Awaitable[object]], subject: str) -> None:
    """Cancel an execution or a batch whose caller leaves. It takes a bounded time, and raises no error.

    The server may not know a request yet that is still in transit. So an unknown one is cancelled a second time.

    Args:
        cancel: the call that cancels it.
        subject: id of the execution or batch.
    """
    try:
        async with asyncio.timeout(LEAVE_SECONDS):
            if not await _cancelled(cancel, subject):
                await asyncio.sleep(ARRIVAL_SECONDS)
                await _cancelled(cancel, subject)
    except TimeoutError:
        log.warning("leaving.not_cancelled", id=subject, reason="the orchestrator did not answer in time")
    except TachikomaError as error:
        log.warning("leaving.not_cancelled", id=subject, reason=str(error))


async def _cancelled(cancel: Callable[[str], Awaitable[object]], subject: str) -> bool:
    """Cancel, and return False if the id is unknown."""
    try:
        await cancel(subject)
    except NotFound:
        return False
    return True
