"""Approvals: waiting executions, their approvers, and the digest of everything that would run.

A request that needs an approval is stored signed by the orchestrator (`ParkedRequest`). No order of it exists, so write
access to Redis is not enough to run it. An approval names the digest of everything that would run. Policy decides again
at the time of the approval: what was allowed when it was requested may be denied now.
"""

from __future__ import annotations

from dataclasses import dataclass

import structlog

from tachikoma.errors import FailedPrecondition, InvalidRequest, NotFound, PermissionDenied, RecordAltered
from tachikoma.identity.signed_messages import ParkedRequest
from tachikoma.identity.signing import InvalidSignature, verify
from tachikoma.identity.svid import SvidSource
from tachikoma.policy.decision import Decision, may_approve
from tachikoma.vocabulary.audit import AuditCode
from tachikoma.vocabulary.requests import ExecRequest
from tachikoma.vocabulary.results import Approval, ExecStatus
from tachikoma.vocabulary.states import ExecState
from tachikoma_orchestrator.admission.admit import Admitter
from tachikoma_orchestrator.admission.digests import approval_digest, request_digest
from tachikoma_orchestrator.admission.refusals import refusal
from tachikoma_orchestrator.audit.findings import Findings
from tachikoma_orchestrator.audit.trail import AuditTrail
from tachikoma_orchestrator.caller import Peer
from tachikoma_orchestrator.executions.ledger import Ledger
from tachikoma_orchestrator.executions.record import Record
from tachikoma_orchestrator.executions.transitions import Outcome, TransitionOutcome

__all__ = ["Approvals", "checked_reason"]

log = structlog.get_logger(__name__)

#: Longest reason, in characters.
MAX_REASON = 1000


def checked_reason(text: str) -> str:
    """Return a reason that an operator or approver gives for the audit trail.

    Raises:
        InvalidRequest: the reason is empty or too long.
    """
    if not text.strip():
        raise InvalidRequest("a reason is required; it is recorded in the audit trail")
    if len(text) > MAX_REASON:
        raise InvalidRequest(f"a reason has at most {MAX_REASON} characters")
    return text


@dataclass(frozen=True, slots=True)
class _Pending:
    """An execution that waits for its approval, with its verified request."""

    record: Record
    parked: ParkedRequest

    @property
    def request(self) -> ExecRequest:
        """The request as the orchestrator signed it."""
        return self.parked.request


