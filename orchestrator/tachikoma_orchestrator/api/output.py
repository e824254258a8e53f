"""The RPCs that stream the output of an execution."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator

import structlog

from tachikoma.client import wire
from tachikoma.errors import InvalidRequest, OutputAltered, RecordAltered
from tachikoma.exec.v1 import remote_execution_pb2 as pb
from tachikoma.streams.frames import OutputCheck
from tachikoma.vocabulary.audit import AuditCode
from tachikoma.vocabulary.messages import OutputKind
from tachikoma.vocabulary.recordings import RecordMode, RecordRule
from tachikoma.vocabulary.results import ExecOutput, ExecResponse
from tachikoma.vocabulary.states import ExecState
from tachikoma_orchestrator.api.guard import current_peer
from tachikoma_orchestrator.api.service import Service
from tachikoma_orchestrator.executions.final_state import FinalState
from tachikoma_orchestrator.executions.follower import Follower
from tachikoma_orchestrator.executions.record import Record
from tachikoma_orchestrator.executions.waiters import AwaitedOrder

__all__ = ["OutputCalls"]

log = structlog.get_logger(__name__)

#: Largest number of a chunk. It is the first part of an entry's id, after which Redis begins to read.
LAST_CHUNK = 2**63 - 1


class OutputCalls(Service):
    """`ExecuteStream` and `Attach`."""

    async def ExecuteStream(  # noqa: N802
        self, request: pb.ExecRequest, context: object
    ) -> AsyncIterator[pb.ExecOutput]:
        wanted = await self._request(request)
        follower = self._follower(wanted.agent_id, wanted.id, 0)
        with self._parts.completions.expect(wanted.id) as end:
            async with follower.listen():
                new = await self._parts.admitter.admit(wanted, current_peer(), attached=True)
                self._parts.completions.note_order(wanted.id, AwaitedOrder(wanted.agent_id, ""))
                outputs = self._follow(follower, await self._existing(wanted.id), end, attached=True, announced=new)
                async for output in outputs:
                    yield wire.output_to_pb(output)

    async def Attach(self, request: pb.AttachRequest, context: object) -> AsyncIterator[pb.ExecOutput]:  # noqa: N802
        record = await self._record(request.id)
        follower = self._follower(record.agent, request.id, request.after_seq)
        with self._parts.completions.expect(request.id) as end:
            async with follower.listen():
                record = await self._record(request.id)
                self._parts.completions.note_order(request.id, AwaitedOrder(record.agent, record.order_sha256))
                if request.no_follow and not record.state.terminal:
                    outputs = self._output_so_far(follower, record)
                else:
                    attached = record.requested_by == str(current_peer())
                    outputs = self._follow(follower, record, end, attached=attached)
                async for output in outputs:
                    yield wire.output_to_pb(output)

    def _follower(self, agent: str, exec_id: str, after_seq: int) -> Follower:
        """Return a follower that continues after a chunk.

        Raises:
            InvalidRequest: no chunk has this number.
        """
        if after_seq > LAST_CHUNK:
            raise InvalidRequest(f"after_seq is at most {LAST_CHUNK}, not {after_seq}")
        return Follower(self._parts.redis, self._parts.output_subscriber, agent, exec_id, after_seq)

    async def _output_so_far(self, follower: Follower, record: Record) -> AsyncIterator[ExecOutput]:
        """Yield the status and the chunks that the log contains now."""
        yield await self._status(record)
        try:
            async for output in follower.replay():
                yield output
        except OutputAltered as error:
            await self._record_altered(record, str(error))
            raise

    async def _follow(
        self,
        follower: Follower,
        record: Record,
        end: asyncio.Future[FinalState],
        screen: AsyncIterator[ExecOutput] | None = None,
        *,
        acknowledges: bool = True,
        attached: bool = False,
        announced: bool = False,
    ) -> AsyncGenerator[ExecOutput]:
        """Yield the status, the status after an approval, the chunks, and the result.

        Args:
            follower: reads the output.
            record: the execution.
            end: its final state.
            screen: messages in place of the output so far; the follower is after that output when they end.
            acknowledges: whether a command that waits for its readers waits for this one.
            attached: whether this is the requester, for whom every command waits.
            announced: whether the order of the execution, if it has one by now, named an attached caller.
        """
        yield await self._status(record)
        approved = await self._wait_for_approval(record)
        if approved is not record:
            # The order was sent by the approver's call.
            record, announced = approved, False
            if not record.state.terminal:
                yield await self._status(record)
        check = OutputCheck(from_start=not follower.seq)
        follower.acknowledges = acknowledges and _waits_for_callers(record)
        if attached and not record.waits and not record.state.terminal:
            follower.report_reads(announce=not announced)
        try:
            if screen is not None:
                async for output in screen:
                    check.add(output)
                    yield output
            async for output in follower.until(end):
                check.add(output)
                yield output
        except OutputAltered as error:
            await self._record_altered(record, str(error))
            raise
        async for output in self._last(follower, check, record, end.result().response()):
            yield output

    async def _last(
        self, follower: Follower, check: OutputCheck, record: Record, response: ExecResponse
    ) -> AsyncIterator[ExecOutput]:
        """Yield the gap at the end of the output, if there is one, and the result. Raises as `_verify`."""
        missing = follower.missing_at_end(response.stdout_summary.total_bytes + response.stderr_summary.total_bytes)
        if missing:
            check.add(gap := follower.gap(missing))
            yield gap
        await self._verify(check, record, response)
        yield ExecOutput(
            id=record.exec_id,
            kind=OutputKind.RESULT,
            seq=follower.seq,
            # The caller has received the output already.
            result=response.model_copy(update={"stdout": b"", "stderr": b""}),
        )

    async def _wait_for_approval(self, record: Record) -> Record:
        """Wait while an execution needs an approval. Return its new record; the given one if it needs none."""
        exec_id = record.exec_id
        with self._parts.completions.approvals.expect(exec_id) as approval:
            latest = await self._latest(record)
            await self._resolve_if_terminal(latest)
            if record.state is not ExecState.PENDING_APPROVAL:
                return record
            if latest.state is ExecState.PENDING_APPROVAL:
                await approval
                latest = await self._latest(latest)
            return latest

    async def _latest(self, record: Record) -> Record:
        """Return the current record of an execution; the given one if the ledger has lost it since.

        Also a value that is no record is a lost one here: the caller is answered by the receipt, or within a bound.
        """
        try:
            return await self._parts.ledger.record(record.exec_id) or record
        except RecordAltered:
            return record

    async def _verify(self, check: OutputCheck, record: Record, response: ExecResponse) -> None:
        """Compare the streamed output with the digests that the agent signed.

        Raises:
            OutputAltered: they differ; that is in the audit trail.
        """
        if stream := check.altered(response):
            reason = f"the {stream} that was read is not the one that its agent signed for"
            await self._record_altered(record, reason)
            raise OutputAltered(
                f"{record.exec_id} ended {response.state} with exit code {response.exit_code}, but {reason}"
            )

    async def _record_altered(self, record: Record, reason: str) -> None:
        log.error("output.altered", id=record.exec_id, agent=record.agent, reason=reason)
        await self._parts.trail.append(
            AuditCode.OUTPUT_ALTERED,
            id=record.exec_id,
            agent_id=record.agent,
            authorized="1",
            requested_by=record.requested_by,
            actor=str(current_peer()),
            reason=reason,
        )

    async def _status(self, record: Record) -> ExecOutput:
        status = await self._parts.evidence.status(record)
        return ExecOutput(id=record.exec_id, kind=OutputKind.STATUS, status=status)


def _waits_for_callers(record: Record) -> bool:
    """Return True if a command waits until its callers have read its output."""
    # The recorder of an execution that must be recorded is the reader that counts.
    return record.waits and RecordRule.parse(record.recording).mode is not RecordMode.REQUIRED
