"""Observers of interactive executions: callers that read the output of a session, and can send nothing to it.

An observer has no way of input at all: no channel to the agent is made for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, suppress

from redis.exceptions import RedisError

from tachikoma.config.error_reporting import concerns
from tachikoma.config.tasks import supervised
from tachikoma.errors import FailedPrecondition, InvalidRequest, NotFound, PermissionDenied, RecordAltered
from tachikoma.exec.v1 import remote_execution_pb2 as pb
from tachikoma.policy.decision import may_observe
from tachikoma.vocabulary.requests import ExecRequest, WindowSize
from tachikoma.vocabulary.results import ExecOutput
from tachikoma_orchestrator.api.guard import current_peer
from tachikoma_orchestrator.api.output import OutputCalls
from tachikoma_orchestrator.caller import Peer
from tachikoma_orchestrator.executions.record import Record
from tachikoma_orchestrator.executions.waiters import AwaitedOrder
from tachikoma_orchestrator.sessions.attachment import ExecutionEnded
from tachikoma_orchestrator.sessions.observation import Observation
from tachikoma_orchestrator.sessions.outbox import Outbox
from tachikoma_orchestrator.sessions.restoration import restored_screen
from tachikoma_orchestrator.sessions.rights import recorded_request
from tachikoma_orchestrator.sessions.sizes import SizeHistory

__all__ = ["ObserverCalls"]

#: Seconds between two looks at the rights of an observer.
RIGHTS_SECONDS = 2.0
#: Longest time for the last message about an observer that leaves.
LEAVE_SECONDS = 3.0


class ObserverCalls(OutputCalls):
    """The part of `ExecuteInteractive` for observers."""

    async def _observe(
        self,
        attach: pb.SessionAttach,
        window: WindowSize | None,
        requests: AsyncIterator[pb.ExecInput],
        outbox: Outbox,
    ) -> None:
        """Serve an observer until the execution ends, the observer leaves, or it loses its right.

        Args:
            attach: the first message.
            window: size of the window that the output so far is drawn for; None for the output itself.
            requests: the messages that follow.
            outbox: messages to the observer.

        Raises:
            NotFound: the caller may not observe it, or there is no such execution; the two look the same.
            FailedPrecondition: the execution is not interactive, or has ended.
            ResourceExhausted: it has too many observers.
        """
        record, _ = await self._observed(attach.id)
        follower = self._follower(record.agent, attach.id, attach.after_seq)
        with self._parts.completions.expect(attach.id) as end:
            async with follower.listen():
                record, request = await self._observed(attach.id)
                self._parts.completions.note_order(attach.id, AwaitedOrder(record.agent, record.order_sha256))
                screen = None
                if window is not None and request.tty and not attach.after_seq:
                    screen = restored_screen(attach.id, follower, SizeHistory.parse(record.sizes), window)
                output = self._follow(follower, record, end, screen, acknowledges=False)
                await _Observer(self, record, request, outbox).run(requests, output)

    async def _observed(self, exec_id: str) -> tuple[Record, ExecRequest]:
        """Return the record and the request of an execution that the caller may observe. Raises as `_observe`."""
        concerns(exec_id)
        unknown = NotFound(f"there is no execution {exec_id[:80]!r} that you may observe")
        try:
            record = await self._parts.ledger.record(exec_id) if exec_id else None
        except RecordAltered as error:
            await self._parts.evidence.altered(exec_id, str(error))
            raise
        if record is None:
            raise unknown
        request = recorded_request(record)
        if await self._lost_view(record, request, current_peer()):
            raise unknown
        if not request.interactive:
            raise FailedPrecondition(f"{exec_id} is not interactive; use Attach to follow its output")
        if record.state.terminal:
            raise ExecutionEnded(f"the execution {exec_id} has ended")
        return record, request

    async def _lost_view(self, record: Record, request: ExecRequest, peer: Peer) -> str:
        """Return why a caller may not observe an execution now, in words; empty if it may."""
        if record.requested_by == str(peer) or self._is_operator(peer):
            return ""
        decision = await self._parts.admitter.decide(request, peer.address, granted_by=record.policy)
        if not decision.allowed:
            return decision.reason
        return "" if may_observe(decision.observers, str(peer)) else "policy does not name you as an observer"


class _Observer:
    """One observer."""

    def __init__(self, calls: ObserverCalls, record: Record, request: ExecRequest, outbox: Outbox) -> None:
        self._calls = calls
        self._record = record
        self._request = request
        self._outbox = outbox
        self._peer = current_peer()
        self._observation = Observation(calls._parts.redis, record.agent, record.exec_id, self._peer)
        #: Set when all output was forwarded.
        self._ended = asyncio.Event()
        self._reason = "the connection ended"

    async def run(self, requests: AsyncIterator[pb.ExecInput], output: AsyncGenerator[ExecOutput]) -> None:
        """Forward the output until it ends, or a part fails."""
        await self._observation.begin()
        captions = self._calls._parts.recordings.captions(self._record)
        try:
            await captions.mark(self._outbox.sent_bytes, f"observed: {self._peer}")
            async with supervised(
                self._read(requests), self._watch_rights(), self._observation.keep_renewed(), self._forward(output)
            ):
                await self._ended.wait()
        except Exception as error:
            self._reason = str(error)[:300]
            raise
        finally:
            with suppress(RedisError, OSError, TimeoutError, FailedPrecondition):
                async with asyncio.timeout(LEAVE_SECONDS):
                    await self._observation.end(self._reason)
                    if not self._ended.is_set():
                        await captions.mark(self._outbox.sent_bytes, f"observed no longer: {self._peer}")
            captions.close()

    async def _forward(self, output: AsyncGenerator[ExecOutput]) -> None:
        async with aclosing(output) as messages:
            async for message in messages:
                await self._outbox.put(message)
        self._ended.set()

    async def _read(self, requests: AsyncIterator[pb.ExecInput]) -> None:
        """Take the messages of the observer.

        Raises:
            InvalidRequest: it sent something for the session.
        """
        async for message in requests:
            match message.WhichOneof("event"):
                case "written":
                    pass
                case "detach":
                    self._reason = "the observer left it"
                    self._outbox.finish()
                case event:
                    raise InvalidRequest(f"an observer cannot send {event or 'an empty message'}; it only reads")

    async def _watch_rights(self) -> None:
        """Decide again whenever policy changes.

        Raises:
            PermissionDenied: the caller may not observe any more.
        """
        policies = self._calls._parts.policies
        decided = policies.current
        while True:
            await asyncio.sleep(RIGHTS_SECONDS)
            if (current := policies.current) is decided:
                continue
            if why := await self._calls._lost_view(self._record, self._request, self._peer):
                raise PermissionDenied(f"not allowed any more: {why}", metadata={"rule": "observe"})
            decided = current
