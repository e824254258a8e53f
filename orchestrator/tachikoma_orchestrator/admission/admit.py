"""Admission: from a request and its requester to an accepted execution, or a refusal that is on the record.

1. The request must be the peer's own and of a kind this version runs.
2. Policy decides, purely.
3. The order is signed and wrapped into a Celery message; where policy asks for an approval, the request itself is
   signed instead, so that there is no order before somebody approved (`approval.py`).
4. One Lua script checks agent, id, queue and limits and writes ledger and audit; another pushes the message. Both go to
   Redis at once.
"""

from __future__ import annotations

import hashlib
import json
import math
import shlex
import time
from datetime import UTC, datetime, timedelta

import structlog

from tachikoma.errors import (
    AgentDraining,
    AgentOffline,
    AgentRevoked,
    AgentUnknown,
    AlreadyExists,
    InvalidRequest,
    PermissionDenied,
    ResourceExhausted,
    TachikomaError,
    Unavailable,
)
from tachikoma.identity.signed_messages import ParkedRequest, WorkOrder, sign
from tachikoma.identity.spiffe import agent_id
from tachikoma.identity.svid import SvidSource
from tachikoma.policy.decision import Decision
from tachikoma.policy.redaction import redact
from tachikoma.policy.watch import PolicyWatch
from tachikoma.vocabulary.audit import AuditCode
from tachikoma.vocabulary.policies import RateLimitConfig
from tachikoma.vocabulary.requests import ExecRequest
from tachikoma_orchestrator.admission.celery_message import MessageFactory
from tachikoma_orchestrator.agents.registry import Registry
from tachikoma_orchestrator.audit.trail import AuditTrail
from tachikoma_orchestrator.caller import Peer
from tachikoma_orchestrator.executions.ledger import Ledger
from tachikoma_orchestrator.executions.transitions import Admission, Dispatch, Outcome

__all__ = ["Admitter", "Peer", "refusal", "request_digest"]

log = structlog.get_logger(__name__)


