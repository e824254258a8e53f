"""Batches and approvals whose signatures were verified, kept in memory while their batch is driven."""

from __future__ import annotations

from collections import OrderedDict

import structlog

from tachikoma.identity.signed_batches import ApprovedBatch
from tachikoma.identity.signing import InvalidSignature
from tachikoma.identity.svid import SvidSource
from tachikoma_orchestrator.batches.frozen import Frozen
from tachikoma_orchestrator.batches.store import BatchStore

__all__ = ["VerifiedBatches"]

log = structlog.get_logger(__name__)

#: Batches and approvals that are kept, each.
MAX_KEPT = 64


class VerifiedBatches:
    """Reads signed batches and approvals, each once."""

    def __init__(self, store: BatchStore, identity: SvidSource) -> None:
        self._store = store
        self._identity = identity
        self._batches: OrderedDict[str, Frozen] = OrderedDict()
        self._approvals: OrderedDict[str, ApprovedBatch] = OrderedDict()

    async def batch(self, batch_id: str) -> Frozen | None:
        """Return a verified batch; None if it is gone or was altered."""
        if batch_id in self._batches:
            self._batches.move_to_end(batch_id)
            return self._batches[batch_id]
        token = await self._store.signed(batch_id)
        if token is None:
            return None
        try:
            frozen = Frozen.read(self._identity.current(), batch_id, token)
        except InvalidSignature as error:
            log.error("batch.refused", batch=batch_id, reason=str(error))
            return None
        self._batches[batch_id] = frozen
        if len(self._batches) > MAX_KEPT:
            self._batches.popitem(last=False)
        return frozen

    async def approval(self, frozen: Frozen) -> ApprovedBatch | None:
        """Return the verified approval of a batch; None if it has none, or an altered one."""
        if frozen.id in self._approvals:
            self._approvals.move_to_end(frozen.id)
            return self._approvals[frozen.id]
        token = await self._store.approval(frozen.id)
        if token is None:
            return None
        try:
            approval = frozen.read_approval(self._identity.current(), token)
        except InvalidSignature as error:
            log.error("batch.approval_refused", batch=frozen.id, reason=str(error))
            return None
        self._approvals[frozen.id] = approval
        if len(self._approvals) > MAX_KEPT:
            self._approvals.popitem(last=False)
        return approval
