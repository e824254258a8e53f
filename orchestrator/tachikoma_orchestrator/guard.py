"""Around every RPC: who calls, and what an error becomes.

The peer's X.509-SVID is verified against the bundle of the orchestrator's trust domain, beyond what TLS does; its
SPIFFE ID is the requester. Errors of our tree become gRPC statuses with `google.rpc` details; anything else is logged
and told as INTERNAL without its text.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextvars import ContextVar
from typing import Any

import grpc
import grpc.aio
import structlog
from cryptography import x509
from redis.exceptions import RedisError, ResponseError

from tachikoma.errors import PermissionDenied, ServerError, TachikomaError, Unauthenticated, Unavailable
from tachikoma.models import AuditCode
from tachikoma.spiffe import InvalidIdentity, SpiffeId
from tachikoma.svid import FileSvidSource
from tachikoma.wire import STATUS_DETAILS, error_to_details
from tachikoma_orchestrator.admission import Peer
from tachikoma_orchestrator.audit import AuditTrail

__all__ = ["Guard", "current_peer"]

log = structlog.get_logger(__name__)

_peer: ContextVar[Peer] = ContextVar("peer")


def current_peer() -> Peer:
    """Who called, inside an RPC."""
    return _peer.get()


def _address(peer: str) -> str:
    """The address in gRPC's `ipv4:127.0.0.1:4711`, `ipv6:%5B::1%5D:4711` or `unix:`."""
    kind, _, rest = peer.partition(":")
    if kind == "ipv4":
        return rest.rpartition(":")[0]
    if kind == "ipv6":
        return rest.rpartition(":")[0].replace("%5B", "").replace("%5D", "").strip("[]")
    return ""


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


class Guard(grpc.aio.ServerInterceptor):
    """The interceptor."""

    def __init__(self, identity: FileSvidSource, trail: AuditTrail) -> None:
        self._identity = identity
        self._trail = trail

    async def authenticate(self, context: grpc.aio.ServicerContext[Any, Any]) -> Peer:
        """Who is at the other end; a refusal goes on the record. Raises as `identify` does, and redis errors."""
        try:
            return self.identify(context)
        except (Unauthenticated, PermissionDenied) as error:
            log.warning("identity.rejected", peer=context.peer(), reason=str(error))
            self._trail.check()
            await self._trail.append(
                AuditCode.IDENTITY_REJECTED, authorized="0", client_ip=_address(context.peer()), reason=str(error)
            )
            raise

    def identify(self, context: grpc.aio.ServicerContext[Any, Any]) -> Peer:
        """Who is at the other end.

        Raises:
            Unauthenticated: nobody we know.
            PermissionDenied: an agent; agents take orders and give none.
        """
        auth: Mapping[str, Any] = context.auth_context()
        leaf = auth.get("x509_pem_cert")
        if not leaf:
            raise Unauthenticated("no client certificate")
        try:
            certificate = x509.load_pem_x509_certificate(bytes(leaf[0]))
            chain = b"".join(bytes(part) for part in auth.get("x509_pem_cert_chain", ()))
            sent = x509.load_pem_x509_certificates(chain) if chain else []
            intermediates = [other for other in sent if other != certificate]
            spiffe_id: SpiffeId = self._identity.current().bundle.verify(certificate, intermediates)
        except (InvalidIdentity, ValueError) as error:
            raise Unauthenticated(f"your certificate is not accepted: {error}") from None
        if spiffe_id.path.startswith("/agent/"):
            raise PermissionDenied(f"{spiffe_id} is an agent; agents do not call this service")
        return Peer(spiffe_id, _address(context.peer()))

    async def _abort(self, context: grpc.aio.ServicerContext[Any, Any], error: Exception) -> None:
        told = translate(error)
        await context.abort(told.code, str(told), ((STATUS_DETAILS, error_to_details(told)),))

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
                    _peer.set(await self.authenticate(context))
                    return await inner_unary(request, context)
                except Exception as error:
                    await self._abort(context, error)

            return grpc.unary_unary_rpc_method_handler(unary, handler.request_deserializer, handler.response_serializer)
        inner_stream = handler.unary_stream

        async def stream(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
            try:
                _peer.set(await self.authenticate(context))
                async for item in inner_stream(request, context):
                    yield item
            except Exception as error:
                await self._abort(context, error)

        return grpc.unary_stream_rpc_method_handler(stream, handler.request_deserializer, handler.response_serializer)
