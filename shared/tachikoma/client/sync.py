"""`Client`: `AsyncClient` for programs without an event loop.

The methods are those of `AsyncClient`. Each is adapted by one of two functions, whose types carry parameters and
results over, so that type checkers and editors see ordinary methods.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterator
from datetime import timedelta
from enum import Enum
from functools import update_wrapper
from pathlib import Path
from types import GenericAlias, TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar, get_args, get_type_hints

from tachikoma.client.aio import AsyncClient
from tachikoma.client.interactive import AsyncSession
from tachikoma.client.profile import Profile
from tachikoma.client.retry import DEFAULT_RECONNECT, LEAVE_SECONDS
from tachikoma.sessions.frames import SignalName
from tachikoma.vocabulary.requests import WindowSize
from tachikoma.vocabulary.results import ExecOutput, InputAccepted

__all__ = ["Client", "Session"]

P = ParamSpec("P")
R = TypeVar("R")


def _sync(method: Callable[Concatenate[AsyncClient, P], Coroutine[Any, Any, R]]) -> Callable[Concatenate[Client, P], R]:
    """Adapt a coroutine method: the caller waits for its result."""

    def call(self: Client, /, *args: P.args, **kwargs: P.kwargs) -> R:
        return self._run(method(self._async, *args, **kwargs))

    _describe(call, method)
    return call


def _sync_iterator(
    method: Callable[Concatenate[AsyncClient, P], AsyncIterator[R]],
) -> Callable[Concatenate[Client, P], Iterator[R]]:
    """Adapt a method that is an async generator: the caller iterates over its items."""

    def call(self: Client, /, *args: P.args, **kwargs: P.kwargs) -> Iterator[R]:
        return self._iterate(lambda: method(self._async, *args, **kwargs))

    _describe(call, method)
    returned = GenericAlias(Iterator, get_args(get_type_hints(method)["return"]))
    call.__annotations__["return"] = returned
    vars(call)["__signature__"] = inspect.signature(method).replace(return_annotation=returned)
    return call


def _sync_session(
    method: Callable[Concatenate[AsyncClient, P], AsyncSession],
) -> Callable[Concatenate[Client, P], Session]:
    """Adapt a method that makes a session: the caller gets one without an event loop."""

    def call(self: Client, /, *args: P.args, **kwargs: P.kwargs) -> Session:
        return Session(self, lambda: method(self._async, *args, **kwargs))

    _describe(call, method)
    call.__annotations__["return"] = Session
    vars(call)["__signature__"] = inspect.signature(method).replace(return_annotation=Session)
    return call


def _describe(call: Callable[..., Any], method: Callable[..., Any]) -> None:
    """Give an adapted method the name, docstring, signature and annotations of its original."""
    update_wrapper(call, method)
    call.__module__ = __name__
    call.__qualname__ = f"Client.{call.__name__}"
    call.__annotations__ = dict(method.__annotations__)


class Session:
    """An interactive execution, for programs without an event loop: a context manager and an iterator.

    The methods are those of `AsyncSession`. `write` is called from another thread, or between two messages.
    """

    def __init__(self, client: Client, make: Callable[[], AsyncSession]) -> None:
        async def made() -> AsyncSession:
            return make()

        self._client = client
        self._session = client._run(made())
        #: Id of the execution.
        self.id = self._session.id

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client._run(self._session.__aexit__(kind, error, trace))

    def __iter__(self) -> Iterator[ExecOutput]:
        return self._client._iterate(self._session.__aiter__)

    @property
    def accepted(self) -> InputAccepted:
        """Progress of the command in taking input."""
        return self._session.accepted

    def write(self, data: bytes) -> None:
        """Send input; wait while the command has more than 4 MiB of it to take."""
        self._client._run(self._session.write(data))

    def end(self) -> None:
        """Send the end of input."""
        self._client._run(self._session.end())

    def resize(self, size: WindowSize) -> None:
        """Send the size of the window."""
        self._client._run(self._session.resize(size))

    def signal(self, name: SignalName) -> None:
        """Send a signal to the foreground processes of the command."""
        self._client._run(self._session.signal(name))

    def detach(self) -> None:
        """Leave the command running; the iteration ends without a result."""
        self._client._run(self._session.detach())

    def close(self) -> None:
        """End the command; the iteration ends with the result."""
        self._client._run(self._session.close())


class _End(Enum):
    """The end of an async iterator; no item can be equal to it."""

    END = "end"


class Client:
    """Runs commands on agents, for programs without an event loop. A context manager; usable from several threads.

    It runs an `AsyncClient` in the event loop of a thread of its own, so it can also be used where another event loop
    runs. An interrupted call, for instance by Ctrl-C, is cancelled, and with it the command that it runs.
    """

    def __init__(
        self,
        profile: Profile | None = None,
        *,
        patience: timedelta | str | float = 0,
        reconnect: timedelta | str | float = DEFAULT_RECONNECT,
    ) -> None:
        """Prepare a client; arguments and errors are those of `AsyncClient`."""
        self._async = AsyncClient(profile, patience=patience, reconnect=reconnect)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="tachikoma-client", daemon=True)
        self._thread.start()

    @classmethod
    def from_profile(cls, path: Path) -> Self:
        """Make a client with the profile in a file."""
        return cls(Profile.load(path))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def profile(self) -> Profile:
        """The profile in use."""
        return self._async.profile

    @property
    def spiffe_id(self) -> str:
        """The SPIFFE ID by which the orchestrator knows this client."""
        return self._async.spiffe_id

    def check_usable(self) -> None:
        """Check that this client can be used in this process.

        Raises:
            FailedPrecondition: it is closed, or was made before a fork of this process.
        """
        self._async.check_usable()

    def close(self) -> None:
        """Close the connection. Further calls raise `FailedPrecondition`. Safe to repeat."""
        # After a fork, the thread of the loop is in the parent only.
        if self._loop.is_closed() or not self._thread.is_alive():
            return
        self._run(self._async.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    execute = _sync(AsyncClient.execute)
    execute_stream = _sync_iterator(AsyncClient.execute_stream)
    submit = _sync(AsyncClient.submit)
    attach = _sync_iterator(AsyncClient.attach)
    cancel = _sync(AsyncClient.cancel)
    session = _sync_session(AsyncClient.session)
    attach_session = _sync_session(AsyncClient.attach_session)
    watch_session = _sync_iterator(AsyncClient.watch_session)
    status = _sync(AsyncClient.status)
    list = _sync_iterator(AsyncClient.list)
    list_page = _sync(AsyncClient.list_page)
    approvals = _sync(AsyncClient.approvals)
    approval = _sync(AsyncClient.approval)
    approve = _sync(AsyncClient.approve)
    reject = _sync(AsyncClient.reject)
    agents = _sync(AsyncClient.agents)
    drain_agent = _sync(AsyncClient.drain_agent)
    resume_agent = _sync(AsyncClient.resume_agent)
    label_agent = _sync(AsyncClient.label_agent)
    enroll_agent = _sync(AsyncClient.enroll_agent)
    revoke_agent = _sync(AsyncClient.revoke_agent)
    enroll_user = _sync(AsyncClient.enroll_user)
    users = _sync(AsyncClient.users)
    revoke_user = _sync(AsyncClient.revoke_user)
    policy_status = _sync(AsyncClient.policy_status)
    audit = _sync(AsyncClient.audit)
    run = _sync_iterator(AsyncClient.run)
    submit_batch = _sync(AsyncClient.submit_batch)
    preview_batch = _sync(AsyncClient.preview_batch)
    watch_batch = _sync_iterator(AsyncClient.watch_batch)
    batch = _sync(AsyncClient.batch)
    batches = _sync(AsyncClient.batches)
    cancel_batch = _sync(AsyncClient.cancel_batch)
    batch_approvals = _sync(AsyncClient.batch_approvals)
    batch_approval = _sync(AsyncClient.batch_approval)
    approve_batch = _sync(AsyncClient.approve_batch)
    reject_batch = _sync(AsyncClient.reject_batch)
    recordings = _sync(AsyncClient.recordings)
    recording = _sync_iterator(AsyncClient.recording)
    schedules = _sync(AsyncClient.schedules)
    next_due_times = _sync(AsyncClient.next_due_times)
    pause_schedule = _sync(AsyncClient.pause_schedule)
    resume_schedule = _sync(AsyncClient.resume_schedule)
    run_schedule = _sync(AsyncClient.run_schedule)
    scheduled_runs = _sync(AsyncClient.scheduled_runs)

    def _run(self, coroutine: Coroutine[Any, Any, R]) -> R:
        """Run a coroutine in the client's event loop and wait for its result."""
        try:
            self._async.check_usable()
        except BaseException:
            # A coroutine that is never run is a warning of Python.
            coroutine.close()
            raise
        ended = threading.Event()

        async def run() -> R:
            try:
                return await coroutine
            finally:
                ended.set()

        future = asyncio.run_coroutine_threadsafe(run(), self._loop)
        try:
            return future.result()
        except BaseException:
            # For instance Ctrl-C in the waiting thread: the call must not go on in the background.
            if future.cancel():
                ended.wait(LEAVE_SECONDS + 1)
            raise

    def _iterate(self, source: Callable[[], AsyncIterator[R]]) -> Iterator[R]:
        """Yield the items of an async iterator, each fetched when the caller requests it."""
        iterator = source()

        async def step() -> R | _End:
            return await anext(iterator, _End.END)

        try:
            while (item := self._run(step())) is not _End.END:
                yield item
        finally:
            if isinstance(iterator, AsyncGenerator) and not self._loop.is_closed():

                async def finish() -> None:
                    await iterator.aclose()

                self._run(finish())
