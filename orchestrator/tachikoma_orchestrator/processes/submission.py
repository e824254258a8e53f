"""Requests that Celery applications signed: verified, admitted as everybody's, and waited for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import structlog
from redis.exceptions import RedisError

from tachikoma.celery import MAX_VALID
from tachikoma.config import error_reporting
from tachikoma.errors import NotFound, Unauthenticated, Unavailable
from tachikoma.identity.signed_messages import SignedRequest
from tachikoma.identity.signing import CLOCK_SKEW_SECONDS, InvalidSignature, verify
from tachikoma.identity.spiffe import SpiffeId, is_agent
from tachikoma.vocabulary.audit import AuditCode
from tachikoma.vocabulary.results import ExecResponse
from tachikoma_orchestrator.admission.digests import request_digest
from tachikoma_orchestrator.caller import Peer
from tachikoma_orchestrator.executions.final_state import FinalState
from tachikoma_orchestrator.processes.parts import Core

__all__ = ["execute", "persist"]

T = TypeVar("T")

log = structlog.get_logger(__name__)

#: How long a request is tried again while Redis is away, and between two attempts.
PERSIST_SECONDS = 300.0
RETRY_SECONDS = 1.0


async def persist(work: Callable[[], Awaitable[T]]) -> T:
    """Do what bears repetition until Redis answers, for `PERSIST_SECONDS`.

    Args:
        work: one attempt.

    Raises:
        Unavailable: Redis is away for longer.
    """
    until = time.monotonic() + PERSIST_SECONDS
    while True:
        try:
            return await work()
        except (RedisError, OSError) as error:
            log.warning("redis.failed", error=str(error)[:300])
            if time.monotonic() > until:
                raise Unavailable("the submitter cannot use its Redis; nothing was lost, try again") from error
        await asyncio.sleep(RETRY_SECONDS)


def _read(core: Core, token: Any) -> tuple[SignedRequest, Peer]:
    """A signed request and who signed it.

    Raises:
        Unauthenticated: nobody we know or who may ask, or it is not for us.
    """
    svid = core.identity.current()
    if not isinstance(token, str):
        raise Unauthenticated("the request is not signed")
    try:
        # It may have waited in the queue, and be read again after a restart, for longer than its certificate lasts.
        claims = verify(token, SignedRequest, svid.bundles, None, kept=True)
    except InvalidSignature as error:
        raise Unauthenticated(f"the request {error}") from None
    if claims.aud != str(svid.spiffe_id):
        raise Unauthenticated(f"the request is for {claims.aud[:300]}, not for {svid.spiffe_id}")
    if claims.exp - claims.iat > MAX_VALID.total_seconds():
        raise Unauthenticated(f"the request says that it is good for more than {MAX_VALID}")
    requester = SpiffeId.parse(claims.iss)
    if is_agent(requester):
        raise Unauthenticated(f"{requester} is an agent; agents do not ask for commands")
    return claims, Peer(requester, "")


async def _admit(core: Core, claims: SignedRequest, peer: Peer) -> None:
    """Admit it, once. Raises as `Admitter.admit` does, and Unauthenticated when it is too late."""
    request = claims.request.model_copy(update={"requested_by": str(peer)})
    record = await core.ledger.record(request.id)
    if record is not None and record.digest == request_digest(request):
        # It was admitted before, for a submitter that ended then; what policy says by now is no matter.
        return
    if time.time() >= claims.exp + CLOCK_SKEW_SECONDS:
        raise Unauthenticated(
            f"the signed request {request.id} was good until {time.strftime('%F %T', time.gmtime(claims.exp))} UTC"
        )
    await core.admitter.admit(claims.request, peer)


async def _end(core: Core, exec_id: str, end: asyncio.Future[FinalState]) -> ExecResponse:
    record = await core.ledger.record(exec_id)
    if record is None:
        raise NotFound(f"the execution {exec_id} is gone")
    if record.state.terminal:
        return (await core.evidence.final_state(record)).response()
    return (await end).response()


async def execute(core: Core, token: Any) -> ExecResponse:
    """Run a signed request to its end.

    However often it is called with the same token, the command is started at most once.

    Raises:
        TachikomaError: it was refused, as `Admitter.admit` refuses; or nobody who may ask for it signed it. Either
            is on the record.
    """
    core.trail.check()
    try:
        claims, peer = _read(core, token)
        error_reporting.concerns(claims.jti)
        with core.completions.expect(claims.jti) as end:
            await persist(lambda: _admit(core, claims, peer))
            response = await persist(lambda: _end(core, claims.jti, end))
    except Unauthenticated as error:
        reason = str(error)
        await persist(lambda: core.trail.append(AuditCode.IDENTITY_REJECTED, authorized="0", reason=reason))
        raise
    if response.agent_id != claims.request.agent_id:
        why = f"the ledger has the end of it from {response.agent_id}, and it was for {claims.request.agent_id}"
        raise await core.evidence.altered(claims.jti, why)
    return response
