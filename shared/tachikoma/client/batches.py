"""The calls of the client about batches: one command on many agents."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

import grpc.aio

from tachikoma.client import batch_wire, wire
from tachikoma.client.retry import Attempts, Calls, leave
from tachikoma.errors import TachikomaError
from tachikoma.exec.v1 import remote_execution_pb2 as pb
from tachikoma.vocabulary.batches import BatchApproval, BatchPreview, BatchRequest, BatchStatus, BatchUpdate

__all__ = ["BatchMethods"]


class BatchMethods(Calls):
    """The methods of a client about batches."""

    async def run(
        self, request: BatchRequest, *, output: bool = True, detach: bool = False
    ) -> AsyncIterator[BatchUpdate]:
        """Run a command on many agents and yield the result of each target when it has ended, and last the status.

        Leaving the iterator early cancels the batch. A connection that breaks cancels nothing.

        Args:
            request: the command, its targets and the rules of the batch.
            output: let the first result with the same output contain this output. Later ones have its digests only.
            detach: let the batch continue when the iterator is left.
        """
        try:
            await self.submit_batch(request)
            try:
                async with aclosing(self._watch(request.id, output=output, follow=True)) as updates:
                    async for update in updates:
                        yield update
            except TachikomaError as error:
                # The batch was accepted and may run on, whatever this call ends with.
                error.metadata.setdefault("id", request.id)
                raise
        except (GeneratorExit, asyncio.CancelledError):
            if not detach:
                await leave(self.cancel_batch, request.id)
            raise

    async def submit_batch(self, request: BatchRequest) -> BatchStatus:
        """Submit a batch and return without waiting for it. Safe to repeat with the same request."""
        message = batch_wire.request_to_pb(request)
        return batch_wire.status_from_pb(await self._call(lambda stub: stub.SubmitBatch(message), subject=request.id))

    async def preview_batch(self, request: BatchRequest) -> BatchPreview:
        """Return the targets that a request would have, and which of them cannot start now. Nothing is started."""
        message = batch_wire.request_to_pb(request)
        return batch_wire.preview_from_pb(await self._call(lambda stub: stub.PreviewBatch(message)))

    async def watch_batch(
        self, batch_id: str, *, output: bool = False, follow: bool = True
    ) -> AsyncIterator[BatchUpdate]:
        """Yield the status of a batch, each target that has ended, and the status on each change.

        Args:
            batch_id: the batch.
            output: let the first result with the same output contain this output.
            follow: wait until nothing of the batch runs any more; the last update is then the final status.
        """
        async with aclosing(self._watch(batch_id, output=output, follow=follow)) as updates:
            async for update in updates:
                yield update

    async def _watch(self, batch_id: str, *, output: bool, follow: bool) -> AsyncGenerator[BatchUpdate]:
        """Yield the updates of a batch, over as many calls as it takes; each target once."""
        message = pb.WatchBatchRequest(id=batch_id, output=output, no_follow=not follow)
        attempts, accepted = Attempts(self._patience, self._reconnect, batch_id), False
        seen: set[str] = set()
        while True:
            attempts.connected(await self._connection.ready(batch_id))
            call = self._connection.stub().WatchBatch(message)
            try:
                async for item in call:
                    attempts.answered()
                    accepted = True
                    update = batch_wire.update_from_pb(item)
                    if update.result is not None:
                        # A resumed call sends all results again.
                        if update.result.agent_id in seen:
                            continue
                        seen.add(update.result.agent_id)
                        attempts.succeeded()
                    yield update
                return
            except grpc.aio.AioRpcError as error:
                await attempts.wait_or_raise(error, self._connection.error_of(error), accepted=accepted)
            finally:
                call.cancel()

    async def batch(self, batch_id: str) -> BatchStatus:
        """Return the status of a batch."""
        message = pb.GetBatchRequest(id=batch_id)
        return batch_wire.status_from_pb(await self._call(lambda stub: stub.GetBatch(message)))

    async def batches(self, *, limit: int = 0) -> tuple[BatchStatus, ...]:
        """Return the latest batches of this client, the newest first; for operators, those of all requesters.

        Args:
            limit: at most n batches, 1 to 1000; 0 for 100.
        """
        answer = await self._call(lambda stub: stub.ListBatches(pb.ListBatchesRequest(limit=limit)))
        return tuple(batch_wire.status_from_pb(item) for item in answer.batches)

    async def cancel_batch(self, batch_id: str) -> BatchStatus:
        """Start no further targets of a batch, and cancel its executions. Safe to repeat."""
        message = pb.CancelBatchRequest(id=batch_id)
        return batch_wire.status_from_pb(await self._call(lambda stub: stub.CancelBatch(message)))

    async def batch_approvals(self) -> tuple[BatchStatus, ...]:
        """Return the waiting batches that this client may approve or has requested.

        Operators see all of them.
        """
        answer = await self._call(lambda stub: stub.ListBatchApprovals(pb.ListBatchApprovalsRequest()))
        return tuple(batch_wire.status_from_pb(item) for item in answer.batches)

    async def batch_approval(self, batch_id: str) -> BatchApproval:
        """Return everything that a waiting batch would run, for a client that may approve it."""
        message = pb.GetBatchApprovalRequest(id=batch_id)
        return batch_wire.approval_from_pb(await self._call(lambda stub: stub.GetBatchApproval(message)))

    async def approve_batch(self, batch_id: str, digest: str, reason: str) -> BatchStatus:
        """Approve a batch with its frozen list of targets, which then starts.

        Args:
            batch_id: the batch.
            digest: `BatchApproval.digest` of the batch that was reviewed. A batch with another digest is not approved.
            reason: reason for the audit trail.
        """
        raw = wire.digest_to_pb(digest, "BatchApproval.digest")
        message = pb.ApproveBatchRequest(id=batch_id, digest=raw, reason=reason)
        return batch_wire.status_from_pb(await self._call(lambda stub: stub.ApproveBatch(message), repeat=False))

    async def reject_batch(self, batch_id: str, reason: str) -> BatchStatus:
        """Reject a waiting batch, so that nothing of it runs; `reason` is recorded and shown to the requester."""
        message = pb.RejectBatchRequest(id=batch_id, reason=reason)
        return batch_wire.status_from_pb(await self._call(lambda stub: stub.RejectBatch(message), repeat=False))
