"""`AsyncClient` and `Client`: the API for Python programs.

Everything is written once, in `AsyncClient`. `Client` runs it in an event loop of its own thread and waits for the
answers, so it can be used from any thread and also where another event loop runs.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Coroutine, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc
import grpc.aio

from tachikoma.client import wire
from tachikoma.client.profile import Profile
from tachikoma.errors import (
    InvalidRequest,
    OutputAltered,
    ResourceExhausted,
    TachikomaError,
    Unauthenticated,
    Unavailable,
)
from tachikoma.exec.v1 import remote_execution_pb2 as pb
from tachikoma.exec.v1.remote_execution_pb2_grpc import RemoteExecutionStub
from tachikoma.identity.open import open_identity
from tachikoma.identity.spiffe import InvalidIdentity, TrustBundle
from tachikoma.identity.svid import Svid
from tachikoma.streams.frames import OutputCheck
from tachikoma.vocabulary.agents import AgentInfo, Enrolment, Revocation
from tachikoma.vocabulary.audit import ExecAuditLog
from tachikoma.vocabulary.policies import PolicyStatus
from tachikoma.vocabulary.requests import MAX_MESSAGE_BYTES, ExecRequest
from tachikoma.vocabulary.results import Approval, CancelResponse, ExecOutput, ExecResponse, ExecStatus, OutputKind
from tachikoma.vocabulary.schedules import ScheduledRun, ScheduleStatus
from tachikoma.vocabulary.states import ExecState

__all__ = ["AsyncClient", "Client"]

#: How long to look for the orchestrator before giving up.
CONNECT_SECONDS = 10.0
#: How long a call may go on over a connection that stands on a root that was removed since; then it is taken up again.
REMOVED_ROOT_SECONDS = 5.0
#: Between attempts to take up a broken call again, at first and at the most.
RETRY_SECONDS = (0.1, 2.0)
#: What gRPC itself says of a call whose connection broke, or whose server stopped.
BROKEN = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.INTERNAL)

T = TypeVar("T")

_CHANNEL_OPTIONS = [
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    # A call may wait for hours; a connection that died in silence is found within half a minute.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
]


class AsyncClient:
    """Runs commands on agents, asks about them, and approves them. An async context manager.

    Without a profile it uses the user's own (see `tachikoma.client.profile`). All methods raise a class of
    `tachikoma.errors`: `PermissionDenied`, `AgentOffline`, `Unavailable`, and so on.
    """

    def __init__(
        self,
        profile: Profile | None = None,
        *,
        patience: timedelta = timedelta(0),
        reconnect: timedelta = timedelta(minutes=5),
    ) -> None:
        """Prepare a client.

        Args:
            profile: where the orchestrator is and who one is.
            patience: how long a call that meets a rate limit or a full queue waits and is repeated, by the delay that
                the refusal names; not at all by default.
            reconnect: how long a call whose connection broke is tried to be taken up again, streams from the chunk
                after the last one that came. Nothing is run twice by that: requests carry their id.

        Raises:
            ConfigurationError: there is no profile, or its identity cannot be read.
            Unauthenticated: the identity is expired or not trusted by its own bundle.
        """
        self.profile = profile or Profile.load()
        self._patience = patience.total_seconds()
        self._reconnect = reconnect.total_seconds()
        self._identity = open_identity(self.profile.identity)
        svid = self._identity.current()
        try:
            svid.verify()
            self._trusted(svid)
        except InvalidIdentity as error:
            self._identity.close()
            # Said here, since the handshake would only say that it failed.
            raise Unauthenticated(f"your identity in {self._identity.place} cannot be used: {error}") from None
        self.spiffe_id = str(svid.spiffe_id)
        self._channel: grpc.aio.Channel | None = None
        #: What the channel was made with: its credentials never change.
        self._used = svid
        #: Channels of earlier identities, each closed by its task when its last call has ended.
        self._retired: dict[asyncio.Task[None], grpc.aio.Channel] = {}

    async def __aenter__(self) -> Self:
        self._stub()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection; calls under way end as cancelled."""
        channels = list(self._retired.values())
        for task in list(self._retired):
            task.cancel()
        if self._channel is not None:
            channels.append(self._channel)
            self._channel = None
        for channel in channels:
            await channel.close()
        self._identity.close()

    def _trusted(self, svid: Svid) -> TrustBundle:
        """The bundle that the orchestrator's certificate must be of; no other trust domain can stand in for it."""
        return svid.bundles.of(self.profile.trust_domain or svid.spiffe_id.trust_domain)

    def _stub(self) -> RemoteExecutionStub:
        svid = self._identity.current()
        if svid.not_after <= datetime.now(UTC):
            # Said here too, since without it each handshake would fail, and be tried again for a while.
            raise Unauthenticated(
                f"your identity in {self._identity.place} ended at {svid.not_after:%Y-%m-%d %H:%M:%S} UTC "
                "and was not renewed"
            )
        if self._channel is None or svid is not self._used:
            try:
                trusted = self._trusted(svid)
            except InvalidIdentity as error:
                raise Unauthenticated(f"the orchestrator is not trusted any more: {error}") from None
            if self._channel is not None:
                self._retire(self._channel, trusted)
            credentials = grpc.ssl_channel_credentials(trusted.pem, svid.key_pem, svid.certificate_pem)
            options = [*_CHANNEL_OPTIONS, ("grpc.ssl_target_name_override", self.profile.server_name)]
            self._channel = grpc.aio.secure_channel(self.profile.address, credentials, options)
            self._used = svid
        return RemoteExecutionStub(self._channel)

    def _retire(self, channel: grpc.aio.Channel, trusted: TrustBundle) -> None:
        """Let the calls of a channel go on to their end, as long as its certificates are good."""
        seconds = max((self._used.not_after - datetime.now(UTC)).total_seconds(), REMOVED_ROOT_SECONDS)
        if not set(self._trusted(self._used).roots) <= set(trusted.roots):
            seconds = REMOVED_ROOT_SECONDS
        task = asyncio.get_running_loop().create_task(channel.close(seconds))
        self._retired[task] = channel
        task.add_done_callback(self._retired.pop)

    async def _ready(self) -> bool:
        """Wait, bounded, until there is a connection, so that a restart of the server goes unnoticed."""
        self._stub()
        assert self._channel is not None
        if self._channel.get_state(try_to_connect=True) is grpc.ChannelConnectivity.READY:
            return True
        with suppress(TimeoutError):
            await asyncio.wait_for(self._channel.channel_ready(), CONNECT_SECONDS)
            return True
        return False

    def _translate(self, error: grpc.aio.AioRpcError) -> TachikomaError:
        trailing = [(str(key), value) for key, value in error.trailing_metadata() or ()]
        translated = wire.error_from_rpc(error.code(), error.details() or "", trailing)
        if type(translated) is Unavailable and not translated.metadata:
            return Unavailable(
                f"cannot reach the orchestrator at {self.profile.address}: {error.details()}; "
                "is it running, and does it trust your certificate?",
                retry_after_seconds=translated.retry_after_seconds,
            )
        return translated

    async def _call(self, method: str, message: Any, *, repeat: bool = True) -> Any:
        deadline = time.monotonic() + self._patience
        breaks = _Breaks(self._reconnect if repeat else 0)
        while True:
            breaks.connected(await self._ready())
            try:
                return await getattr(self._stub(), method)(message)
            except grpc.aio.AioRpcError as error:
                if not await breaks.wait(error):
                    await self._wait_or_raise(self._translate(error), deadline)

    @staticmethod
    async def _wait_or_raise(error: TachikomaError, deadline: float) -> None:
        """Wait as long as a refusal for a limit says, if there is so much time; else raise it."""
        delay = error.retry_after_seconds or 1
        if not isinstance(error, ResourceExhausted) or time.monotonic() + delay > deadline:
            raise error
        await asyncio.sleep(delay)

    async def execute(self, request: ExecRequest) -> ExecResponse:
        """Run a command and wait for its end. A failed command is no error here; see `ExecResponse.check`."""
        return wire.response_from_pb(await self._call("Execute", wire.request_to_pb(request)))

    async def execute_stream(self, request: ExecRequest) -> AsyncIterator[ExecOutput]:
        """Run a command and give its output while it runs: first a status, then chunks, at last the result."""
        async for output in self._stream("ExecuteStream", wire.request_to_pb(request)):
            yield output

    async def submit(self, request: ExecRequest) -> ExecStatus:
        """Have a command accepted, and do not wait for it. Safe to repeat with the same request."""
        return wire.status_from_pb(await self._call("Submit", wire.request_to_pb(request)))

    async def attach(self, exec_id: str, *, after_seq: int = 0, follow: bool = True) -> AsyncIterator[ExecOutput]:
        """Output of an execution after a chunk number; with `follow` until its end, also after it."""
        message = pb.AttachRequest(id=exec_id, after_seq=after_seq, no_follow=not follow)
        async for output in self._stream("Attach", message, after_seq=after_seq):
            yield output

    async def cancel(self, exec_id: str) -> CancelResponse:
        """Ask for the end of an execution; can be repeated."""
        return wire.cancel_from_pb(await self._call("Cancel", pb.CancelRequest(id=exec_id)))

    async def status(self, exec_id: str) -> ExecStatus:
        """Where an execution stands."""
        return wire.status_from_pb((await self._call("Status", pb.StatusRequest(id=exec_id))).status)

    async def list(
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
        """A page of executions, newest first, and the token of the next page (empty at the end).

        Args:
            agent_id: only those of this agent.
            include_ended: also those that have ended.
            page_size: at most so many.
            page_token: where the page before ended.
            requested_by: only those of this SPIFFE ID.
            states: only those in one of them.
            agents: only those of agents that this means: an id pattern, or labels as `role=web,site=*`.
            since, until: only those accepted at or after the one, and before the other.
        """
        message = pb.ListRequest(
            agent_id=agent_id, include_ended=include_ended, page_size=page_size, page_token=page_token,
            requested_by=requested_by, states=wire.states_to_pb(states), agents=agents,
            since=wire.timestamp_to_pb(since), until=wire.timestamp_to_pb(until),
        )  # fmt: skip
        answer = await self._call("List", message)
        return tuple(wire.status_from_pb(item) for item in answer.executions), answer.next_page_token

    async def approvals(self) -> tuple[ExecStatus, ...]:
        """What waits for an approval that this client may give, or asked for; the nearest deadline first."""
        answer = await self._call("ListApprovals", pb.ListApprovalsRequest())
        return tuple(wire.status_from_pb(item) for item in answer.executions)

    async def approval(self, exec_id: str) -> Approval:
        """All that would run of an execution that this client may approve."""
        return wire.approval_from_pb(await self._call("GetApproval", pb.GetApprovalRequest(id=exec_id)))

    async def approve(self, exec_id: str, digest: str, reason: str) -> ExecStatus:
        """Let an execution run.

        Args:
            exec_id: the execution.
            digest: `Approval.digest` of what was looked at; something else is not approved with it.
            reason: why; it goes on the record.
        """
        try:
            raw = bytes.fromhex(digest)
        except ValueError:
            raise InvalidRequest(f"{digest[:80]!r} is no digest; `Approval.digest` has it") from None
        message = pb.ApproveRequest(id=exec_id, digest=raw, reason=reason)
        return wire.status_from_pb(await self._call("Approve", message, repeat=False))

    async def reject(self, exec_id: str, reason: str) -> ExecStatus:
        """End an execution that waits for its approval; the reason goes on the record and to the requester."""
        message = pb.RejectRequest(id=exec_id, reason=reason)
        return wire.status_from_pb(await self._call("Reject", message, repeat=False))

    async def agents(self) -> tuple[AgentInfo, ...]:
        """The known agents, by id."""
        answer = await self._call("ListAgents", pb.ListAgentsRequest())
        return tuple(wire.agent_from_pb(item) for item in answer.agents)

    async def drain_agent(self, agent_id: str, reason: str) -> AgentInfo:
        """Let an agent take no new executions; what it has goes on. For operators; the reason goes on the record."""
        return wire.agent_from_pb(await self._call("DrainAgent", pb.DrainAgentRequest(id=agent_id, reason=reason)))

    async def resume_agent(self, agent_id: str) -> AgentInfo:
        """Let an agent take executions again. For operators."""
        return wire.agent_from_pb(await self._call("ResumeAgent", pb.ResumeAgentRequest(id=agent_id)))

    async def enroll_agent(self, agent_id: str, ttl: timedelta = timedelta(minutes=15)) -> Enrolment:
        """A token with which one host may join once as an agent. For operators.

        Args:
            agent_id: the agent. A token it was given before is good for nothing any more.
            ttl: how long the token lasts, at most a day.
        """
        answer = await self._call("EnrollAgent", wire.enroll_to_pb(agent_id, ttl), repeat=False)
        return wire.enrolment_from_pb(agent_id, answer)

    async def revoke_agent(self, agent_id: str, reason: str) -> Revocation:
        """Cut an agent off at once, until it joins again. For operators; can be repeated."""
        message = pb.RevokeAgentRequest(id=agent_id, reason=reason)
        return wire.revocation_from_pb(await self._call("RevokeAgent", message))

    async def policy_status(self) -> PolicyStatus:
        """What policy the orchestrator decides by, and what is wrong with a newer one."""
        return wire.policy_status_from_pb(await self._call("GetPolicyStatus", pb.GetPolicyStatusRequest()))

    async def audit(self, *, after: str = "", limit: int = 0, exec_id: str = "") -> tuple[ExecAuditLog, ...]:
        """Events of the audit trail, oldest first: the latest ones, or those after a cursor."""
        message = pb.ListAuditEventsRequest(after=after, limit=limit, id=exec_id)
        answer = await self._call("ListAuditEvents", message)
        return tuple(wire.audit_from_pb(item) for item in answer.events)

    async def schedules(self) -> tuple[tuple[ScheduleStatus, ...], str]:
        """All schedules and how they stand; and why their file as it is now is not in force, or nothing. For operators,
        as all about schedules."""
        answer = await self._call("ListSchedules", pb.ListSchedulesRequest())
        return tuple(wire.schedule_from_pb(item) for item in answer.schedules), answer.error

    async def next_due_times(self, name: str, *, limit: int = 0) -> tuple[datetime, ...]:
        """When a schedule is due next; none where it is switched off."""
        answer = await self._call("NextDueTimes", pb.NextDueTimesRequest(name=name, limit=limit))
        return tuple(item.ToDatetime(tzinfo=UTC) for item in answer.due)

    async def pause_schedule(self, name: str, reason: str) -> ScheduleStatus:
        """Let a schedule ask for nothing until it is resumed; the reason goes on the record."""
        message = pb.PauseScheduleRequest(name=name, reason=reason)
        return wire.schedule_from_pb(await self._call("PauseSchedule", message))

    async def resume_schedule(self, name: str) -> ScheduleStatus:
        """Let a schedule go on. What was due meanwhile stays skipped."""
        return wire.schedule_from_pb(await self._call("ResumeSchedule", pb.ResumeScheduleRequest(name=name)))

    async def run_schedule(self, name: str) -> ScheduledRun:
        """Ask for a run of a schedule now, paused or not."""
        message = pb.RunScheduleRequest(name=name)
        return wire.scheduled_run_from_pb(await self._call("RunSchedule", message, repeat=False))

    async def scheduled_runs(self, name: str, *, limit: int = 0) -> tuple[ScheduledRun, ...]:
        """What became of the due times of a schedule, the latest first."""
        answer = await self._call("ListScheduledRuns", pb.ListScheduledRunsRequest(name=name, limit=limit))
        return tuple(wire.scheduled_run_from_pb(item) for item in answer.runs)

    async def _stream(self, method: str, message: Any, *, after_seq: int = 0) -> AsyncIterator[ExecOutput]:
        """Messages of a stream, taken up again where its connection broke."""
        deadline = time.monotonic() + self._patience
        breaks = _Breaks(self._reconnect)
        check = OutputCheck(from_start=not after_seq)
        status: ExecStatus | None = None
        while True:
            breaks.connected(await self._ready())
            call = getattr(self._stub(), method)(message)
            try:
                async for item in call:
                    breaks.over()
                    output = wire.output_from_pb(item)
                    if output.status is not None:
                        parked = status is not None and status.state is ExecState.PENDING_APPROVAL
                        repeated = status is not None and not (parked and output.status.state is not status.state)
                        status = output.status
                        if repeated:
                            # A stream that was taken up again begins as the first did.
                            continue
                    check.add(output)
                    if output.result is not None:
                        if missing := check.missing(output.result):
                            gap = ExecOutput(id=output.id, kind=OutputKind.GAP, seq=after_seq, missing_bytes=missing)
                            check.add(gap)
                            yield gap
                        if stream := check.altered(output.result):
                            raise OutputAltered(
                                f"what was read of the {stream} of {output.id} is not what its agent signed for; "
                                f"it ended {output.result.state} with exit code {output.result.exit_code}"
                            )
                    after_seq = max(after_seq, output.seq)
                    yield output
                return
            except grpc.aio.AioRpcError as error:
                translated = self._translate(error)
                if not await breaks.wait(error, taken=status is not None and type(translated) is Unavailable):
                    if status is not None:
                        raise translated from error
                    await self._wait_or_raise(translated, deadline)
            finally:
                call.cancel()
            if status is not None:
                # It was accepted; from here on it is followed like any other.
                no_follow = method == "Attach" and message.no_follow
                method, message = "Attach", pb.AttachRequest(id=status.id, after_seq=after_seq, no_follow=no_follow)


class _Breaks:
    """Whether and when a call whose connection broke is made again."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        #: None while it goes well; whoever never reached the server is not kept waiting for it.
        self._until: float | None = None
        self._reached = False
        self._delay = RETRY_SECONDS[0]

    def connected(self, connected: bool) -> None:
        """There is a connection for the next attempt, or not."""
        self._reached = self._reached or connected

    def over(self) -> None:
        """It goes well again."""
        self._until, self._delay = None, RETRY_SECONDS[0]

    async def wait(self, error: grpc.aio.AioRpcError, *, taken: bool = False) -> bool:
        """Wait for the next attempt. False when there is to be none.

        Args:
            error: how the last one ended.
            taken: whether it is known to be worth another, whatever the error is.
        """
        told = any(key == wire.STATUS_DETAILS for key, _ in error.trailing_metadata() or ())
        if not taken and (told or error.code() not in BROKEN or not self._reached):
            return False
        now = time.monotonic()
        if self._until is None:
            self._until = now + self._seconds
        if now + self._delay > self._until:
            return False
        await asyncio.sleep(self._delay)
        self._delay = min(2 * self._delay, RETRY_SECONDS[1])
        return True


class Client:
    """`AsyncClient` for programs without an event loop. A context manager; usable from several threads."""

    def __init__(
        self,
        profile: Profile | None = None,
        *,
        patience: timedelta = timedelta(0),
        reconnect: timedelta = timedelta(minutes=5),
    ) -> None:
        """Prepare a client; arguments and errors as with `AsyncClient`."""
        self._async = AsyncClient(profile, patience=patience, reconnect=reconnect)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="tachikoma-client", daemon=True)
        self._thread.start()

    @classmethod
    def from_profile(cls, path: Path) -> Client:
        """A client with the profile in a file."""
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
        """Who the orchestrator takes this client for."""
        return self._async.spiffe_id

    def close(self) -> None:
        """Close the connection. Further calls fail."""
        if self._loop.is_closed():
            return
        self._run(self._async.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        except BaseException:
            # For instance Ctrl-C in the waiting thread: do not leave the call behind.
            future.cancel()
            raise

    def _iterate(self, source: Callable[[], AsyncIterator[ExecOutput]]) -> Iterator[ExecOutput]:
        iterator = source()

        async def step() -> ExecOutput | None:
            return await anext(iterator, None)

        try:
            while (output := self._run(step())) is not None:
                yield output
        finally:
            close: Callable[[], Awaitable[None]] | None = getattr(iterator, "aclose", None)
            if close is not None and not self._loop.is_closed():

                async def finish() -> None:
                    await close()

                self._run(finish())

    def execute(self, request: ExecRequest) -> ExecResponse:
        """Run a command and wait for its end. A failed command is no error here; see `ExecResponse.check`."""
        return self._run(self._async.execute(request))

    def execute_stream(self, request: ExecRequest) -> Iterator[ExecOutput]:
        """Run a command and give its output while it runs: first a status, then chunks, at last the result."""
        return self._iterate(lambda: self._async.execute_stream(request))

    def submit(self, request: ExecRequest) -> ExecStatus:
        """Have a command accepted, and do not wait for it. Safe to repeat with the same request."""
        return self._run(self._async.submit(request))

    def attach(self, exec_id: str, *, after_seq: int = 0, follow: bool = True) -> Iterator[ExecOutput]:
        """Output of an execution after a chunk number; with `follow` until its end, also after it."""
        return self._iterate(lambda: self._async.attach(exec_id, after_seq=after_seq, follow=follow))

    def cancel(self, exec_id: str) -> CancelResponse:
        """Ask for the end of an execution; can be repeated."""
        return self._run(self._async.cancel(exec_id))

    def status(self, exec_id: str) -> ExecStatus:
        """Where an execution stands."""
        return self._run(self._async.status(exec_id))

    def list(
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
        """A page of executions, newest first, and the token of the next page; arguments as with `AsyncClient.list`."""
        return self._run(
            self._async.list(
                agent_id, include_ended=include_ended, page_size=page_size, page_token=page_token,
                requested_by=requested_by, states=states, agents=agents, since=since, until=until,
            )
        )  # fmt: skip

    def approvals(self) -> tuple[ExecStatus, ...]:
        """What waits for an approval that this client may give, or asked for; the nearest deadline first."""
        return self._run(self._async.approvals())

    def approval(self, exec_id: str) -> Approval:
        """All that would run of an execution that this client may approve."""
        return self._run(self._async.approval(exec_id))

    def approve(self, exec_id: str, digest: str, reason: str) -> ExecStatus:
        """Let an execution run; arguments as with `AsyncClient.approve`."""
        return self._run(self._async.approve(exec_id, digest, reason))

    def reject(self, exec_id: str, reason: str) -> ExecStatus:
        """End an execution that waits for its approval; the reason goes on the record and to the requester."""
        return self._run(self._async.reject(exec_id, reason))

    def agents(self) -> tuple[AgentInfo, ...]:
        """The known agents, by id."""
        return self._run(self._async.agents())

    def drain_agent(self, agent_id: str, reason: str) -> AgentInfo:
        """Let an agent take no new executions; what it has goes on. For operators; the reason goes on the record."""
        return self._run(self._async.drain_agent(agent_id, reason))

    def resume_agent(self, agent_id: str) -> AgentInfo:
        """Let an agent take executions again. For operators."""
        return self._run(self._async.resume_agent(agent_id))

    def enroll_agent(self, agent_id: str, ttl: timedelta = timedelta(minutes=15)) -> Enrolment:
        """A token with which one host may join once as an agent; arguments as with `AsyncClient.enroll_agent`."""
        return self._run(self._async.enroll_agent(agent_id, ttl))

    def revoke_agent(self, agent_id: str, reason: str) -> Revocation:
        """Cut an agent off at once, until it joins again. For operators; can be repeated."""
        return self._run(self._async.revoke_agent(agent_id, reason))

    def policy_status(self) -> PolicyStatus:
        """What policy the orchestrator decides by, and what is wrong with a newer one."""
        return self._run(self._async.policy_status())

    def audit(self, *, after: str = "", limit: int = 0, exec_id: str = "") -> tuple[ExecAuditLog, ...]:
        """Events of the audit trail, oldest first: the latest ones, or those after a cursor."""
        return self._run(self._async.audit(after=after, limit=limit, exec_id=exec_id))

    def schedules(self) -> tuple[tuple[ScheduleStatus, ...], str]:
        """All schedules and how they stand; and why their file as it is now is not in force, or nothing. For operators,
        as all about schedules."""
        return self._run(self._async.schedules())

    def next_due_times(self, name: str, *, limit: int = 0) -> tuple[datetime, ...]:
        """When a schedule is due next; none where it is switched off."""
        return self._run(self._async.next_due_times(name, limit=limit))

    def pause_schedule(self, name: str, reason: str) -> ScheduleStatus:
        """Let a schedule ask for nothing until it is resumed; the reason goes on the record."""
        return self._run(self._async.pause_schedule(name, reason))

    def resume_schedule(self, name: str) -> ScheduleStatus:
        """Let a schedule go on. What was due meanwhile stays skipped."""
        return self._run(self._async.resume_schedule(name))

    def run_schedule(self, name: str) -> ScheduledRun:
        """Ask for a run of a schedule now, paused or not."""
        return self._run(self._async.run_schedule(name))

    def scheduled_runs(self, name: str, *, limit: int = 0) -> tuple[ScheduledRun, ...]:
        """What became of the due times of a schedule, the latest first."""
        return self._run(self._async.scheduled_runs(name, limit=limit))
