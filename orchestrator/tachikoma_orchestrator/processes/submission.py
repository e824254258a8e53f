"""Requests that Celery applications signed: they are verified, admitted like any other, and waited for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

import structlog
from redis.exceptions import RedisError

from tachikoma.celery import MAX_VALID
from tachikoma.config import error_reporting, stages, tracing
from tachikoma.config.retry import Backoff
from tachikoma.config.stages import Stage
from tachikoma.config.tracing import Kind
from tachikoma.errors import NotFound, Unauthenticated, Unavailable
from tachikoma.identity.signed_batches import SignedBatchRequest
from tachikoma.identity.signed_messages import SignedRequest
from tachikoma.identity.signing import CLOCK_SKEW_SECONDS, InvalidSignature, verify
from tachikoma.identity.spiffe import Member, SpiffeId, is_agent
from tachikoma.identity.svid import Svid
from tachikoma.vocabulary.audit import AuditCode
from tachikoma.vocabulary.clock import from_ms, ms_of_seconds
from tachikoma.vocabulary.results import ExecResponse
from tachikoma_orchestrator.admission.digests import request_digest
from tachikoma_orchestrator.caller import Peer
from tachikoma_orchestrator.executions.final_state import FinalState
from tachikoma_orchestrator.executions.waiters import AwaitedOrder
from tachikoma_orchestrator.processes.parts import Core

__all__ = ["check_revocation", "check_validity", "execute", "persist", "read_request", "rejections_recorded"]

T = TypeVar("T")
#: A signed request of either kind.
R = TypeVar("R", SignedRequest, SignedBatchRequest)

log = structlog.get_logger(__name__)

#: How long work is repeated while Redis is unavailable.
PERSIST_SECONDS = 300.0
#: Seconds between two attempts.
RETRY_SECONDS = 1.0


async def persist(work: Callable[[], Awaitable[T]]) -> T:
    """Repeat idempotent work until Redis responds, for up to `PERSIST_SECONDS`.

    Args:
        work: one attempt.

    Raises:
        Unavailable: Redis is unavailable for longer.
    """
    until = time.monotonic() + PERSIST_SECONDS
    backoff = Backoff(RETRY_SECONDS, RETRY_SECONDS)
    while True:
        try:
            return await work()
        except (RedisError, OSError) as error:
            log.warning("redis.failed", error=str(error)[:300])
            if time.monotonic() > until:
                raise Unavailable("the submitter cannot use its Redis; nothing was lost, try again") from error
        await backoff.wait()


def read_request(token: object, svid: Svid, kind: type[R]) -> tuple[R, Peer]:
    """Verify a signed request, and return it with its requester.

    Args:
        token: content of the message; an attacker may have written it.
        svid: the orchestrator's own identity.
        kind: the expected kind of request.

    Raises:
        Unauthenticated: no trusted requester signed the request, or it is for another orchestrator.
    """
    if not isinstance(token, str):
        raise Unauthenticated("the request is not signed")
    try:
        # It may have waited in the queue, and be read again after a restart, for longer than its certificate lasts.
        claims = verify(token, kind, svid.bundles, None, kept=True)
    except InvalidSignature as error:
        raise Unauthenticated(f"the request {error}") from None
    if claims.aud != str(svid.spiffe_id):
        raise Unauthenticated(f"the request is for {claims.aud[:300]}, not for {svid.spiffe_id}")
    if claims.exp - claims.iat > MAX_VALID.total_seconds():
        raise Unauthenticated(f"the request claims to be valid for more than {MAX_VALID}")
    requester = SpiffeId.parse(claims.iss)
    if is_agent(requester):
        raise Unauthenticated(f"{requester} is an agent; agents do not request commands")
    return claims, Peer(requester, "")


async def execute(core: Core, token: object) -> ExecResponse:
    """Run a signed request and return its result.

    The command is started at most once, however often the function is called with the same token.

    Raises:
        TachikomaError: the request is refused, as `Admitter.admit` refuses it, or it is not signed by a requester. Both
            are in the audit trail.
    """
    core.trail.check()
    stages.begin()
    with tracing.span("submission", kind=Kind.CONSUMER):
        return await _execute(core, token)


async def _execute(core: Core, token: object) -> ExecResponse:
    """Run a signed request and return its result; see `execute`."""
    async with rejections_recorded(core):
        claims, peer = read_request(token, core.identity.current(), SignedRequest)
        check_revocation(core, claims, peer)
        error_reporting.concerns(claims.jti)
        stages.identify(claims.jti)
        stages.passed(Stage.READ)
        with core.completions.expect(claims.jti) as end:
            await persist(lambda: _admit(core, claims, peer))
            core.completions.note_order(claims.jti, AwaitedOrder(claims.request.agent_id, ""))
            response = await persist(lambda: _result(core, claims.jti, end))
    if response.agent_id != claims.request.agent_id:
        agent = claims.request.agent_id
        reason = f"the ledger has its result from {response.agent_id}, but it was requested for {agent}"
        raise await core.evidence.altered(claims.jti, reason)
    return response


@asynccontextmanager
async def rejections_recorded(core: Core) -> AsyncIterator[None]:
    """Record in the audit trail that a signed request was not accepted as one."""
    try:
        yield
    except Unauthenticated as error:
        reason = str(error)
        code, subject = AuditCode.IDENTITY_REJECTED, "the queue of signed requests"
        await persist(lambda: core.trail.append_refusal(code, subject=subject, authorized="0", reason=reason))
        raise


def check_revocation(core: Core, claims: SignedRequest | SignedBatchRequest, peer: Peer) -> None:
    """Refuse a request that a person signed before or during a revocation.

    Raises:
        Unauthenticated: the person is revoked, or was since the signature.
    """
    member = Member.of(peer.spiffe_id)
    if member is None or peer.spiffe_id.trust_domain != core.identity.current().spiffe_id.trust_domain:
        return
    if reason := core.registry.revocations.refusal(member.key, from_ms(ms_of_seconds(claims.iat))):
        raise Unauthenticated(f"the request is not accepted: {reason}")


def check_validity(claims: SignedRequest | SignedBatchRequest) -> None:
    """Refuse a request that was not accepted in time. Raises Unauthenticated."""
    if time.time() >= claims.exp + CLOCK_SKEW_SECONDS:
        raise Unauthenticated(
            f"the signed request {claims.jti} was valid until {time.strftime('%F %T', time.gmtime(claims.exp))} UTC"
        )


async def _admit(core: Core, claims: SignedRequest, peer: Peer) -> None:
    """Admit a request, once.

    Raises:
        Unauthenticated: the signature has expired; otherwise as `Admitter.admit` raises.
    """
    request = claims.request.model_copy(update={"requested_by": str(peer)})
    record = await core.ledger.record(request.id)
    if record is not None and record.digest == request_digest(request):
        # A submitter that has ended admitted it. A change of policy since does not matter.
        return
    check_validity(claims)
    await core.admitter.admit(claims.request, peer)


async def _result(core: Core, exec_id: str, end: asyncio.Future[FinalState]) -> ExecResponse:
    """Return the result of an execution, at once if it has ended."""
    record = await core.ledger.record(exec_id)
    if record is None:
        raise NotFound(f"the execution {exec_id} is gone")
    if record.state.terminal:
        return (await core.evidence.final_state(record)).response()
    return (await end).response()
