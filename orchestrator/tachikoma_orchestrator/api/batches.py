"""The RPCs about batches."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from tachikoma.client import batch_wire
from tachikoma.errors import NotFound, Unavailable
from tachikoma.exec.v1 import remote_execution_pb2 as pb
from tachikoma.vocabulary.audit import AuditCode
from tachikoma.vocabulary.batches import BatchState, BatchStatus
from tachikoma_orchestrator.api.executions import ExecutionCalls
from tachikoma_orchestrator.api.guard import current_peer
from tachikoma_orchestrator.api.service import MAX_PAGE, page_size
from tachikoma_orchestrator.batches.submission import read_frozen
from tachikoma_orchestrator.executions.record import Record

__all__ = ["BatchCalls"]

#: Executions that are cancelled at the same time.
CANCELS = 16


class BatchCalls(ExecutionCalls):
    """The RPCs whose names contain `Batch`, and `ListBatches`."""

    async def SubmitBatch(self, request: pb.BatchRequest, context: object) -> pb.BatchStatus:  # noqa: N802
        self._parts.trail.check()
        wanted = batch_wire.request_from_pb(request)
        return batch_wire.status_to_pb(await self._parts.batches.submission.submit(wanted, current_peer()))

    async def PreviewBatch(self, request: pb.BatchRequest, context: object) -> pb.BatchPreview:  # noqa: N802
        wanted = batch_wire.request_from_pb(request)
        return batch_wire.preview_to_pb(await self._parts.batches.submission.preview(wanted, current_peer()))

    async def WatchBatch(  # noqa: N802
        self, request: pb.WatchBatchRequest, context: object
    ) -> AsyncIterator[pb.BatchUpdate]:
        await self._batch(request.id)
        updates = self._parts.batches.watch.follow(request.id, output=request.output, follow=not request.no_follow)
        async for update in updates:
            yield batch_wire.update_to_pb(update)

    async def GetBatch(self, request: pb.GetBatchRequest, context: object) -> pb.BatchStatus:  # noqa: N802
        return batch_wire.status_to_pb(await self._batch(request.id))

    async def ListBatches(  # noqa: N802
        self, request: pb.ListBatchesRequest, context: object
    ) -> pb.ListBatchesResponse:
        peer, store = current_peer(), self._parts.batches.store
        operator, limit = self._is_operator(peer), page_size(request.limit, "limit")
        found: list[pb.BatchStatus] = []
        # Bounded in work: those of others among the newest count too.
        for batch_id in await store.newest(MAX_PAGE):
            if len(found) == limit:
                break
            status = await store.status(batch_id)
            if status is not None and (operator or status.requested_by == str(peer)):
                found.append(batch_wire.status_to_pb(status))
        return pb.ListBatchesResponse(batches=found)

    async def CancelBatch(self, request: pb.CancelBatchRequest, context: object) -> pb.BatchStatus:  # noqa: N802
        peer, store = current_peer(), self._parts.batches.store
        await self._batch(request.id)
        await store.halt(
            request.id, BatchState.CANCELLED, AuditCode.BATCH_CANCELLED, f"cancelled by {peer}", by=str(peer)
        )
        signed = await store.signed(request.id)
        _, running = await store.not_ended(request.id)
        if signed is not None:
            frozen = read_frozen(self._parts.identity.current(), request.id, signed)
            # Without altered ones: the reaper reports them, and the others must not go on because of them.
            ids = [frozen.exec_id(agent) for agent in running]
            if frozen.request.gate is not None and (progress := await store.progress(request.id)):
                ids.append(frozen.gate_id(progress.released))
            records = await self._parts.ledger.records(ids)
            limit = asyncio.Semaphore(CANCELS)

            async def cancel(record: Record) -> None:
                async with limit:
                    await self._cancel(record, peer)

            await asyncio.gather(*map(cancel, records))
        return batch_wire.status_to_pb(await self._existing_batch(request.id))

    async def ListBatchApprovals(  # noqa: N802
        self, request: pb.ListBatchApprovalsRequest, context: object
    ) -> pb.ListBatchApprovalsResponse:
        peer = current_peer()
        waiting = await self._parts.batches.approvals.pending(peer, everybody=self._is_operator(peer))
        return pb.ListBatchApprovalsResponse(batches=[batch_wire.status_to_pb(status) for status in waiting])

    async def GetBatchApproval(  # noqa: N802
        self, request: pb.GetBatchApprovalRequest, context: object
    ) -> pb.BatchApproval:
        return batch_wire.approval_to_pb(await self._parts.batches.approvals.describe(request.id, current_peer()))

    async def ApproveBatch(self, request: pb.ApproveBatchRequest, context: object) -> pb.BatchStatus:  # noqa: N802
        approvals = self._parts.batches.approvals
        await approvals.approve(request.id, request.digest.hex(), request.reason, current_peer())
        return batch_wire.status_to_pb(await self._existing_batch(request.id))

    async def RejectBatch(self, request: pb.RejectBatchRequest, context: object) -> pb.BatchStatus:  # noqa: N802
        await self._parts.batches.approvals.reject(request.id, request.reason, current_peer())
        return batch_wire.status_to_pb(await self._existing_batch(request.id))

    async def _existing_batch(self, batch_id: str) -> BatchStatus:
        """Return the status of a batch that this call changed. Raises Unavailable if Redis has lost it since."""
        status = await self._parts.batches.store.status(batch_id)
        if status is None:
            raise Unavailable(f"Redis lost the batch {batch_id[:80]!r} just after this call changed it; call again")
        return status

    async def _batch(self, batch_id: str) -> BatchStatus:
        """Return the status of a batch that the caller may see.

        Raises:
            NotFound: the batch does not exist or belongs to another requester; the two look the same.
        """
        peer = current_peer()
        status = await self._parts.batches.store.status(batch_id) if batch_id else None
        if status is None or not (status.requested_by == str(peer) or self._is_operator(peer)):
            raise NotFound(f"there is no batch {batch_id[:80]!r} of yours")
        return status
