"""`AsyncClient`: the API for Python programs. `tachikoma.client.sync` derives `Client` from it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection
from contextlib import aclosing
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Self

from tachikoma.client import wire
from tachikoma.client.batches import BatchMethods
from tachikoma.client.connection import Connection
from tachikoma.client.interactive import AsyncSession
from tachikoma.client.model_stream import ModelStream
from tachikoma.client.oversight import OversightCalls
from tachikoma.client.profile import Profile
from tachikoma.client.retry import DEFAULT_RECONNECT, Attempts, leave
from tachikoma.exec.v1 import remote_execution_pb2 as pb
from tachikoma.vocabulary.durations import as_duration
from tachikoma.vocabulary.messages import OutputKind
from tachikoma.vocabulary.requests import ExecRequest, WindowSize
from tachikoma.vocabulary.results import Approval, CancelResponse, ExecOutput, ExecResponse, ExecStatus
from tachikoma.vocabulary.states import ExecState

if TYPE_CHECKING:
    pass

__all__ = ["AsyncClient"]


class AsyncClient(BatchMethods, OversightCalls):
    """Runs commands on agents, shows and approves executions, and manages agents. An async context manager.

    Without a profile it uses the user's own (see `tachikoma.client.profile`). All methods raise a class of
    `tachikoma.errors`: `PermissionDenied`, `AgentOffline`, `Unavailable`, and so on.
    """

    def __init__(
        self,
        profile: Profile | None = None,
        *,
        patience: timedelta | str | float = 0,
        reconnect: timedelta | str | float = DEFAULT_RECONNECT,
    ) -> None:
        """Prepare a client; nothing is connected yet.

        Args:
            profile: where the orchestrator is, and the identity to use.
            patience: how long a call that meets a rate limit or a full queue is repeated, each time after the delay
                that the refusal names. By default it is not repeated.
            reconnect: how long a call whose connection broke is tried again. A stream resumes after the last chunk
                that came. Requests carry their id, so no command runs twice.

        Durations are a timedelta, text such as "90s", or a number of seconds.

        Raises:
            ConfigurationError: there is no profile, or its identity cannot be read.
            Unauthenticated: the identity is expired or not trusted by its own bundle.
        """
        self.profile = profile or Profile.load()
        self._patience = as_duration(patience, "patience")
        self._reconnect = as_duration(reconnect, "reconnect")
        self._connection = Connection(self.profile)
        #: Ids of the executions that are cancelled when their caller leaves.
        self._attended: set[str] = set()
        #: The SPIFFE ID by which the orchestrator knows this client.
        self.spiffe_id = self._connection.spiffe_id

    async def __aenter__(self) -> Self:
        self._connection.stub()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def check_usable(self) -> None:
        """Check that this client can be used in this process.

        Raises:
            FailedPrecondition: it is closed, or was made before a fork of this process.
        """
        self._connection.check_usable()

    async def close(self) -> None:
        """Cancel what the streams of this client still run, unless they are detached; then close the connection."""
        await asyncio.gather(*(self._leave(exec_id) for exec_id in tuple(self._attended)))
        await self._connection.close()

    # --- executions ---------------------------------------------------------------------------------------------------

    async def execute(self, request: ExecRequest) -> ExecResponse:
        """Run a command and wait until it has ended. When this call is cancelled, so is the execution.

        A command that fails raises no error here; `ExecResponse.check` does that. A connection that breaks cancels
        nothing. To leave a command running, use `submit`.
        """
        message = wire.request_to_pb(request)
        self._attended.add(request.id)
        try:
            return wire.response_from_pb(await self._call(lambda stub: stub.Execute(message), subject=request.id))
        except asyncio.CancelledError:
            await self._leave(request.id)
            raise
        finally:
            self._attended.discard(request.id)

    async def execute_stream(self, request: ExecRequest, *, detach: bool = False) -> AsyncIterator[ExecOutput]:
        """Run a command and yield its output while it runs: first a status, then chunks, then the result.

        Leaving the stream early cancels the execution: by closing it, by cancelling its task, or by closing the
        client. A connection that breaks cancels nothing.

        Args:
            request: the command.
            detach: let the execution continue when the stream is left.
        """
        message = wire.request_to_pb(request)
        attempts = Attempts(self._patience, self._reconnect, request.id)
        output = ModelStream(self._connection, attempts, lambda stub: stub.ExecuteStream(message))
        if not detach:
            self._attended.add(request.id)
        try:
            async with aclosing(output.read()) as messages:
                async for item in messages:
                    if item.kind is OutputKind.RESULT:
                        self._attended.discard(request.id)
                    yield item
        except (GeneratorExit, asyncio.CancelledError):
            await self._leave(request.id)
            raise
        finally:
            self._attended.discard(request.id)

    async def _leave(self, exec_id: str) -> None:
        """Cancel an execution that its caller leaves; nothing if it has ended or is detached."""
        if exec_id in self._attended:
            self._attended.discard(exec_id)
            await leave(self.cancel, exec_id)

    async def submit(self, request: ExecRequest) -> ExecStatus:
        """Submit a command and return without waiting for it. Safe to repeat with the same request."""
        message = wire.request_to_pb(request)
        return wire.status_from_pb(await self._call(lambda stub: stub.Submit(message), subject=request.id))

    async def attach(self, exec_id: str, *, after_seq: int = 0, follow: bool = True) -> AsyncIterator[ExecOutput]:
        """Yield the output of an execution, also of one that has ended.

        Args:
            exec_id: the execution.
            after_seq: only chunks with a greater number; 0 for all.
            follow: wait for further output until the execution ends.
        """
        message = pb.AttachRequest(id=exec_id, after_seq=after_seq, no_follow=not follow)
        stream = ModelStream(
            self._connection, Attempts(self._patience, self._reconnect, exec_id), lambda stub: stub.Attach(message),
            after_seq=after_seq, follow=follow,
        )  # fmt: skip
        async for output in stream.read():
            yield output

    def session(self, request: ExecRequest) -> AsyncSession:
        """Run a command that gets input while it runs: a request with `interactive`; see `AsyncSession`."""
        return self._session(request.id, pb.ExecInput(request=wire.request_to_pb(request)))

    def attach_session(self, exec_id: str, *, after_seq: int = 0, screen: WindowSize | None = None) -> AsyncSession:
        """Attach to an interactive execution of this caller, as `attach`; an attached caller loses its place.

        With a terminal and `screen`, the size of the caller's window, the output so far comes as bytes that draw it.
        """
        drawn = None if screen is None else pb.Terminal(rows=screen.rows, columns=screen.columns)
        message = pb.SessionAttach(id=exec_id, after_seq=after_seq, screen=drawn)
        return self._session(exec_id, pb.ExecInput(attach=message), after_seq=after_seq)

    async def watch_session(self, exec_id: str, *, screen: WindowSize | None = None) -> AsyncIterator[ExecOutput]:
        """Yield the output of an interactive execution from now on, as an observer that policy allows.

        Args:
            exec_id: the execution.
            screen: size of the caller's window, to get the output so far as bytes that draw it; None to get all of it.

        Raises:
            NotFound: this caller may observe no execution with this id.
        """
        drawn = None if screen is None else pb.Terminal(rows=screen.rows, columns=screen.columns)
        attach = pb.SessionAttach(id=exec_id, screen=drawn, observe=True)
        async for output in self._session(exec_id, pb.ExecInput(attach=attach)):
            yield output

    def _session(self, exec_id: str, first: pb.ExecInput, *, after_seq: int = 0) -> AsyncSession:
        attempts = Attempts(self._patience, self._reconnect, exec_id)
        return AsyncSession(self._connection, attempts, first, cancel=self.cancel, after_seq=after_seq)

    async def cancel(self, exec_id: str) -> CancelResponse:
        """Cancel an execution. Safe to repeat."""
        return wire.cancel_from_pb(await self._call(lambda stub: stub.Cancel(pb.CancelRequest(id=exec_id))))

    async def status(self, exec_id: str) -> ExecStatus:
        """Return the state of an execution, and the history of its states."""
        message = pb.StatusRequest(id=exec_id)
        return wire.status_from_pb((await self._call(lambda stub: stub.Status(message))).status)

    async def list(
        self,
        agent_id: str = "",
        *,
        include_ended: bool = False,
        requested_by: str = "",
        states: Collection[ExecState] = (),
        agents: str = "",
        since: datetime | None = None,
        until: datetime | None = None,
    ) -> AsyncIterator[ExecStatus]:
        """Yield executions, newest first. Pages are read as they are needed, so leaving early reads no more.

        Args:
            agent_id: only executions on this agent.
            include_ended: also executions that have ended.
            requested_by: only executions of this SPIFFE ID, or of one that ends with these parts: `user/anna`.
            states: only executions in one of these states.
            agents: only executions on matching agents: an id pattern, or labels as `role=web,site=*`.
            since: only executions accepted at this time or later.
            until: only executions accepted before this time.
        """
        token = ""
        while True:
            page, token = await self.list_page(
                agent_id, include_ended=include_ended, page_token=token, requested_by=requested_by,
                states=states, agents=agents, since=since, until=until,
            )  # fmt: skip
            for status in page:
                yield status
            if not token:
                return

    async def list_page(
        self,
        agent_id: str = "",
        *,
        include_ended: bool = False,
        page_size: int = 0,
        page_token: str = "",
        requested_by: str = "",
        states: Collection[ExecState] = (),
        agents: str = "",
        since: datetime | None = None,
        until: datetime | None = None,
    ) -> tuple[tuple[ExecStatus, ...], str]:
        """Return a page of executions, newest first, and the token of the next page, which is empty on the last one.

        A page may be short or empty and not be the last one, since each call searches a part of the ledger. The other
        arguments are those of `list`.

        Args:
            page_size: at most n executions, 1 to 1000; 0 for 100.
            page_token: the token of this page, from the page before.
        """
        message = pb.ListRequest(
            agent_id=agent_id, include_ended=include_ended, page_size=page_size, page_token=page_token,
            requested_by=requested_by, states=wire.states_to_pb(states), agents=agents,
            since=wire.timestamp_to_pb(since), until=wire.timestamp_to_pb(until),
        )  # fmt: skip
        answer = await self._call(lambda stub: stub.List(message))
        return tuple(wire.status_from_pb(item) for item in answer.executions), answer.next_page_token

    # --- approvals ----------------------------------------------------------------------------------------------------

    async def approvals(self) -> tuple[ExecStatus, ...]:
        """Return the waiting executions that this client may approve or has requested.

        The nearest deadline comes first.
        """
        answer = await self._call(lambda stub: stub.ListApprovals(pb.ListApprovalsRequest()))
        return tuple(wire.status_from_pb(item) for item in answer.executions)

    async def approval(self, exec_id: str) -> Approval:
        """Return everything that an execution would run, for a client that may approve it."""
        message = pb.GetApprovalRequest(id=exec_id)
        return wire.approval_from_pb(await self._call(lambda stub: stub.GetApproval(message)))

    async def approve(self, exec_id: str, digest: str, reason: str) -> ExecStatus:
        """Approve an execution, which then runs.

        Args:
            exec_id: the execution.
            digest: `Approval.digest` of the request that was reviewed. A request with another digest is not approved.
            reason: recorded in the audit trail.
        """
        raw = wire.digest_to_pb(digest, "Approval.digest")
        message = pb.ApproveRequest(id=exec_id, digest=raw, reason=reason)
        return wire.status_from_pb(await self._call(lambda stub: stub.Approve(message), repeat=False))

    async def reject(self, exec_id: str, reason: str) -> ExecStatus:
        """Reject an execution that waits for its approval; it never runs.

        Args:
            exec_id: the execution.
            reason: recorded in the audit trail and shown to the requester.
        """
        message = pb.RejectRequest(id=exec_id, reason=reason)
        return wire.status_from_pb(await self._call(lambda stub: stub.Reject(message), repeat=False))
