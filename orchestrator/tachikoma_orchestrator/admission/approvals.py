"""Approval: what waits for one, who may give it, and what it is bound to.

A request that policy lets through only with an approval is kept signed by the orchestrator (`ParkedRequest`); there is
no order of it, so whoever owns Redis has nothing to put on a queue. An approval names the digest of everything that
would run. Policy decides anew when it is given: what was allowed when it was asked for may no longer be.
"""

from __future__ import annotations

import hashlib
import json

import structlog

from tachikoma.errors import FailedPrecondition, InvalidRequest, NotFound, PermissionDenied
from tachikoma.identity.signed_messages import InvalidSignature, ParkedRequest, verify
from tachikoma.identity.svid import SvidSource
from tachikoma.policy.decision import Decision, may_approve
from tachikoma.vocabulary.audit import AuditCode
from tachikoma.vocabulary.requests import ExecRequest
from tachikoma.vocabulary.results import Approval
from tachikoma.vocabulary.states import ExecState
from tachikoma_orchestrator.admission.admit import Admitter, refusal, request_digest
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


def approval_digest(request: ExecRequest, decision: Decision) -> str:
    """SHA-256 over everything that would run: the request, its id, and what policy makes of it."""
    assert decision.grant is not None
    content = {
        "id": request.id,
        "request": request_digest(request),
        "policy": decision.policy,
        "grant": decision.grant.model_dump(mode="json"),
        "timeout": decision.timeout.total_seconds(),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def checked_reason(text: str) -> str:
    """A reason for the record.

    Raises:
        InvalidRequest: there is none, or it is too long.
    """
    if not text.strip():
        raise InvalidRequest("a reason is required; it goes on the record")
    if len(text) > MAX_REASON:
        raise InvalidRequest(f"a reason has at most {MAX_REASON} characters")
    return text


class Approvals:
    """Shows, approves and rejects."""

    def __init__(
        self, ledger: Ledger, trail: AuditTrail, admitter: Admitter, identity: SvidSource, findings: Findings
    ) -> None:
        self._ledger = ledger
        self._trail = trail
        self._admitter = admitter
        self._identity = identity
        self._findings = findings

    async def pending(self, peer: Peer, *, everybody: bool) -> list[Record]:
        """What waits for an approval, as far as the peer has to do with it: may give it, or asked for it.

        Args:
            peer: who asks.
            everybody: whether to show all.
        """
        subject = str(peer)
        records = await self._ledger.approvals()
        return [
            record
            for record in records
            if everybody or subject == record.requested_by or may_approve(record.status().approvers, subject)
        ]

    async def describe(self, exec_id: str, peer: Peer) -> Approval:
        """All that would run, for who may approve it.

        Raises:
            NotFound: nothing of that id waits for an approval of this peer.
            FailedPrecondition: policy has changed since it was asked for.
        """
        record, parked = await self._parked(exec_id, peer)
        request, decision = parked.request, await self._decision(record, parked, peer)
        assert decision.grant is not None
        return Approval(
            status=record.status(),
            request=request.model_copy(update={"timeout": decision.timeout}),
            digest=approval_digest(request, decision),
            policy=decision.policy,
            limits=decision.grant.limits,
        )

    async def approve(self, exec_id: str, digest: str, reason: str, peer: Peer) -> None:
        """Let it run.

        Args:
            exec_id: the execution.
            digest: of what the approver saw; see `Approval.digest`.
            reason: why; it goes on the record.
            peer: the approver.

        Raises:
            NotFound: nothing of that id waits for an approval of this peer.
            PermissionDenied: the peer may not approve it.
            FailedPrecondition: it is not what the approver saw, or policy does not allow it any more, or another was
                first.
            AgentOffline, ResourceExhausted: it cannot be queued now; it goes on waiting for its approval.
        """
        reason = checked_reason(reason)
        record, parked = await self._parked(exec_id, peer)
        request, decision = parked.request, await self._decision(record, parked, peer)
        if digest != approval_digest(request, decision):
            why = "what would run is not what was approved: policy changed, or the digest is another's; look again"
            raise FailedPrecondition(why)
        readiness = await self._ledger.readiness(record.agent)
        if readiness is not Outcome.ADMITTED:
            raise refusal(readiness, request, 0)
        dispatch = await self._admitter.dispatch(
            request, self._admitter.shown(request), record.digest, decision, parked.client_ip, approved_by=str(peer)
        )
        done = await self._ledger.approve(
            record.agent, exec_id, dispatch,
            wait=self._admitter.queue_timeout(decision), by=str(peer), reason=reason, digest=digest,
            waits=decision.waits,
        )  # fmt: skip
        self._check_done(exec_id, done)
        log.info("execution.approved", id=exec_id, by=str(peer))

    async def reject(self, exec_id: str, reason: str, peer: Peer) -> None:
        """End it; it never runs. Raises as `approve` does."""
        reason = checked_reason(reason)
        record, parked = await self._parked(exec_id, peer)
        if not may_approve(record.status().approvers, str(peer)):
            # Also those whom policy names now; but a change of policy must not keep anybody from saying no.
            await self._decision(record, parked, peer)
        done = await self._ledger.settle(
            record.agent, exec_id, [ExecState.PENDING_APPROVAL], ExecState.REJECTED,
            reason=f"rejected by {peer}: {reason}", by=str(peer), fence=False,
        )  # fmt: skip
        self._check_done(exec_id, done)
        log.info("execution.rejected", id=exec_id, by=str(peer))

    async def _parked(self, exec_id: str, peer: Peer) -> tuple[Record, ParkedRequest]:
        record = await self._ledger.record(exec_id) if exec_id else None
        token = await self._ledger.parked(exec_id) if record is not None else None
        if record is None or record.state is not ExecState.PENDING_APPROVAL or token is None:
            raise NotFound(f"nothing of the id {exec_id[:80]!r} waits for an approval of yours")
        svid = self._identity.current()
        try:
            parked = verify(token, ParkedRequest, svid.bundle, svid.spiffe_id, kept=True)
            if parked.jti != exec_id or request_digest(parked.request) != record.digest:
                raise InvalidSignature("is of another execution")
        except InvalidSignature as error:
            log.error("parked.refused", id=exec_id, reason=str(error))
            why = f"the request kept for its approval {error}"
            await self._findings.add(AuditCode.RECORD_ALTERED, exec_id, why)
            raise FailedPrecondition(f"the request kept for {exec_id} cannot be believed: {error}") from None
        return record, parked

    async def _decision(self, record: Record, parked: ParkedRequest, peer: Peer) -> Decision:
        """What policy says now, if the peer may approve it."""
        request = parked.request
        decision = self._admitter.decide(request, parked.client_ip)
        subject = str(peer)
        # Who asked is what the signed request says, not the record in Redis.
        if decision.approvable_by(subject, request.requested_by):
            return decision
        if subject == request.requested_by:
            await self._refused(record, subject, why := "nobody approves their own request")
            raise PermissionDenied(why, metadata={"rule": "approvers"})
        if not may_approve(record.status().approvers, subject):
            await self._refused(record, subject, "is none of its approvers")
            # Whoever has nothing to do with it does not learn that it exists.
            raise NotFound(f"nothing of the id {record.exec_id!r} waits for an approval of yours")
        if not decision.allowed:
            raise FailedPrecondition(f"policy does not allow it any more: {decision.reason}; it cannot be approved")
        if not decision.approvers:
            raise FailedPrecondition("policy asks for no approval any more; reject it, and have it asked for again")
        raise FailedPrecondition("policy names other approvers now")

    async def _refused(self, record: Record, subject: str, why: str) -> None:
        self._trail.check()
        await self._trail.append(
            AuditCode.APPROVAL_REFUSED, id=record.exec_id, agent_id=record.agent, authorized="0",
            requested_by=record.requested_by, actor=subject, reason=why,
        )  # fmt: skip

    @staticmethod
    def _check_done(exec_id: str, outcome: TransitionOutcome) -> None:
        if outcome is not TransitionOutcome.DONE:
            raise FailedPrecondition(f"{exec_id} does not wait for an approval any more")
