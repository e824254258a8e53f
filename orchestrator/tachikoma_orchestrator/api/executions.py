"""The gRPC service: one method per RPC, each a few lines over admission, ledger and followers. Those about agents,
policy, audit trail and schedules are in `administration.py`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import structlog

from tachikoma.client import wire
from tachikoma.config.error_reporting import concerns
from tachikoma.errors import InvalidRequest, NotFound, OutputAltered, RecordAltered
from tachikoma.exec.v1 import remote_execution_pb2 as pb
from tachikoma.policy.redaction import redact
from tachikoma.streams.frames import OutputCheck
from tachikoma.vocabulary.audit import AuditCode
from tachikoma.vocabulary.requests import ExecRequest
from tachikoma.vocabulary.results import CancelOutcome, CancelResponse, ExecOutput, ExecStatus, OutputKind
from tachikoma.vocabulary.states import ExecState
from tachikoma_orchestrator.admission.approvals import Approvals
from tachikoma_orchestrator.agents.membership import Membership
from tachikoma_orchestrator.api.administration import Administration, page
from tachikoma_orchestrator.api.guard import current_peer
from tachikoma_orchestrator.api.listing import ListFilter
from tachikoma_orchestrator.caller import Peer
from tachikoma_orchestrator.executions.cancel import send_cancel
from tachikoma_orchestrator.executions.final_state import FinalState
from tachikoma_orchestrator.executions.follower import Follower
from tachikoma_orchestrator.executions.record import Record
from tachikoma_orchestrator.executions.transitions import TransitionOutcome
from tachikoma_orchestrator.processes.parts import Core

__all__ = ["RemoteExecution"]

log = structlog.get_logger(__name__)

#: Steps of one page each that one `List` takes at the most.
MAX_LIST_STEPS = 20


def shown(text: str) -> str:
    """What may be written down of an id that was not checked."""
    return redact((text[:64],))[0]


class RemoteExecution(Administration):
    """`tachikoma.exec.v1.RemoteExecution`."""

    def __init__(self, core: Core, approvals: Approvals, membership: Membership) -> None:
        super().__init__(core, membership)
        self._redis = core.redis
        self._ledger = core.ledger
        self._admitter = core.admitter
        self._completions = core.completions
        self._subscriber = core.subscriber
        self._approvals = approvals
        self._identity = core.identity
        self._evidence = core.evidence

    # --- running ------------------------------------------------------------------------------------------------------

    async def _read(self, message: pb.ExecRequest) -> ExecRequest:
        """A caller's request.

        Raises:
            InvalidRequest: a bound is broken; that is on the record.
        """
        try:
            wanted = wire.request_from_pb(message)
        except InvalidRequest as error:
            self._trail.check()
            peer = current_peer()
            await self._trail.append(
                AuditCode.MALFORMED, id=shown(message.id), agent_id=shown(message.agent_id), authorized="0",
                requested_by=str(peer), client_ip=peer.address, reason=str(error),
            )  # fmt: skip
            raise
        concerns(wanted.id)
        return wanted

    async def Execute(self, request: pb.ExecRequest, context: Any) -> pb.ExecResponse:  # noqa: N802
        wanted = await self._read(request)
        with self._completions.expect(wanted.id) as end:
            if not await self._admitter.admit(wanted, current_peer()):
                await self._check_ended(wanted.id)
            response = (await end).response()
        if response.agent_id != wanted.agent_id:
            why = f"the ledger has the end of it from {response.agent_id}, and it was for {wanted.agent_id}"
            raise await self._evidence.altered(wanted.id, why)
        return wire.response_to_pb(response)

    async def ExecuteStream(  # noqa: N802
        self, request: pb.ExecRequest, context: Any
    ) -> AsyncIterator[pb.ExecOutput]:
        wanted = await self._read(request)
        follower = Follower(self._redis, self._subscriber, wanted.agent_id, wanted.id, 0)
        with self._completions.expect(wanted.id) as end:
            async with follower.listen():
                await self._admitter.admit(wanted, current_peer())
                record = await self._ledger.record(wanted.id)
                if record is None:
                    raise NotFound(f"the execution {wanted.id} is gone")
                async for output in self._follow(follower, record, end):
                    yield wire.output_to_pb(output)

    async def Submit(self, request: pb.ExecRequest, context: Any) -> pb.ExecStatus:  # noqa: N802
        wanted = await self._read(request)
        await self._admitter.admit(wanted, current_peer())
        return wire.status_to_pb((await self._record(wanted.id)).status())

    async def Attach(self, request: pb.AttachRequest, context: Any) -> AsyncIterator[pb.ExecOutput]:  # noqa: N802
        record = await self._record(request.id)
        follower = Follower(self._redis, self._subscriber, record.agent, request.id, request.after_seq)
        with self._completions.expect(request.id) as end:
            async with follower.listen():
                record = await self._record(request.id)
                if request.no_follow and not record.state.terminal:
                    yield wire.output_to_pb(await self._status(record))
                    try:
                        async for output in follower.replay():
                            yield wire.output_to_pb(output)
                    except OutputAltered as error:
                        await self._note_altered(record, str(error))
                        raise
                    return
                async for output in self._follow(follower, record, end):
                    yield wire.output_to_pb(output)

    async def _follow(
        self, follower: Follower, record: Record, end: asyncio.Future[FinalState]
    ) -> AsyncIterator[ExecOutput]:
        """Status, again when it was approved, chunks, and the result."""
        with self._completions.approvals.expect(record.exec_id) as approval:
            yield await self._status(record)
            await self._check_ended(record.exec_id)
            if record.state is ExecState.PENDING_APPROVAL:
                record = await self._ledger.record(record.exec_id) or record
                if record.state is ExecState.PENDING_APPROVAL:
                    await approval
                    record = await self._ledger.record(record.exec_id) or record
                if not record.state.terminal:
                    yield await self._status(record)
        check = OutputCheck(from_start=not follower.seq)
        follower.acknowledges = record.waits
        try:
            async for output in follower.until(end):
                check.add(output)
                yield output
        except OutputAltered as error:
            await self._note_altered(record, str(error))
            raise
        response = end.result().response()
        total = response.stdout_summary.total_bytes + response.stderr_summary.total_bytes
        missing = follower.missing_at_end(total)
        if missing:
            check.add(gap := follower.gap(missing))
            yield gap
        if stream := check.altered(response):
            why = f"what was read of its {stream} is not what its agent signed for"
            await self._note_altered(record, why)
            raise OutputAltered(
                f"{record.exec_id} ended {response.state} with exit code {response.exit_code}, but {why}"
            )
        yield ExecOutput(
            id=record.exec_id,
            kind=OutputKind.RESULT,
            seq=follower.seq,
            # What the caller has seen already is not sent again.
            result=response.model_copy(update={"stdout": b"", "stderr": b""}),
        )

    async def _note_altered(self, record: Record, why: str) -> None:
        log.error("output.altered", id=record.exec_id, agent=record.agent, reason=why)
        await self._trail.append(
            AuditCode.OUTPUT_ALTERED, id=record.exec_id, agent_id=record.agent, authorized="1",
            requested_by=record.requested_by, actor=str(current_peer()), reason=why,
        )  # fmt: skip

    async def _status(self, record: Record) -> ExecOutput:
        status = await self._evidence.status(record)
        return ExecOutput(id=record.exec_id, kind=OutputKind.STATUS, status=status)

    async def _check_ended(self, exec_id: str) -> None:
        """Resolve an end that came before anybody waited for it.

        Raises:
            RecordAltered: the ledger says of it what nobody signed.
        """
        record = await self._ledger.record(exec_id)
        if record is not None and record.state.terminal:
            final = await self._evidence.final_state(record)
            self._completions.deliver(final)
            final.response()

    # --- asking -------------------------------------------------------------------------------------------------------

    async def Status(self, request: pb.StatusRequest, context: Any) -> pb.StatusResponse:  # noqa: N802
        record = await self._record(request.id)
        return pb.StatusResponse(status=wire.status_to_pb(await self._evidence.status(record)))

    async def List(self, request: pb.ListRequest, context: Any) -> pb.ListResponse:  # noqa: N802
        """Records as they stand in the ledger: hundreds of signatures are not verified for an overview.

        Whoever acts on how one of them ended asks for that one: `Status`, `Execute` and `Attach` verify it.
        """
        size = page(request.page_size, "page_size")
        subject = str(current_peer())
        operator = self._policies.current.is_operator(subject)
        wanted = ListFilter.from_pb(request)

        def visible(record: Record) -> bool:
            return (operator or record.requested_by == subject) and wanted.matches(record, self._registry.labels)

        position = _parse_token(request.page_token) or wanted.start
        found: list[ExecStatus] = []
        # A caller who owns few of many pays with short pages, not the server with a long search.
        for _ in range(MAX_LIST_STEPS):
            ids = await self._ledger.newest(
                request.agent_id, ended=wanted.ended, before=position, limit=size, since_ms=wanted.since_ms
            )
            records = {record.exec_id: record for record in await self._ledger.records([i for i, _ in ids])}
            for exec_id, at in ids:
                position = (at, position[1] + 1 if position and position[0] == at else 1)
                record = records.get(exec_id)
                if record is None or not visible(record):
                    continue
                try:
                    found.append(record.status())
                except RecordAltered as error:
                    # One that somebody broke must not hide the others.
                    log.error("record.unreadable", id=exec_id, reason=str(error))
                if len(found) == size:
                    break
            if len(ids) < size:
                if len(found) < size:
                    position = None
                break
            if len(found) == size:
                break
        return pb.ListResponse(
            executions=[wire.status_to_pb(status) for status in found],
            next_page_token=json.dumps(position) if position else "",
        )

    # --- approving ----------------------------------------------------------------------------------------------------

    async def ListApprovals(  # noqa: N802
        self, request: pb.ListApprovalsRequest, context: Any
    ) -> pb.ListApprovalsResponse:
        peer = current_peer()
        records = await self._approvals.pending(peer, everybody=self._policies.current.is_operator(str(peer)))
        return pb.ListApprovalsResponse(executions=[wire.status_to_pb(record.status()) for record in records])

    async def GetApproval(self, request: pb.GetApprovalRequest, context: Any) -> pb.Approval:  # noqa: N802
        concerns(request.id)
        return wire.approval_to_pb(await self._approvals.describe(request.id, current_peer()))

    async def Approve(self, request: pb.ApproveRequest, context: Any) -> pb.ExecStatus:  # noqa: N802
        concerns(request.id)
        await self._approvals.approve(request.id, request.digest.hex(), request.reason, current_peer())
        return await self._decided(request.id)

    async def Reject(self, request: pb.RejectRequest, context: Any) -> pb.ExecStatus:  # noqa: N802
        concerns(request.id)
        await self._approvals.reject(request.id, request.reason, current_peer())
        return await self._decided(request.id)

    async def _decided(self, exec_id: str) -> pb.ExecStatus:
        record = await self._ledger.record(exec_id)
        if record is None:
            raise NotFound(f"the execution {exec_id} is gone")
        return wire.status_to_pb(record.status())

    # --- ending -------------------------------------------------------------------------------------------------------

    async def Cancel(self, request: pb.CancelRequest, context: Any) -> pb.CancelResponse:  # noqa: N802
        peer = current_peer()
        record = await self._record(request.id)
        outcome = await self._cancel(record, peer)
        status = await self._evidence.status(await self._record(request.id))
        return wire.cancel_to_pb(CancelResponse(outcome=outcome, status=status))

    async def _cancel(self, record: Record, peer: Peer) -> CancelOutcome:
        agent, exec_id = record.agent, record.exec_id
        if record.state.terminal:
            return CancelOutcome.ALREADY_ENDED
        # It may go on from each of these while we look, but never back.
        done = await self._ledger.settle(
            agent, exec_id, [ExecState.PENDING_APPROVAL], ExecState.CANCELLED,
            reason="withdrawn before it was approved", by=str(peer), fence=False,
        )  # fmt: skip
        if done is TransitionOutcome.DONE:
            return CancelOutcome.CANCELLED
        # Nobody started it: take the claim, so that nobody ever can.
        done = await self._ledger.settle(
            agent, exec_id, [ExecState.QUEUED], ExecState.CANCELLED,
            reason="cancelled before it started", by=str(peer), fence=True,
        )  # fmt: skip
        if done is TransitionOutcome.DONE:
            return CancelOutcome.CANCELLED
        if await self._ledger.request_cancel(agent, exec_id, str(peer)) is not TransitionOutcome.DONE:
            return CancelOutcome.ALREADY_ENDED
        await send_cancel(
            self._redis, self._identity, agent, exec_id,
            by=str(peer),
            # Whose it is the ledger said, which may lie; its agent knows by the order.
            requested_by="" if self._policies.current.is_operator(str(peer)) else str(peer),
        )  # fmt: skip
        return CancelOutcome.REQUESTED

    async def _record(self, exec_id: str) -> Record:
        """A record the caller may see.

        Raises:
            NotFound: there is none, or it is somebody else's; the answer is the same.
        """
        concerns(exec_id)
        try:
            record = await self._ledger.record(exec_id) if exec_id else None
        except RecordAltered as error:
            await self._evidence.altered(exec_id, str(error))
            raise
        subject = str(current_peer())
        if record is None or not (record.requested_by == subject or self._policies.current.is_operator(subject)):
            raise NotFound(f"there is no execution {exec_id[:80]!r} of yours")
        return record


def _parse_token(token: str) -> tuple[int, int] | None:
    if not token:
        return None
    try:
        at, seen = json.loads(token)
        return int(at), int(seen)
    except (ValueError, TypeError):
        raise InvalidRequest(f"{token[:80]!r} is no page token") from None
