"""Around every RPC: who calls, from where, and what an error becomes.

The peer's X.509-SVID is verified against the bundle of its ID's own trust domain, beyond what TLS does; its SPIFFE ID
is the requester. TLS looks at a certificate once for each connection, and connections last: so it is looked at again
for every call, and while a call lasts as often as the bundles change or the certificate may have ended.

Errors of our tree become gRPC statuses with `google.rpc` details; anything else is logged and told as INTERNAL without
its text.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from ipaddress import IPv4Network, IPv6Network
from typing import Any

import grpc
import grpc.aio
import structlog
from cryptography import x509
from redis.exceptions import RedisError, ResponseError

from tachikoma.client.rpc_errors import STATUS_DETAILS, error_to_details
from tachikoma.errors import PermissionDenied, ServerError, TachikomaError, Unauthenticated, Unavailable
from tachikoma.identity.bundles import TrustBundles
from tachikoma.identity.join_token import agent_of
from tachikoma.identity.spiffe import InvalidIdentity, is_agent
from tachikoma.identity.svid import SvidSource
from tachikoma.vocabulary.audit import AuditCode
from tachikoma_orchestrator.agents.revocations import Revocations
from tachikoma_orchestrator.api.addresses import FORWARDED, client_address, peer_address
from tachikoma_orchestrator.audit.trail import AuditTrail
from tachikoma_orchestrator.caller import Peer

__all__ = ["RULES", "Callers", "Guard", "current_peer"]

log = structlog.get_logger(__name__)

#: Between looks at the certificates of calls under way.
WATCH_SECONDS = 5.0

SERVICE = "/tachikoma.exec.v1.RemoteExecution/"


class Callers(StrEnum):
    """The identities that may call an RPC."""

    #: Every identity, except agents. Policy or the list of operators decides further, inside the RPC.
    USERS = "users"
    #: Agents that are not revoked, each for itself.
    AGENTS = "agents"


#: Who may call which RPC. The guard refuses every RPC that is not listed here.
RULES: Mapping[str, Callers] = {
    "Execute": Callers.USERS,
    "ExecuteStream": Callers.USERS,
    "Submit": Callers.USERS,
    "Attach": Callers.USERS,
    "Cancel": Callers.USERS,
    "Status": Callers.USERS,
    "List": Callers.USERS,
    "ListApprovals": Callers.USERS,
    "GetApproval": Callers.USERS,
    "Approve": Callers.USERS,
    "Reject": Callers.USERS,
    "ListAgents": Callers.USERS,
    "DrainAgent": Callers.USERS,
    "ResumeAgent": Callers.USERS,
    "GetPolicyStatus": Callers.USERS,
    "ListAuditEvents": Callers.USERS,
    "ListSchedules": Callers.USERS,
    "NextDueTimes": Callers.USERS,
    "PauseSchedule": Callers.USERS,
    "ResumeSchedule": Callers.USERS,
    "RunSchedule": Callers.USERS,
    "ListScheduledRuns": Callers.USERS,
    "EnrollAgent": Callers.USERS,
    "RevokeAgent": Callers.USERS,
    "RenewAgent": Callers.AGENTS,
}

_peer: ContextVar[Peer] = ContextVar("peer")


def current_peer() -> Peer:
    """Who called, inside an RPC."""
    return _peer.get()


def translate(error: Exception) -> TachikomaError:
    """What a caller is told of an error."""
    if isinstance(error, TachikomaError):
        return error
    if isinstance(error, (RedisError, OSError)):
        log.warning("redis.failed", error=str(error))
        if isinstance(error, ResponseError):
            # For instance a full disk or memory: it answers, but takes nothing.
            return Unavailable(
                f"the orchestrator's Redis refuses: {str(error)[:300]}",
                metadata={"dependency": "redis"},
                retry_after_seconds=5,
            )
        return Unavailable(
            "the orchestrator cannot use its Redis now; nothing was lost, try again",
            metadata={"dependency": "redis"},
            retry_after_seconds=1,
        )
    log.error("call.failed", exc_info=error)
    return ServerError("the orchestrator failed; its log says how")


class _Ended(Exception):
    """A call's peer is not trusted any more; the message says why."""


@dataclass(slots=True)
class _Call:
    """A call under way."""

    peer: Peer
    certificate: x509.Certificate
    intermediates: list[x509.Certificate]
    #: The bundles it was last verified with, and until when that holds.
    bundles: TrustBundles
    until: datetime
    #: Why it was ended, if it was.
    ended: str = ""