def request_digest(request: ExecRequest) -> str:
    """SHA-256 over everything that would run and who asks; not over the time of asking."""
    content = {
        "agent": request.agent_id,
        "command": request.command,
        "workDir": request.work_dir,
        "environment": request.environment,
        "stdin": hashlib.sha256(request.stdin).hexdigest(),
        "timeout": request.timeout.total_seconds() if request.timeout else None,
        "user": request.user,
        "interactive": request.interactive,
        "tty": request.tty,
        "limits": request.limits.to_dict() if request.limits else None,
        "requestedBy": request.requested_by,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


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
    ) -> None:
        self._ledger = ledger
        self._trail = trail
        self._policies = policies
        self._identity = identity
        self._registry = registry
        self._rate_limit = rate_limit
        self._search_path = search_path
        self._messages = MessageFactory()

    async def admit(self, request: ExecRequest, peer: Peer) -> bool:
        """Admit a request.

        Returns:
            Whether it is new; False for the repetition of a request that was admitted before.

        Raises:
            PermissionDenied: it names another requester, or no policy grants it.
            InvalidRequest: it asks for what this version does not do.
            AgentUnknown, AgentOffline, AgentDraining, AgentRevoked: there is nobody to run it.
            AlreadyExists: its id was used for another request.
            Unavailable: it could not be recorded.
            ResourceExhausted: the agent's queue is full, or a rate limit is reached.
        """
        self._trail.check()
        subject = str(peer)
        if request.requested_by not in ("", subject):
            claimed = request.requested_by
            request = request.model_copy(update={"requested_by": subject})
            reason = f"the request names {claimed} as its requester, but comes from {subject}"
            await self._refuse(request, peer, "", "requestedBy", reason)
            raise PermissionDenied(reason, metadata={"rule": "requestedBy"})
        request = request.model_copy(update={"requested_by": subject})

        decision = self.decide(request, peer.address)
        if not decision.allowed:
            await self._refuse(request, peer, decision.policy, decision.rule, decision.reason)
            raise PermissionDenied(
                f"not allowed: {decision.reason}",
                metadata={"rule": decision.rule, "policy": decision.policy},
            )
        if request.interactive or request.tty:
            await self._refuse(request, peer, decision.policy, "", "interactive sessions are not supported")
            raise InvalidRequest("interactive sessions and terminals are not supported by this version")

        # The digest is of what was asked for, so that a repetition fits also after a change of policy.
        digest = request_digest(request)
        shown = self.shown(request)
        admission = Admission(
            request=request,
            shown=shown,
            digest=digest,
            policy=decision.policy,
            client_ip=peer.address,
            wait=decision.approval_timeout if decision.approvers else self.queue_timeout(decision),
            timeout=decision.timeout,
            scopes=self._scopes(request, decision),
            parked=self._park(request, peer) if decision.approvers else "",
            approvers=decision.approvers,
            waits=decision.waits,
        )
        dispatch = None
        if not decision.approvers:
            dispatch = await self.dispatch(request, shown, digest, decision, peer.address)
        outcome, retry_seconds = await self._ledger.admit(admission, dispatch)
        if outcome in (Outcome.ADMITTED, Outcome.DUPLICATE):
            return outcome is Outcome.ADMITTED
        raise refusal(outcome, request, retry_seconds)

    def decide(self, request: ExecRequest, address: str) -> Decision:
        """What the policy in force says of a request, whose requester is known, and from which address it came."""
        labels = self._registry.labels(request.agent_id)
        return self._policies.current.decide(request, request.requested_by, self._search_path, labels, address)

    def shown(self, request: ExecRequest) -> tuple[str, ...]:
        """What may be written down of a request's argv."""
        return redact(request.command, self._policies.current.secrets(request.command, self._search_path))

    def queue_timeout(self, decision: Decision) -> timedelta:
        """How long an order may wait on its agent's queue: at most until the certificate ends that it is signed with.

        Raises:
            Unavailable: that has ended.
        """
        left = self._identity.current().not_after - datetime.now(UTC)
        if left <= timedelta(0):
            raise Unavailable(
                "the orchestrator's own certificate has expired; `tachikoma identity show` there says more"
            )
        limits = [limit.queue_timeout for limit in (self._rate_limit, decision.rate_limit) if limit is not None]
        return min(left, *limits)

    def _park(self, request: ExecRequest, peer: Peer) -> str:
        """The request as it waits for its approval."""
        svid = self._identity.current()
        claims = ParkedRequest(
            iss=str(svid.spiffe_id), iat=int(time.time()), jti=request.id, request=request, client_ip=peer.address
        )
        return sign(svid, claims)

    def _scopes(self, request: ExecRequest, decision: Decision) -> dict[str, RateLimitConfig]:
        """Whom limits count for: the agent, and the requester under the policy that decided."""
        scopes = {}
        if self._rate_limit.requests_per_minute or self._rate_limit.concurrent_limit:
            scopes[f"agent:{request.agent_id}"] = self._rate_limit
        if decision.rate_limit is not None:
            who = f"{decision.policy.partition('@')[0]} {request.requested_by}"
            scopes[f"by:{hashlib.sha256(who.encode()).hexdigest()[:32]}"] = decision.rate_limit
        return scopes

    async def dispatch(
        self,
        request: ExecRequest,
        shown: tuple[str, ...],
        digest: str,
        decision: Decision,
        address: str,
        approved_by: str = "",
    ) -> Dispatch:
        """The signed order of an allowed request, and the Celery message that carries it and shows so much of it."""
        assert decision.grant is not None
        request = request.model_copy(update={"timeout": decision.timeout})
        svid = self._identity.current()
        now = time.time()
        wait = self.queue_timeout(decision).total_seconds()
        agent = request.agent_id
        order = sign(
            svid,
            WorkOrder(
                iss=str(svid.spiffe_id),
                aud=str(agent_id(svid.spiffe_id.trust_domain, request.agent_id)),
                sub=request.requested_by,
                iat=int(now),
                # Never before the time that was granted: that it waited longer, ledger and claim decide.
                exp=math.ceil(now + wait),
                jti=request.id,
                policy=decision.policy,
                approved_by=approved_by,
                journal=await self._registry.journal(agent),
                labels=self._registry.labels(agent),
                client_ip=address,
                grant=decision.grant,
                request=request,
            ),
        )
        return Dispatch(
            digest=digest,
            order_sha256=hashlib.sha256(order.encode()).hexdigest(),
            policy=decision.policy,
            message=self._messages.message(
                request.agent_id, request.id, order, expires_seconds=wait, shown=shlex.join(shown)
            ),
        )

    async def _refuse(self, request: ExecRequest, peer: Peer, policy: str, rule: str, reason: str) -> None:
        log.info("request.denied", id=request.id, agent=request.agent_id, by=str(peer), reason=reason)
        await self._trail.refuse(
            request, AuditCode.DENIED,
            policy=policy, rule=rule, reason=reason, client_ip=peer.address, shown=self.shown(request),
        )  # fmt: skip


def refusal(outcome: Outcome, request: ExecRequest, retry_seconds: float) -> TachikomaError:
    """What the caller of a request is told that was not admitted."""
    agent = request.agent_id
    if outcome is Outcome.UNKNOWN:
        return AgentUnknown(
            f"there is no agent {agent!r}; `tachikoma agents` shows those there are", metadata={"agent": agent}
        )
    if outcome is Outcome.OFFLINE:
        return AgentOffline(f"agent {agent!r} is offline", metadata={"agent": agent}, retry_after_seconds=5)
    if outcome is Outcome.DRAINING:
        return AgentDraining(
            f"agent {agent!r} is drained and takes no new executions; `tachikoma agents` says by whom and why",
            metadata={"agent": agent},
        )
    if outcome is Outcome.REVOKED:
        return AgentRevoked(
            f"agent {agent!r} was cut off; `tachikoma agents` says by whom and why", metadata={"agent": agent}
        )
    if outcome is Outcome.CONFLICT:
        return AlreadyExists(
            f"the id {request.id!r} was used before for another request; take a new one",
            metadata={"id": request.id},
        )
    if outcome is Outcome.APPROVALS:
        return ResourceExhausted(
            "too many executions wait for an approval; try again later",
            metadata={"limit": "approvals"},
            retry_after_seconds=60,
        )
    limits = {
        Outcome.RATE: "too many requests in the last minute",
        Outcome.CONCURRENT: "too many executions that have not ended",
        Outcome.WAITING: "too many executions that have not started",
    }
    if outcome in limits:
        return ResourceExhausted(
            f"{limits[outcome]}; try again later",
            metadata={"limit": outcome.lower(), "agent": agent},
            retry_after_seconds=retry_seconds or 1,
        )
    return ResourceExhausted(f"the queue of agent {agent!r} is full", metadata={"agent": agent}, retry_after_seconds=1)
