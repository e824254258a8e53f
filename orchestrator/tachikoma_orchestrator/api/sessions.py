"""The RPC of interactive executions: a caller attaches, and messages go both ways until one side leaves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine
from contextlib import AbstractAsyncContextManager, aclosing, suppress
from typing import TYPE_CHECKING, Any, cast

import structlog
from redis.exceptions import RedisError

from tachikoma.client import wire
from tachikoma.config.tasks import cancel_all, supervised
from tachikoma.errors import FailedPrecondition, InvalidRequest, NotFound, PermissionDenied, RecordAltered
from tachikoma.exec.v1 import remote_execution_pb2 as pb
from tachikoma.sessions.frames import SignalName
from tachikoma.vocabulary.audit import AuditCode
from tachikoma.vocabulary.messages import OutputKind
from tachikoma.vocabulary.requests import ExecRequest, WindowSize
from tachikoma.vocabulary.results import ExecOutput, InputAccepted
from tachikoma.vocabulary.states import ExecState
from tachikoma_orchestrator.api.executions import ExecutionCalls
from tachikoma_orchestrator.api.guard import Context, current_peer
from tachikoma_orchestrator.api.observers import ObserverCalls
from tachikoma_orchestrator.caller import Peer
from tachikoma_orchestrator.executions.record import Record
from tachikoma_orchestrator.executions.waiters import AwaitedOrder
from tachikoma_orchestrator.recordings.captions import Captions
from tachikoma_orchestrator.recordings.room import unrecorded
from tachikoma_orchestrator.sessions.attachment import Attachment, ExecutionEnded
from tachikoma_orchestrator.sessions.channel import InputChannel
from tachikoma_orchestrator.sessions.handshake import SessionAddress
from tachikoma_orchestrator.sessions.outbox import Outbox
from tachikoma_orchestrator.sessions.restoration import restored_screen
from tachikoma_orchestrator.sessions.rights import recorded_request
from tachikoma_orchestrator.sessions.sizes import SizeHistory

if TYPE_CHECKING:
    import grpc.aio

__all__ = ["SessionCalls"]

log = structlog.get_logger(__name__)

#: Largest number of bytes of input in one message of a caller.
MAX_INPUT_BYTES = 1024 * 1024
#: Largest number of rows, columns or pixels.
MAX_CELLS = 0xFFFF
#: Seconds between two looks at the rights of a caller.
RIGHTS_SECONDS = 2.0
#: Longest time for the last messages about a caller that leaves.
LEAVE_SECONDS = 3.0


class SessionCalls(ExecutionCalls, ObserverCalls):
    """`ExecuteInteractive`."""

    async def ExecuteInteractive(  # noqa: N802
        self, requests: AsyncIterator[pb.ExecInput], context: Context
    ) -> AsyncIterator[pb.ExecOutput]:
        outbox = Outbox()
        work = _Work(self._serve(requests, outbox))
        # When the connection breaks, gRPC leaves this generator alone until it is collected. The type of the library's
        # stubs is a class that no function is of.
        context.add_done_callback(cast("grpc.aio._DoneCallback[Any, Any]", work.stop))
        try:
            async for message in outbox.messages():
                yield wire.output_to_pb(message)
        finally:
            await work.stopped()

    async def _serve(self, requests: AsyncIterator[pb.ExecInput], outbox: Outbox) -> None:
        """Serve one attached caller; its end, and an error if there is one, go to the outbox."""
        error: Exception | None = None
        try:
            await self._attach(requests, outbox)
        except Exception as failure:
            error = failure
        outbox.finish(error)

    async def _attach(self, requests: AsyncIterator[pb.ExecInput], outbox: Outbox) -> None:
        first = await anext(requests)
        wanted, after_seq, window = None, 0, None
        match first.WhichOneof("event"):
            case "request":
                wanted = await self._request(first.request)
                agent, exec_id = wanted.agent_id, wanted.id
            case "attach":
                exec_id, after_seq = first.attach.id, first.attach.after_seq
                window = _window(first.attach.screen) if first.attach.HasField("screen") else None
                if first.attach.observe:
                    await self._observe(first.attach, window, requests, outbox)
                    return
                agent = (await self._record(exec_id)).agent
            case _:
                raise InvalidRequest("the first message is `request` or `attach`")
        follower = self._follower(agent, exec_id, after_seq)
        attached = _Attached(self, agent, exec_id, outbox)
        with self._parts.completions.expect(exec_id) as end:
            async with follower.listen(), attached.listen():
                opened = wanted is not None and await self._parts.admitter.admit(wanted, current_peer(), session=True)
                record, request = await self._session(exec_id, wanted)
                self._parts.completions.note_order(exec_id, AwaitedOrder(agent, record.order_sha256))
                sizes = SizeHistory.parse(record.sizes)
                screen = None
                if window is not None and request.tty and not after_seq and not record.state.terminal:
                    screen = restored_screen(exec_id, follower, sizes, window)
                output = self._follow(follower, record, end, screen)
                if not record.state.terminal:
                    # A short command ends within milliseconds, perhaps before its caller is recorded.
                    with suppress(ExecutionEnded):
                        await attached.run(record, request, requests, output, sizes, opened=opened)
                        return
                    record = await self._existing(exec_id)
                await self._resolve_if_terminal(record)
                async for message in output:
                    await outbox.put(message)

    async def _session(self, exec_id: str, wanted: ExecRequest | None) -> tuple[Record, ExecRequest]:
        """Return the record of an interactive execution of the caller, who may be attached to it now, and its request.

        Args:
            exec_id: the execution.
            wanted: the caller's request, which policy has just allowed; None for a caller that names the execution.
                The ledger has the request with secrets masked, of which policy may decide otherwise.

        Raises:
            NotFound: the caller has no such execution. Operators see and cancel those of others; they do not type.
            FailedPrecondition: the execution is not interactive.
            PermissionDenied: policy does not allow it any more.
        """
        record, peer = await (self._record if wanted is None else self._existing)(exec_id), current_peer()
        if record.requested_by != str(peer):
            raise NotFound(f"there is no execution {exec_id[:80]!r} of yours")
        request = recorded_request(record) if wanted is None else wanted.model_copy(update={"requested_by": str(peer)})
        if not request.interactive:
            raise FailedPrecondition(f"{exec_id} is not interactive; use Attach to follow its output")
        if (
            wanted is None
            and not record.state.terminal
            and (why := await self._lost_right(request, record.policy, peer))
        ):
            raise PermissionDenied(f"not allowed: {why}", metadata={"rule": "attach"})
        return record, request

    async def _lost_right(self, request: ExecRequest, granted_by: str, peer: Peer) -> str:
        """Return why policy does not allow a caller to be attached now, in words; empty if it does."""
        decision = await self._parts.admitter.decide(request, peer.address, granted_by=granted_by)
        return "" if decision.allowed else decision.reason


class _Work:
    """The task of one attached caller. It is cancelled only once, so it can still report that its caller is gone."""

    def __init__(self, work: Coroutine[Any, Any, None]) -> None:
        self._task = asyncio.get_running_loop().create_task(work, name="session")
        self._stopping = False

    def stop(self, _: object = None) -> None:
        """Ask the task to stop."""
        if not self._stopping:
            self._stopping = True
            self._task.cancel()

    async def stopped(self) -> None:
        """Ask the task to stop, and wait until it has."""
        self.stop()
        await asyncio.wait([self._task], timeout=LEAVE_SECONDS + 1)
        await cancel_all([self._task])


class _Attached:
    """One attached caller."""

    def __init__(self, calls: SessionCalls, agent: str, exec_id: str, outbox: Outbox) -> None:
        self._calls = calls
        self._parts = parts = calls._parts
        self._exec_id = exec_id
        self._peer = peer = current_peer()
        self._outbox = outbox
        self._attachment = Attachment(parts.redis, agent, exec_id, peer)
        self._captions: Captions | None = None
        self._channel = InputChannel(
            parts.redis,
            parts.output_subscriber,
            parts.identity,
            parts.registry.revocations,
            SessionAddress(agent, exec_id, str(peer), peer.address),
            next_epoch=self._attachment.next_epoch,
            state=self._state,
            on_accepted=self._on_accepted,
        )
        #: Set when all output was forwarded.
        self._ended = asyncio.Event()
        #: Set once the agent takes input.
        self._takes_input = asyncio.Event()
        #: True once the caller reports its progress in writing output by itself.
        self._reports_output = False
        #: The observers that the caller knows of; None before the first status.
        self._observers: tuple[str, ...] | None = None
        #: Sizes of the terminal until now.
        self._sizes = SizeHistory()
        #: Why the caller is not attached any more.
        self._reason = "the connection ended"

    def listen(self) -> AbstractAsyncContextManager[None]:
        """Return the subscription to the agent's notices; enter it before the execution can start."""
        return self._channel.listen()

    async def run(
        self,
        record: Record,
        request: ExecRequest,
        requests: AsyncIterator[pb.ExecInput],
        output: AsyncGenerator[ExecOutput],
        sizes: SizeHistory,
        *,
        opened: bool,
    ) -> None:
        """Serve the caller until the execution ends, the caller leaves, or it loses its right.

        Raises ExecutionEnded if the execution ended before the caller was recorded.
        """
        self._sizes = sizes
        await self._parts.recordings.require(record)
        if opened and request.terminal is not None:
            sizes.add(0, request.terminal.size)
        await self._attachment.begin(opened=opened, sizes=sizes.encode())
        try:
            await self._begin_captions(record, request, opened=opened)
            if record.state is ExecState.STARTED:
                self._channel.renew()
            async with supervised(
                self._channel.run(), self._read(requests, record), self._watch_rights(request, record.policy),
                self._report_start(record), self._report_observers(record), self._acknowledge(),
                self._watch_recording(), self._attachment.keep_renewed(), self._forward(output),
            ):  # fmt: skip
                # Nothing else is awaited here, so that the failure of a part always ends the wait.
                await self._ended.wait()
        except Exception as error:
            self._reason = str(error)[:300]
            raise
        finally:
            await self._leave()

    async def _leave(self) -> None:
        """Report that the caller is gone, to the agent and in the audit trail."""
        with suppress(RedisError, OSError, TimeoutError):
            async with asyncio.timeout(LEAVE_SECONDS):
                await self._channel.detach()
                await self._attachment.end(self._reason)
        if self._captions is not None:
            with suppress(FailedPrecondition, TimeoutError):
                async with asyncio.timeout(LEAVE_SECONDS):
                    if not self._ended.is_set():
                        await self._captions.mark(self._outbox.sent_bytes, f"detached: {self._peer}")
            self._captions.close()

    async def _begin_captions(self, record: Record, request: ExecRequest, *, opened: bool) -> None:
        """Begin the caller's part of the recording. Raises FailedPrecondition if it must be recorded and cannot be."""
        self._captions = captions = self._parts.recordings.captions(record)
        if opened and request.tty:
            await captions.resize(0, self._sizes.first)
        await captions.mark(self._outbox.sent_bytes, f"attached: {self._peer}")

    async def _state(self) -> tuple[ExecState, str]:
        record = await self._parts.ledger.record(self._exec_id)
        if record is None:
            return ExecState.LOST, ""
        return record.state, record.order_sha256

    def _on_accepted(self, progress: InputAccepted) -> None:
        self._takes_input.set()
        self._outbox.accept(self._exec_id, progress)

    # --- background parts ---------------------------------------------------------------------------------------------

    async def _forward(self, output: AsyncGenerator[ExecOutput]) -> None:
        """Forward the output, until the result."""
        async with aclosing(output) as messages:
            async for message in messages:
                await self._outbox.put(message)
        self._ended.set()

    async def _watch_rights(self, request: ExecRequest, granted_by: str) -> None:
        """Decide again whenever policy changes.

        Raises:
            PermissionDenied: policy does not allow the caller to be attached any more.
        """
        decided = self._parts.policies.current
        while True:
            await asyncio.sleep(RIGHTS_SECONDS)
            if (current := self._parts.policies.current) is decided:
                continue
            if why := await self._calls._lost_right(request, granted_by, self._peer):
                raise PermissionDenied(f"not allowed any more: {why}", metadata={"rule": "attach"})
            decided = current

    async def _watch_recording(self) -> None:
        """Wait until the recording fails, if the execution must be recorded.

        Raises:
            FailedPrecondition: it failed; the execution is ended.
        """
        with self._parts.recordings.failure(self._exec_id) as failure:
            raise unrecorded(self._exec_id, await failure)

    async def _report_start(self, before: Record) -> None:
        """Send the status once the command takes input."""
        await self._takes_input.wait()
        if before.state is ExecState.STARTED:
            return
        record = await self._parts.ledger.record(self._exec_id)
        if record is not None and not record.state.terminal:
            await self._report_status(record)

    async def _report_observers(self, record: Record) -> None:
        """Send the status whenever the observers change, so that the caller knows its observers."""
        if self._observers is None:
            self._observers = record.status().observers
        while True:
            await asyncio.sleep(RIGHTS_SECONDS)
            with suppress(RedisError, OSError, RecordAltered):
                latest = await self._parts.ledger.record(self._exec_id)
                if latest is None or latest.state.terminal or latest.status().observers == self._observers:
                    continue
                await self._report_status(latest)

    async def _report_status(self, record: Record) -> None:
        status = await self._parts.evidence.status(record)
        self._observers = status.observers
        await self._outbox.put(ExecOutput(id=record.exec_id, kind=OutputKind.STATUS, status=status))

    async def _acknowledge(self) -> None:
        """Report output as written when it is sent, for callers that do not report it by themselves."""
        while True:
            await self._outbox.sent_more.wait()
            self._outbox.sent_more.clear()
            if not self._reports_output:
                await self._channel.written(self._outbox.sent_bytes)

    async def _read(self, requests: AsyncIterator[pb.ExecInput], record: Record) -> None:
        """Take the messages of the caller.

        Raises:
            InvalidRequest: a message is wrong.
        """
        async for message in requests:
            await self._take(message, record)

    async def _take(self, message: pb.ExecInput, record: Record) -> None:
        match message.WhichOneof("event"):
            case "data":
                await self._write(message.data)
            case "end":
                await self._channel.end()
            case "resize":
                await self._resize(message.resize)
            case "signal":
                await self._signal(message.signal)
            case "written":
                self._reports_output = True
                await self._channel.written(message.written.bytes)
            case "detach":
                self._reason = "the caller left it"
                self._outbox.finish()
            case "close":
                await self._close(record)
            case _:
                raise InvalidRequest("`request` and `attach` are for the first message of a call")

    async def _write(self, message: pb.InputData) -> None:
        if len(message.data) > MAX_INPUT_BYTES:
            raise InvalidRequest(f"a message has at most {MAX_INPUT_BYTES} bytes of input")
        place, sent = await self._channel.write(message.data, message.offset if message.HasField("offset") else None)
        if self._captions is not None:
            await self._captions.typed(self._outbox.sent_bytes, place, sent)

    async def _resize(self, message: pb.Terminal) -> None:
        size = _window(message)
        await self._channel.resize(size)
        self._sizes.add(self._outbox.sent_bytes, size)
        if self._captions is not None:
            await self._captions.resize(self._outbox.sent_bytes, size)
        text = f"{message.columns} columns, {message.rows} rows"
        await self._attachment.note(AuditCode.SESSION_RESIZED, text, sizes=self._sizes.encode())

    async def _signal(self, text: str) -> None:
        try:
            name = SignalName(text)
        except ValueError:
            raise InvalidRequest(f"{text[:20]!r} is not one of the signals {', '.join(SignalName)}") from None
        await self._attachment.note(AuditCode.SESSION_SIGNALLED, name)
        await self._channel.signal(name)

    async def _close(self, record: Record) -> None:
        await self._attachment.note(AuditCode.SESSION_CLOSED, "asked to end it")
        if not await self._channel.close():
            await self._calls._cancel(record, self._peer)


def _window(message: pb.Terminal) -> WindowSize:
    """Return the size in a message.

    Raises:
        InvalidRequest: the size is too large.
    """
    cells = (message.rows, message.columns, message.x_pixels, message.y_pixels)
    if max(cells) > MAX_CELLS:
        raise InvalidRequest(f"a size has at most {MAX_CELLS} rows, columns and pixels")
    return WindowSize(*cells)
