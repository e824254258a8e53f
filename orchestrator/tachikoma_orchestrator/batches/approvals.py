"""Approvals of batches: batches that wait for one, the callers that may give it, and the digests that it names.

A batch that needs an approval is frozen and signed like every other, and starts nothing. An approval is a message that
an orchestrator signs, so write access to Redis is not enough to start the batch. It contains a digest of what each
target would run. Policy decides again about each target before it starts, and the driver compares that digest: after a
change of the policy or of an agent's labels the target is denied.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import structlog

from tachikoma.errors import FailedPrecondition, NotFound, PermissionDenied
from tachikoma.identity.signed_batches import ApprovedBatch
from tachikoma.identity.signing import sign
from tachikoma.identity.svid import SvidSource
from tachikoma.policy.decision import may_approve
from tachikoma.vocabulary.audit import AuditCode
from tachikoma.vocabulary.batches import ApprovalNeed, BatchApproval, BatchState, BatchStatus
from tachikoma_orchestrator.admission.approvals import checked_reason
from tachikoma_orchestrator.audit.trail import AuditTrail
from tachikoma_orchestrator.batches.examination import Examination
from tachikoma_orchestrator.batches.frozen import Frozen
from tachikoma_orchestrator.batches.starter import Starter
from tachikoma_orchestrator.batches.store import BatchStore
from tachikoma_orchestrator.batches.submission import read_frozen
from tachikoma_orchestrator.caller import Peer

__all__ = ["BatchApprovals"]

log = structlog.get_logger(__name__)


class BatchApprovals:
    """Shows batches that wait for an approval, approves and rejects them."""

    def __init__(self, store: BatchStore, starter: Starter, trail: AuditTrail, identity: SvidSource) -> None:
        """Prepare the handling of approvals.

        Args:
            store: the batches.
            starter: decides about their targets.
            trail: records refused attempts.
            identity: the orchestrator's own, which signs approvals.
        """
        self._store = store
        self._starter = starter
        self._trail = trail
        self._identity = identity

    async def pending(self, peer: Peer, *, everybody: bool) -> list[BatchStatus]:
        """Return the batches that wait for an approval, and that the caller requested or may approve.

        Args:
            peer: the caller.
            everybody: True for the batches of all requesters.
        """
        subject = str(peer)
        return [
            status
            for status in await self._store.waiting()
            if everybody or subject == status.requested_by or _may_approve(status.needs, subject)
        ]

    async def describe(self, batch_id: str, peer: Peer) -> BatchApproval:
        """Return everything that a batch would run, for a caller that may approve it.

        Raises:
            NotFound: no such batch waits for the caller's approval.
            PermissionDenied: the caller is its requester.
            FailedPrecondition: policy has changed since the request.
            ServerError: the stored batch cannot be verified.
        """
        frozen, status = await self._pending(batch_id)
        found = await self._examined(frozen, peer)
        return BatchApproval(
            status=status, request=frozen.request, targets=frozen.targets, needs=found.needs, denied=found.denied,
            digest=found.digest,
        )  # fmt: skip

    async def approve(self, batch_id: str, digest: str, reason: str, peer: Peer) -> None:
        """Approve a batch with its frozen list of targets, which then starts.

        Args:
            batch_id: the batch.
            digest: `BatchApproval.digest` of the approval that the approver reviewed.
            reason: reason for the audit trail.
            peer: the approver.

        Raises:
            InvalidRequest: the reason is empty or too long.
            NotFound, PermissionDenied, ServerError: as `describe` does.
            FailedPrecondition: the digest does not match, policy has changed, or the batch waits no more.
        """
        reason = checked_reason(reason)
        frozen, _ = await self._pending(batch_id)
        found = await self._examined(frozen, peer)
        if digest != found.digest:
            raise FailedPrecondition(
                "what would run is not what was approved: policy or labels changed, or the digest belongs to another "
                "batch; show the approval again"
            )
        svid = self._identity.current()
        claims = ApprovedBatch(
            iss=str(svid.spiffe_id), iat=int(time.time()), jti=frozen.id, sub=str(peer), reason=reason,
            batch_sha256=frozen.sha256, digest=digest, targets=found.bindings, gate=found.gate,
        )  # fmt: skip
        done = await self._store.approve(
            frozen.id, sign(svid, claims),
            by=str(peer), reason=reason, digest=digest, deadline=frozen.request.deadline,
        )  # fmt: skip
        _check_done(frozen.id, done)
        log.info("batch.approved", batch=frozen.id, by=str(peer))

    async def reject(self, batch_id: str, reason: str, peer: Peer) -> None:
        """Reject a batch, so that nothing of it runs. Raises as `approve` does."""
        reason = checked_reason(reason)
        frozen, _ = await self._pending(batch_id)
        if str(peer) == frozen.requested_by or not _may_approve(frozen.needs, str(peer)):
            # Approvers that policy names now may reject too. Those that it named at first always may, whatever changed.
            await self._examined(frozen, peer)
        done = await self._store.halt(
            frozen.id, BatchState.REJECTED, AuditCode.BATCH_REJECTED, f"rejected by {peer}: {reason}",
            by=str(peer), waiting=True,
        )  # fmt: skip
        _check_done(frozen.id, done)
        log.info("batch.rejected", batch=frozen.id, by=str(peer))

    async def _pending(self, batch_id: str) -> tuple[Frozen, BatchStatus]:
        """Return a batch that waits for its approval, verified, and its status.

        Raises:
            NotFound: no such batch waits for an approval.
            ServerError: the stored batch cannot be verified.
        """
        status = await self._store.status(batch_id) if batch_id else None
        token = await self._store.signed(batch_id) if status is not None else None
        if status is None or status.state is not BatchState.PENDING_APPROVAL or token is None:
            raise _not_pending(batch_id)
        return read_frozen(self._identity.current(), batch_id, token), status

    async def _examined(self, frozen: Frozen, peer: Peer) -> Examination:
        """Return the decisions of the active policies, if the caller may approve the batch.

        Raises:
            NotFound, PermissionDenied, FailedPrecondition: as `describe` does.
        """
        subject = str(peer)
        if subject == frozen.requested_by:
            why = "requesters cannot approve their own requests"
            await self._audit_refusal(frozen, subject, why)
            raise PermissionDenied(why, metadata={"rule": "approvers"})
        found = await Examination.of(self._starter, frozen)
        if _may_approve(found.needs, subject):
            return found
        if not _may_approve(frozen.needs, subject):
            await self._audit_refusal(frozen, subject, "not one of its approvers")
            # A caller that has nothing to do with the batch does not learn that it exists.
            raise _not_pending(frozen.id)
        if not found.needs:
            raise FailedPrecondition("policy no longer requires an approval; reject it, then submit the batch again")
        raise FailedPrecondition("policy now names other approvers")

    async def _audit_refusal(self, frozen: Frozen, subject: str, reason: str) -> None:
        self._trail.check()
        await self._trail.append_refusal(
            AuditCode.APPROVAL_REFUSED, subject=subject, batch=frozen.id, authorized="0",
            requested_by=frozen.requested_by, actor=subject, reason=reason,
        )  # fmt: skip


def _may_approve(needs: Sequence[ApprovalNeed], subject: str) -> bool:
    """Return True if there is a policy, and a SPIFFE ID is an approver of each policy."""
    return bool(needs) and all(may_approve(need.approvers, subject) for need in needs)


def _check_done(batch_id: str, done: bool) -> None:
    if not done:
        raise FailedPrecondition(f"the batch {batch_id} no longer waits for an approval")


def _not_pending(batch_id: str) -> NotFound:
    return NotFound(f"no batch {batch_id[:80]!r} waits for your approval")
