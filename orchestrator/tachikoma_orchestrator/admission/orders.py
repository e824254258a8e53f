"""Signed messages of the orchestrator: work orders of allowed requests, and requests that wait for their approval."""

from __future__ import annotations

import hashlib
import math
import shlex
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from tachikoma.config import tracing
from tachikoma.errors import Unavailable
from tachikoma.identity.signed_messages import ParkedRequest, WorkOrder
from tachikoma.identity.signing import sign
from tachikoma.identity.spiffe import agent_id
from tachikoma.identity.svid import Svid, SvidSource
from tachikoma.policy.decision import Decision
from tachikoma.vocabulary.policies import RateLimitConfig
from tachikoma.vocabulary.requests import ExecRequest
from tachikoma_orchestrator.admission.celery_message import MessageFactory
from tachikoma_orchestrator.agents.registry import Registry
from tachikoma_orchestrator.executions.transitions import Dispatch
from tachikoma_orchestrator.store.lives import Lives

__all__ = ["AllowedRequest", "Orders"]


@dataclass(frozen=True, slots=True)
class AllowedRequest:
    """A request that policy allows, with everything that its order is made from."""

    #: With the authenticated requester.
    request: ExecRequest
    decision: Decision
    #: Redacted argv.
    shown: tuple[str, ...]
    #: `request_digest` of the request.
    digest: str
    #: IP address that the request came from; empty if unknown.
    client_ip: str
    #: True if the caller reads the output while the command runs.
    attached: bool = False


class Orders:
    """Signs orders with the orchestrator's identity and wraps them into Celery messages. For one thread."""

    def __init__(
        self,
        identity: SvidSource,
        registry: Registry,
        rate_limit: RateLimitConfig,
        *,
        lives: Lives | None = None,
        reply: int | None = None,
    ) -> None:
        """Prepare the signing of orders.

        Args:
            identity: the orchestrator's own.
            registry: labels and journals of the agents.
            rate_limit: the orchestrator's limits, of which the queue timeout counts here.
            lives: the lives of Redis; None for orders that name none.
            reply: the lane on which the process receives reports; None if it does not listen.
        """
        self._lives = lives
        self._reply = reply
        self._identity = identity
        self._registry = registry
        self._rate_limit = rate_limit
        self._messages = MessageFactory()

    def queue_timeout(self, decision: Decision) -> timedelta:
        """Return the longest wait of an order on its agent's queue.

        It ends at the latest with the certificate that the order is signed with.

        Raises:
            Unavailable: that certificate has expired.
        """
        left = self._identity.current().not_after - datetime.now(UTC)
        if left <= timedelta(0):
            raise Unavailable(
                "the orchestrator's own certificate has expired; run `tachikoma identity show` on its host"
            )
        limits = [limit.queue_timeout for limit in (self._rate_limit, decision.rate_limit) if limit is not None]
        return min(left, *limits)

    def queue(self, request: ExecRequest) -> str:
        """Return the queue for the order of a request: each requester has one at each agent."""
        return self._registry.queue(request.agent_id, request.requested_by)

    def park(self, allowed: AllowedRequest) -> str:
        """Return a request signed for its wait for an approval. It is no order: no agent accepts it."""
        svid = self._identity.current()
        claims = ParkedRequest(
            iss=str(svid.spiffe_id),
            iat=int(time.time()),
            jti=allowed.request.id,
            request=allowed.request,
            client_ip=allowed.client_ip,
        )
        return sign(svid, claims)

    async def dispatch(self, allowed: AllowedRequest, approved_by: str = "", *, batch: str = "") -> Dispatch:
        """Sign the order of an allowed request and wrap it into the Celery message for its agent's queue.

        Args:
            allowed: the request.
            approved_by: SPIFFE ID of the approver; empty without an approval.
            batch: id of the batch that the request is a part of; empty for none.

        Raises:
            Unavailable: the orchestrator's certificate has expired.
            redis errors: the agent's journal is not known and could not be read.
        """
        request, decision = allowed.request, allowed.decision
        wait_seconds = self.queue_timeout(decision).total_seconds()
        # Read before the order is written: a life that begins meanwhile then counts as a later one.
        life = self._lives.number if self._lives is not None else 0
        order = await self._order(self._identity.current(), allowed, wait_seconds, approved_by, life, batch)
        return Dispatch(
            life=life,
            digest=allowed.digest,
            order_sha256=hashlib.sha256(order.encode()).hexdigest(),
            policy=decision.policy,
            queue=self.queue(request),
            message=self._messages.message(
                request.agent_id, request.id, order, expires_seconds=wait_seconds, shown=shlex.join(allowed.shown)
            ),
        )

    async def _order(
        self, svid: Svid, allowed: AllowedRequest, wait_seconds: float, approved_by: str, life: int, batch: str
    ) -> str:
        request, decision = allowed.request, allowed.decision
        assert decision.grant is not None
        agent, now = request.agent_id, time.time()
        claims = WorkOrder(
            iss=str(svid.spiffe_id),
            aud=str(agent_id(svid.spiffe_id.trust_domain, agent)),
            sub=request.requested_by,
            iat=int(now),
            # Rounded up: it must not expire before the wait that was granted. Ledger and claim enforce the exact time.
            exp=math.ceil(now + wait_seconds),
            jti=request.id,
            policy=decision.policy,
            approved_by=approved_by,
            batch=batch,
            journal=await self._registry.journal(agent),
            labels=self._registry.reported_labels(agent),
            bound=dict(self._registry.labels(agent)),
            client_ip=allowed.client_ip,
            life=life,
            digest=allowed.digest,
            reply=self._reply,
            attached=allowed.attached,
            host_access=decision.host_access,
            trace=tracing.order_trace(request.id),
            grant=decision.grant,
            request=request.model_copy(update={"timeout": decision.timeout}),
        )
        return sign(svid, claims)