class Guard(grpc.aio.ServerInterceptor):
    """The interceptor."""

    def __init__(
        self,
        identity: SvidSource,
        trail: AuditTrail,
        revocations: Revocations,
        proxies: Sequence[IPv4Network | IPv6Network] = (),
    ) -> None:
        self._identity = identity
        self._trail = trail
        self._revocations = revocations
        self._proxies = proxies
        #: By the task each runs in.
        self._calls: dict[asyncio.Task[Any], _Call] = {}

    def _address(self, context: grpc.aio.ServicerContext[Any, Any]) -> str:
        metadata = context.invocation_metadata() or ()
        forwarded = (str(value) for key, value in metadata if key == FORWARDED)
        return client_address(peer_address(context.peer()), forwarded, self._proxies)

    async def authenticate(self, context: grpc.aio.ServicerContext[Any, Any], method: str) -> _Call:
        """Who is at the other end, who may call that method at all; a refusal goes on the record.

        Raises:
            Unauthenticated: nobody we know, or a revoked agent.
            PermissionDenied: an agent; agents take orders and give none.
            redis errors: it is unknown whether the agent is revoked.
        """
        try:
            callers = RULES.get(method.removeprefix(SERVICE))
            if callers is None:
                raise PermissionDenied(f"the guard has no rule for {method}, so it refuses every call of it")
            call = self.identify(context)
            if is_agent(call.peer.spiffe_id):
                await self._check_agent(call, callers)
            return call
        except (Unauthenticated, PermissionDenied) as error:
            log.warning("identity.rejected", peer=context.peer(), reason=str(error))
            self._trail.check()
            await self._trail.append(
                AuditCode.IDENTITY_REJECTED, authorized="0", client_ip=self._address(context), reason=str(error)
            )
            raise

    def identify(self, context: grpc.aio.ServicerContext[Any, Any]) -> _Call:
        """Who is at the other end.

        Raises:
            Unauthenticated: nobody we know.
        """
        auth: Mapping[str, Any] = context.auth_context()
        leaf = auth.get("x509_pem_cert")
        if not leaf:
            raise Unauthenticated("no client certificate")
        bundles = self._identity.current().bundles
        try:
            certificate = x509.load_pem_x509_certificate(bytes(leaf[0]))
            chain = b"".join(bytes(part) for part in auth.get("x509_pem_cert_chain", ()))
            sent = x509.load_pem_x509_certificates(chain) if chain else []
            intermediates = [other for other in sent if other != certificate]
            spiffe_id, until = bundles.verify_until(certificate, intermediates)
        except (InvalidIdentity, ValueError) as error:
            raise Unauthenticated(f"your certificate is not accepted: {error}") from None
        peer = Peer(spiffe_id, self._address(context), certificate)
        return _Call(peer, certificate, intermediates, bundles, until)

    async def _check_agent(self, call: _Call, callers: Callers) -> None:
        if callers is not Callers.AGENTS:
            raise PermissionDenied(f"{call.peer} is an agent; agents do not call this service")
        # It is seldom called, so it is asked for what holds now.
        await self._revocations.refresh()
        agent = agent_of(call.peer.spiffe_id)
        if why := self._revocations.refusal(agent, call.certificate.not_valid_before_utc):
            raise Unauthenticated(f"your certificate is not accepted: {why}")

    @contextmanager
    def _under_way(self, call: _Call) -> Iterator[None]:
        """While it lasts, the call ends when its peer is not trusted any more."""
        task = asyncio.current_task()
        assert task is not None
        _peer.set(call.peer)
        self._calls[task] = call
        try:
            yield
        except asyncio.CancelledError:
            if not call.ended:
                raise
            task.uncancel()
            raise _Ended(call.ended) from None
        finally:
            self._calls.pop(task, None)

    async def watch(self) -> None:
        """End calls under way whose peer is not trusted any more. Runs until it is cancelled."""
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            bundles, now = self._identity.current().bundles, datetime.now(UTC)
            for task, call in list(self._calls.items()):
                if task.done():
                    # Its generator was left where it was, and is finalised some time.
                    self._calls.pop(task, None)
                    continue
                if call.ended or (call.bundles is bundles and now <= call.until):
                    continue
                try:
                    _, call.until = bundles.verify_until(call.certificate, call.intermediates)
                    call.bundles = bundles
                except InvalidIdentity as error:
                    call.ended = str(error)
                    log.warning("call.ended", peer=str(call.peer), address=call.peer.address, reason=call.ended)
                    task.cancel()

    async def _abort(self, context: grpc.aio.ServicerContext[Any, Any], error: Exception) -> None:
        if isinstance(error, _Ended):
            # Like a connection that broke: clients take the call up again, with the identity they have by now.
            await context.abort(grpc.StatusCode.UNAVAILABLE, f"your certificate is not accepted any more: {error}")
        told = translate(error)
        await context.abort(grpc.StatusCode[told.code], str(told), ((STATUS_DETAILS, error_to_details(told)),))

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        handler = await continuation(handler_call_details)
        if handler is None or not handler_call_details.method.startswith("/tachikoma."):
            return handler
        if handler.unary_unary is not None:
            inner_unary = handler.unary_unary

            async def unary(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
                try:
                    with self._under_way(await self.authenticate(context, handler_call_details.method)):
                        return await inner_unary(request, context)
                except Exception as error:
                    await self._abort(context, error)

            return grpc.unary_unary_rpc_method_handler(unary, handler.request_deserializer, handler.response_serializer)
        inner_stream = handler.unary_stream

        async def stream(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
            try:
                with self._under_way(await self.authenticate(context, handler_call_details.method)):
                    async for item in inner_stream(request, context):
                        yield item
            except Exception as error:
                await self._abort(context, error)

        return grpc.unary_stream_rpc_method_handler(stream, handler.request_deserializer, handler.response_serializer)