class Approvals:
    """Shows executions that wait for an approval, approves and rejects them."""

    def __init__(
        self, ledger: Ledger, trail: AuditTrail, admitter: Admitter, identity: SvidSource, findings: Findings
    ) -> None:
        """Prepare the handling of approvals.

        Args:
            ledger: the executions.
            trail: records refused attempts.
            admitter: decides again, and signs the order.
            identity: the orchestrator's own, which signed the stored requests.
            findings: records stored requests that cannot be verified.
        """
        self._ledger = ledger
        self._trail = trail
        self._admitter = admitter
        self._identity = identity
        self._findings = findings

    async def pending(self, peer: Peer, *, everybody: bool) -> list[ExecStatus]:
        """Return the executions that wait for an approval, and that the caller requested or may approve.

        Args:
            peer: the caller.
            everybody: True for the executions of all requesters.
        """
        subject = str(peer)
        found = []
        for record in await self._ledger.approvals():
            try:
                status = record.status()
            except RecordAltered as error:
                # One altered record must not hide the others.
                log.error("record.unreadable", id=record.exec_id, reason=str(error))
                continue
            if everybody or subject == record.requested_by or may_approve(status.approvers, subject):
                found.append(status)
        return found

    async def describe(self, exec_id: str, peer: Peer) -> Approval:
        """Return everything that would run, for a caller that may approve it.

        Raises:
            NotFound: no such execution waits for the caller's approval.
            PermissionDenied: the caller is its requester.
            FailedPrecondition: policy has changed since the request.
        """
        pending = await self._pending(exec_id)
        decision = await self._decision(pending, peer)
        assert decision.grant is not None
        return Approval(
            status=pending.record.status(),
            request=pending.request.model_copy(
                update={"timeout": decision.timeout, "isolation": decision.grant.isolation}
            ),
            digest=approval_digest(pending.request, decision),
            policy=decision.policy,
            limits=decision.grant.limits,
        )

    async def approve(self, exec_id: str, digest: str, reason: str, peer: Peer) -> None:
        """Approve an execution and put its order on the agent's queue.

        Args:
            exec_id: the execution.
            digest: `Approval.digest` of the approval that the approver reviewed.
            reason: reason for the audit trail.
            peer: the approver.

        Raises:
            InvalidRequest: the reason is empty or too long.
            NotFound: no such execution waits for the caller's approval.
            PermissionDenied: the caller is its requester.
            FailedPrecondition: the digest does not match, policy has changed, or another approver was faster.
            AgentOffline, AgentDraining, AgentRevoked, ResourceExhausted: the order cannot be queued now. The execution
                still waits for its approval.
        """
        reason = checked_reason(reason)
        pending = await self._pending(exec_id)
        decision = await self._decision(pending, peer)
        if digest != approval_digest(pending.request, decision):
            raise FailedPrecondition(
                "what would run is not what was approved: policy changed, or the digest belongs to another execution; "
                "show the approval again"
            )
        await self._check_agent(pending)
        await self._release(pending, decision, digest, reason, peer)
        log.info("execution.approved", id=exec_id, by=str(peer))

    async def reject(self, exec_id: str, reason: str, peer: Peer) -> None:
        """Reject an execution, so that it never runs. Raises as `approve` does."""
        reason = checked_reason(reason)
        pending = await self._pending(exec_id)
        if not may_approve(pending.record.status().approvers, str(peer)):
            # Approvers that policy names now may reject too. Those that it named at first always may, whatever changed.
            await self._decision(pending, peer)
        done = await self._ledger.settle(
            pending.record.agent, exec_id, [ExecState.PENDING_APPROVAL], ExecState.REJECTED,
            reason=f"rejected by {peer}: {reason}", by=str(peer), fence=False,
        )  # fmt: skip
        self._check_done(exec_id, done)
        log.info("execution.rejected", id=exec_id, by=str(peer))

    # --- steps --------------------------------------------------------------------------------------------------------

    async def _pending(self, exec_id: str) -> _Pending:
        """Return an execution that waits for its approval, with its verified request.

        Raises:
            NotFound: no such execution waits for an approval.
            FailedPrecondition: the stored request cannot be verified.
        """
        record = await self._ledger.record(exec_id) if exec_id else None
        if record is not None and not self._admitter.settled(record.agent):
            # Redis may have lost that it was approved. Its agent shows then that it ran.
            await self._admitter.wait_for(record.agent)
            record = await self._ledger.record(exec_id)
        token = await self._ledger.parked(exec_id) if record is not None else None
        if record is None or record.state is not ExecState.PENDING_APPROVAL or token is None:
            raise _not_pending(exec_id)
        svid = self._identity.current()
        try:
            parked = verify(token, ParkedRequest, svid.bundle, svid.spiffe_id, kept=True)
            if parked.jti != exec_id or request_digest(parked.request) != record.digest:
                raise InvalidSignature("is of another execution")
        except InvalidSignature as error:
            log.error("parked.refused", id=exec_id, reason=str(error))
            why = f"the request stored for its approval {error}"
            await self._findings.add(AuditCode.RECORD_ALTERED, exec_id, why)
            raise FailedPrecondition(f"the stored request of {exec_id} cannot be verified: it {error}") from None
        return _Pending(record, parked)

    async def _decision(self, pending: _Pending, peer: Peer) -> Decision:
        """Return the decision of the active policies, if the caller may approve the execution.

        Raises:
            NotFound, PermissionDenied, FailedPrecondition: as `describe` does.
        """
        record, request, subject = pending.record, pending.request, str(peer)
        decision = await self._admitter.decide(request, pending.parked.client_ip)
        # The requester is the one in the signed request, not the one in the record.
        if decision.approvable_by(subject, request.requested_by):
            return decision
        if subject == request.requested_by:
            why = "requesters cannot approve their own requests"
            await self._audit_refusal(record, subject, why)
            raise PermissionDenied(why, metadata={"rule": "approvers"})
        if not may_approve(record.status().approvers, subject):
            await self._audit_refusal(record, subject, "not one of its approvers")
            # A caller that has nothing to do with the execution does not learn that it exists.
            raise _not_pending(record.exec_id)
        if not decision.allowed:
            raise FailedPrecondition(f"policy no longer allows it: {decision.reason}; it cannot be approved")
        if not decision.approvers:
            raise FailedPrecondition("policy no longer requires an approval; reject it, then submit the request again")
        raise FailedPrecondition("policy now names other approvers")

    async def _check_agent(self, pending: _Pending) -> None:
        """Raise the error of a refused request if the agent cannot take an order now."""
        queue = self._admitter.orders.queue(pending.request)
        readiness = await self._ledger.readiness(pending.record.agent, queue)
        unfit = self._admitter.unfit(pending.request)
        if readiness is Outcome.ADMITTED and unfit:
            readiness = Outcome.UNFIT
        if readiness is not Outcome.ADMITTED:
            raise refusal(readiness, pending.request, detail=unfit)

    async def _release(self, pending: _Pending, decision: Decision, digest: str, reason: str, peer: Peer) -> None:
        """Sign the order of an approved execution and put it on the queue, with the event of the approval.

        Raises:
            FailedPrecondition: the execution no longer waits for an approval.
        """
        record, orders = pending.record, self._admitter.orders
        allowed = self._admitter.allowed(pending.request, decision, record.digest, pending.parked.client_ip)
        dispatch = await orders.dispatch(allowed, approved_by=str(peer))
        done = await self._ledger.approve(
            record.agent, record.exec_id, dispatch,
            wait=orders.queue_timeout(decision), by=str(peer), reason=reason, digest=digest, waits=decision.waits,
        )  # fmt: skip
        self._check_done(record.exec_id, done)

    async def _audit_refusal(self, record: Record, subject: str, reason: str) -> None:
        self._trail.check()
        await self._trail.append_refusal(
            AuditCode.APPROVAL_REFUSED, subject=subject, id=record.exec_id, agent_id=record.agent, authorized="0",
            requested_by=record.requested_by, actor=subject, reason=reason,
        )  # fmt: skip

    @staticmethod
    def _check_done(exec_id: str, outcome: TransitionOutcome) -> None:
        if outcome is not TransitionOutcome.DONE:
            raise FailedPrecondition(f"{exec_id} no longer waits for an approval")


def _not_pending(exec_id: str) -> NotFound:
    return NotFound(f"no execution {exec_id[:80]!r} waits for your approval")
