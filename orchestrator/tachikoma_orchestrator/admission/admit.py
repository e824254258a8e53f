"""Admission: from a request and its caller to an accepted execution, or to an audited refusal.

1. The request must be the caller's own, and of a kind that this version can run.
2. Policy decides, purely.
3. The order is signed and wrapped into a Celery message (`orders.py`). If policy requires an approval, the request is
   signed instead, so no order exists before the approval (`approvals.py`).
4. One Lua script checks agent, id, queue and limits, writes ledger and audit trail, and pushes the message. If
   something must confirm the admission before, a second script pushes the message.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from functools import partial

import structlog

from tachikoma.config import stages, tracing
from tachikoma.config.stages import Stage
from tachikoma.errors import TachikomaError
from tachikoma.identity.svid import SvidSource
from tachikoma.policy.decision import Decision
from tachikoma.policy.masking.redaction import redact
from tachikoma.policy.watch import PolicyWatch
from tachikoma.vocabulary.audit import AuditCode
from tachikoma.vocabulary.policies import RateLimitConfig
from tachikoma.vocabulary.recordings import RecordMode
from tachikoma.vocabulary.requests import ExecRequest
from tachikoma_orchestrator.admission.digests import request_digest
from tachikoma_orchestrator.admission.orders import AllowedRequest, Orders
from tachikoma_orchestrator.admission.populations import Populations
from tachikoma_orchestrator.admission.refusals import (
    REFUSALS,
    Denial,
    impersonation,
    not_allowed,
    refusal,
    session_mistake,
    unrecordable,
    unsuitable,
)
from tachikoma_orchestrator.agents.registry import Registry
from tachikoma_orchestrator.audit.trail import AuditTrail
from tachikoma_orchestrator.caller import Peer
from tachikoma_orchestrator.executions.ledger import Ledger
from tachikoma_orchestrator.executions.restoration import Restoration
from tachikoma_orchestrator.executions.transitions import Admission, Dispatch, Outcome
from tachikoma_orchestrator.executions.waiters import AwaitedOrder
from tachikoma_orchestrator.metrics import ADMISSIONS
from tachikoma_orchestrator.store.lives import Lives

__all__ = ["Admitter"]

#: Largest `maxTargets` of a policy.
MAX_TARGETS = 1_000_000

log = structlog.get_logger(__name__)


async def no_recordings() -> str:
    """Return why a process without a store records nothing."""
    return "this orchestrator has no folder for recordings; set TACHIKOMA_RECORDINGS"


class Admitter:
    """Admits requests."""

    def __init__(
        self,
        ledger: Ledger,
        trail: AuditTrail,
        policies: PolicyWatch,
        identity: SvidSource,
        registry: Registry,
        *,
        rate_limit: RateLimitConfig,
        search_path: tuple[str, ...],
        sent: Callable[[str, AwaitedOrder], None] | None = None,
        lives: Lives | None = None,
        reply: int | None = None,
    ) -> None:
        """Prepare the admission of requests.

        Args:
            ledger: records the accepted executions.
            trail: records the refused requests.
            policies: the active policies.
            identity: the orchestrator's own, which signs orders.
            registry: labels and journals of the agents.
            rate_limit: limits of each agent.
            search_path: folders in which a bare program name is looked up.
            sent: called with the id and the order of each accepted request; None to report to no caller.
            lives: the lives of Redis, which orders name; None for orders that name none.
            reply: the lane on which this process receives the reports of agents; None if it does not listen.
        """
        self._ledger = ledger
        self._trail = trail
        self._policies = policies
        self._registry = registry
        self._rate_limit = rate_limit
        self._search_path = search_path
        self._sent = sent
        self._recordable: Callable[[], Awaitable[str]] = no_recordings
        self._restoration: Restoration | None = None
        self._populations = Populations(registry)
        self.orders = Orders(identity, registry, rate_limit, lives=lives, reply=reply)

    def record_with(self, recordable: Callable[[], Awaitable[str]]) -> None:
        """Admit requests that must be recorded.

        Args:
            recordable: returns why no recording can be written now, in words; empty if one can.
        """
        self._recordable = recordable

    def wait_with(self, restoration: Restoration) -> None:
        """Send no orders to an agent whose records are being restored after Redis lost data."""
        self._restoration = restoration

    def settled(self, agent: str) -> bool:
        """Return True if new orders may be sent to an agent, as far as its records are concerned."""
        return self._restoration is None or self._restoration.settled(agent)

    @property
    def restoring(self) -> bool:
        """True if records that Redis lost may still be restored from what agents retained."""
        return self._restoration is not None and self._restoration.under_way

    async def wait_for(self, agent: str) -> None:
        """Return once new orders may be sent to an agent; see `settled`."""
        if self._restoration is not None and not self._restoration.settled(agent):
            await self._restoration.wait_for(agent)

    async def admit(self, request: ExecRequest, peer: Peer, *, session: bool = False, attached: bool = False) -> bool:
        """Admit a request.

        Args:
            request: the request.
            peer: the caller.
            session: True if input can follow, so that an interactive request is possible.
            attached: True if the caller reads the output while the command runs, so that the command waits for it.

        Returns:
            True if the request is new; False if the same request was admitted before under its id.

        Raises:
            PermissionDenied: the request names another requester, or no policy allows it.
            InvalidRequest: the request is interactive and input cannot follow, or the reverse, or its fields about
                terminal and input contradict each other.
            AgentUnknown, AgentOffline, AgentDraining, AgentRevoked: its agent cannot take it.
            FailedPrecondition: clock or formats of its agent and the orchestrator differ too much, or policy requires
                a recording, which cannot be written.
            AlreadyExists: its id was used for another request.
            Unavailable: it could not be recorded, or the orchestrator's certificate has expired.
            ResourceExhausted: the agent's queue is full, or a rate limit is reached.
        """
        self._trail.check()
        stages.begin_unless_begun(request.id)
        with tracing.span("admission", {"tachikoma.execution.id": request.id, "tachikoma.agent.id": request.agent_id}):
            return await self._admit(request, peer, session=session, attached=attached)

    async def _admit(self, request: ExecRequest, peer: Peer, *, session: bool, attached: bool) -> bool:
        """Decide about a request and record it. Parameters, return value and errors are those of `admit`."""
        claimed, request = request.requested_by, request.model_copy(update={"requested_by": str(peer)})
        if claimed not in ("", request.requested_by):
            raise await self.deny(request, peer, impersonation(claimed, request.requested_by))
        decision = await self._granted(request, peer, session=session)
        stages.passed(Stage.DECIDE)
        # The digest is of the request as it was made, so a repetition matches even after a change of policy.
        allowed = self.allowed(request, decision, request_digest(request), peer.address, attached=attached)
        await self.wait_for(request.agent_id)
        unfit = self.unfit(request)
        outcome, retry_seconds = await self._record(allowed, unfit)
        if outcome in REFUSALS:
            log.info(
                "request.refused", id=request.id, agent=request.agent_id, by=str(peer), outcome=outcome,
                audit_code=REFUSALS[outcome].audit_code,
            )  # fmt: skip
            raise refusal(outcome, request, retry_seconds, detail=unfit)
        return outcome is Outcome.ADMITTED

    async def _granted(self, request: ExecRequest, peer: Peer, *, session: bool) -> Decision:
        """Return the decision that allows a request; deny a request that is not allowed or cannot be run.

        Raises:
            PermissionDenied, InvalidRequest, FailedPrecondition: as of `admit`.
        """
        decision = await self.decide(request, peer.address)
        if not decision.allowed:
            raise await self.deny(request, peer, not_allowed(decision))
        if mistake := session_mistake(request, session=session):
            raise await self.deny(request, peer, unsuitable(decision, mistake))
        if decision.record.mode is RecordMode.REQUIRED and (obstacle := await self._recordable()):
            raise await self.deny(request, peer, unrecordable(decision, obstacle))
        return decision

    async def decide(self, request: ExecRequest, address: str, *, granted_by: str = "") -> Decision:
        """Return the decision of the active policies; on a large request, it is made in a thread.

        Args:
            request: the request, with its authenticated requester. One that was admitted, as far as it is retained.
            address: IP address of the caller now; empty if unknown.
            granted_by: the policy that granted it before; empty for a new request.
        """
        policies = self._policies.current
        decide = partial(
            policies.decide, request, request.requested_by, self._search_path,
            self._registry.labels(request.agent_id), address, granted_by=granted_by,
        )  # fmt: skip
        return await asyncio.to_thread(decide) if policies.is_large(request) else decide()

    @property
    def approves_batches(self) -> bool:
        """True if an active policy can require an approval of a batch."""
        return self._policies.current.approves_batches

    def shown(self, request: ExecRequest) -> tuple[str, ...]:
        """Return the argv of a request with its secrets masked, as it may be stored and shown."""
        return redact(request.command, self._policies.current.secrets(request.command, self._search_path))

    def allowed(
        self, request: ExecRequest, decision: Decision, digest: str, client_ip: str, *, attached: bool = False
    ) -> AllowedRequest:
        """Return the values from which the order of an allowed request is made."""
        return AllowedRequest(request, decision, self.shown(request), digest, client_ip, attached)

    def unfit(self, request: ExecRequest) -> str:
        """Return why a request's agent can run nothing: its clock or its formats, in words; else empty."""
        return self._registry.observations.obstacle(request.agent_id)

    async def _record(self, allowed: AllowedRequest, unfit: str) -> tuple[Outcome, float]:
        """Record an allowed request with its order, or without one if it needs an approval. Returns as the ledger.

        Args:
            allowed: the request.
            unfit: why its agent can run nothing, as `unfit` returned it; heartbeats change that.
        """
        admission, dispatch = await self.prepare(allowed, unfit)
        stages.passed(Stage.SIGN)
        outcome, retry_seconds = await self._ledger.admit(admission, dispatch)
        stages.passed(Stage.ADMIT)
        self.report_sent(allowed, outcome, dispatch)
        return outcome, retry_seconds

    async def prepare(
        self, allowed: AllowedRequest, unfit: str, *, batch: str = "", approved_by: str = "", approval_reason: str = ""
    ) -> tuple[Admission, Dispatch | None]:
        """Return the facts of an allowed request for the ledger, and its order; None if it waits for an approval.

        Args:
            allowed: the request.
            unfit: why its agent can run nothing, as `unfit` returned it.
            batch: id of the batch that it is a part of; empty for none.
            approved_by: SPIFFE ID of the approver of that batch; empty if it was not approved.
            approval_reason: the approver's reason.

        Raises:
            Unavailable: the orchestrator's certificate has expired.
        """
        decision, dispatch, parked = allowed.decision, None, ""
        approvers = () if approved_by else decision.approvers
        if approvers:
            parked, wait = self.orders.park(allowed), decision.approval_timeout
        else:
            dispatch = await self.orders.dispatch(allowed, approved_by, batch=batch)
            wait = self.orders.queue_timeout(decision)
        admission = Admission(
            request=allowed.request,
            shown=allowed.shown,
            digest=allowed.digest,
            policy=decision.policy,
            client_ip=allowed.client_ip,
            wait=wait,
            timeout=decision.timeout,
            scopes=await self._scopes(allowed.request, decision, approved=bool(approvers or approved_by)),
            parked=parked,
            approvers=approvers,
            approved_by=approved_by,
            approval_reason=approval_reason,
            waits=decision.waits,
            unfit=unfit,
            batch=batch,
            recording=decision.record,
        )
        return admission, dispatch

    def report_sent(self, allowed: AllowedRequest, outcome: Outcome, dispatch: Dispatch | None) -> None:
        """Report the order of a newly admitted request to the callers who wait for its execution."""
        if outcome is Outcome.ADMITTED and dispatch is not None and self._sent is not None:
            request = allowed.request
            self._sent(request.id, AwaitedOrder(request.agent_id, dispatch.order_sha256, reports_here=True))

    async def _scopes(self, request: ExecRequest, decision: Decision, *, approved: bool) -> dict[str, RateLimitConfig]:
        """Return the limits that count for a request: of its agent, and of the deciding policy.

        Those of the policy are for its requester, and for all requesters together. A request that is `approved`, or
        waits for its approval, does not count for `requireApprovalAbove`.
        """
        scopes = {}
        if self._rate_limit.requests_per_minute or self._rate_limit.concurrent_limit:
            scopes[f"agent:{request.agent_id}"] = self._rate_limit
        if decision.rate_limit is not None:
            requester = f"{decision.policy.partition('@')[0]} {request.requested_by}"
            scopes[f"by:{hashlib.sha256(requester.encode()).hexdigest()[:32]}"] = decision.rate_limit
        most = await self._populations.most_targets(decision)
        if most is not None:
            scopes[f"under:{decision.policy.partition('@')[0]}"] = RateLimitConfig(
                concurrent_limit=most, queue_size=MAX_TARGETS
            )
        if decision.approval_above is not None and not approved:
            scopes[f"unapproved:{decision.policy.partition('@')[0]}"] = RateLimitConfig(
                concurrent_limit=decision.approval_above, queue_size=MAX_TARGETS
            )
        return scopes

    async def deny(self, request: ExecRequest, peer: Peer, denial: Denial, *, batch: str = "") -> TachikomaError:
        """Audit a denial and return the error for the caller; `batch` is the batch of the request, or empty."""
        ADMISSIONS.labels("denied" if denial.audit_code is AuditCode.DENIED else "refused").inc()
        log.info("request.denied", id=request.id, agent=request.agent_id, by=str(peer), reason=denial.reason)
        await self._trail.refuse(
            request, denial.audit_code,
            policy=denial.policy, rule=denial.rule, reason=denial.reason, client_ip=peer.address,
            shown=self.shown(request), batch=batch,
        )  # fmt: skip
        return denial.error
