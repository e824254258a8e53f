"""The interceptor around every RPC: it authenticates the caller and translates errors.

The caller is the SPIFFE ID in the peer's X.509-SVID, verified against the bundle of the ID's own trust domain; TLS
alone would accept any trusted issuer. TLS verifies a certificate once per connection only, and connections last. So the
guard verifies it again for every call. It also verifies the calls in progress when bundles change or a certificate
expires.

Errors of `tachikoma.errors` become gRPC statuses with `google.rpc` details. Any other error is logged, and its caller
gets INTERNAL without its text.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network
from typing import Any

import grpc
import grpc.aio
import structlog
from cryptography import x509
from google.protobuf.message import Message
from redis.exceptions import RedisError, ResponseError

from tachikoma.client.rpc_errors import STATUS_DETAILS, error_to_details
from tachikoma.config import stages
from tachikoma.errors import (
    PermissionDenied,
    ServerError,
    TachikomaError,
    Unauthenticated,
    Unavailable,
)
from tachikoma.identity.bundles import TrustBundles
from tachikoma.identity.join_token import agent_of
from tachikoma.identity.spiffe import InvalidIdentity, Member, is_agent
from tachikoma.identity.svid import SvidSource
from tachikoma.vocabulary.audit import AuditCode
from tachikoma_orchestrator.admission.call_quotas import CallQuotas
from tachikoma_orchestrator.agents.revocations import Revocations
from tachikoma_orchestrator.api.addresses import FORWARDED, client_address, peer_address
from tachikoma_orchestrator.api.call_measures import measured
from tachikoma_orchestrator.api.incoming import Parse, dialogue_of, first_message, parsed
from tachikoma_orchestrator.api.rules import RULES, SERVICE, Callers
from tachikoma_orchestrator.audit.refusals import address_subject
from tachikoma_orchestrator.audit.trail import AuditTrail
from tachikoma_orchestrator.caller import Peer
from tachikoma_orchestrator.metrics import Connections

__all__ = ["Context", "Guard", "abort", "current_peer", "translate"]

log = structlog.get_logger(__name__)

#: Seconds between two verifications of the calls in progress.
WATCH_SECONDS = 5.0

#: The context that gRPC passes to an RPC.
Context = grpc.aio.ServicerContext[Any, Any]

_peer: ContextVar[Peer] = ContextVar("peer")


def current_peer() -> Peer:
    """Return the caller of the current RPC."""
    return _peer.get()


def translate(error: Exception) -> TachikomaError:
    """Return the error that a caller gets for an error of the server."""
    if isinstance(error, TachikomaError):
        return error
    if isinstance(error, (RedisError, OSError)):
        log.warning("redis.failed", error=str(error))
        if isinstance(error, ResponseError):
            # For instance its disk or memory is full: Redis responds, but refuses every write.
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
    return ServerError("the orchestrator failed; the reason is in its log")


async def abort(context: Context, error: Exception) -> None:
    """End a call with the status of an error, and its `google.rpc` details."""
    translated = translate(error)
    details = ((STATUS_DETAILS, error_to_details(translated)),)
    await context.abort(grpc.StatusCode[translated.code], str(translated), details)


@lru_cache(maxsize=2048)
def _parsed_chain(leaf: bytes, chain: bytes) -> tuple[x509.Certificate, ...]:
    """Parse the certificate of a peer and those between it and the root. A caller shows the same ones in each call.

    Raises:
        ValueError: one of them is no certificate.
    """
    certificate = x509.load_pem_x509_certificate(leaf)
    sent = x509.load_pem_x509_certificates(chain) if chain else []
    return certificate, *[other for other in sent if other != certificate]


class _Distrusted(Unavailable):
    """The certificate of a call in progress is no longer trusted; the message is the reason."""


@dataclass(slots=True)
class _Call:
    """A call in progress."""

    peer: Peer
    certificate: x509.Certificate
    intermediates: list[x509.Certificate]
    #: The bundles it was last verified with, and the time until which that verification is valid.
    bundles: TrustBundles
    until: datetime
    #: The reason why the guard ends it; empty while it goes on.
    ended: str = ""
    #: Whether gRPC is sending one of its messages. A cancellation would then end the call without its reason.
    sending: bool = False

    def verify_again(self, bundles: TrustBundles) -> str:
        """Verify the certificate with current bundles. Return why it is not trusted; empty if it is."""
        try:
            _, self.until = bundles.verify_until(self.certificate, self.intermediates)
            self.bundles = bundles
        except InvalidIdentity as error:
            return str(error)
        return ""


class Guard(grpc.aio.ServerInterceptor):
    """Authenticates callers; `run` watches the calls in progress."""

    def __init__(
        self,
        identity: SvidSource,
        trail: AuditTrail,
        revocations: Revocations,
        proxies: Sequence[IPv4Network | IPv6Network] = (),
        quotas: CallQuotas | None = None,
    ) -> None:
        """Prepare a guard.

        Args:
            identity: the orchestrator's own; callers are verified with its bundles.
            trail: records rejected identities.
            revocations: agents that were revoked.
            proxies: networks of proxies whose `x-forwarded-for` is trusted.
            quotas: bound the calls in progress of each identity; None for the defaults.
        """
        self._identity = identity
        self._trail = trail
        self._revocations = revocations
        self._proxies = proxies
        self._quotas = quotas or CallQuotas()
        self._connections = Connections()
        #: Calls in progress, by their tasks.
        self._calls: dict[asyncio.Task[object], _Call] = {}

    def _address(self, context: Context) -> str:
        metadata = context.invocation_metadata() or ()
        forwarded = (str(value) for key, value in metadata if key == FORWARDED)
        return client_address(peer_address(context.peer()), forwarded, self._proxies)

    # --- authentication -----------------------------------------------------------------------------------------------

    async def authenticate(self, context: Context, method: str) -> _Call:
        """Authenticate the caller of a method; a refusal is recorded in the audit trail.

        Raises:
            Unauthenticated: the certificate is not trusted, or belongs to a revoked agent.
            PermissionDenied: the RPC has no rule, or the caller is an agent and the RPC is not for agents.
            redis errors: whether an agent was revoked cannot be read.
        """
        self._connections.used(context.peer())
        subject = address_subject(self._address(context))
        try:
            call = self.identify(context)
            subject = str(call.peer)
            callers = RULES.get(method.removeprefix(SERVICE))
            if callers is None:
                raise PermissionDenied(f"the guard has no rule for {method}, so it refuses every call of it")
            if is_agent(call.peer.spiffe_id):
                await self._check_agent(call, callers)
            elif self._revoked(call):
                await self._revocations.refresh()  # The person may have logged in again at another orchestrator.
                if reason := self._revoked(call):
                    raise Unauthenticated(f"your certificate is not accepted: {reason}")
            return call
        except (Unauthenticated, PermissionDenied) as error:
            log.warning("identity.rejected", peer=context.peer(), reason=str(error))
            self._trail.check()
            await self._trail.append_refusal(
                AuditCode.IDENTITY_REJECTED, subject=subject, authorized="0", client_ip=self._address(context),
                reason=str(error),
            )  # fmt: skip
            raise

    def identify(self, context: Context) -> _Call:
        """Verify the certificate that the peer showed.

        Raises:
            Unauthenticated: the peer showed no certificate, or one that is not trusted.
        """
        auth = context.auth_context()
        leaf = list(auth.get("x509_pem_cert") or ())
        if not leaf:
            raise Unauthenticated("no client certificate")
        bundles = self._identity.current().bundles
        try:
            chain = b"".join(bytes(part) for part in auth.get("x509_pem_cert_chain", ()))
            certificate, *intermediates = _parsed_chain(bytes(leaf[0]), chain)
            spiffe_id, until = bundles.verify_until(certificate, intermediates)
        except (InvalidIdentity, ValueError) as error:
            raise Unauthenticated(f"your certificate is not accepted: {error}") from None
        peer = Peer(spiffe_id, self._address(context), certificate)
        return _Call(peer, certificate, intermediates, bundles, until)

    async def _check_agent(self, call: _Call, callers: Callers) -> None:
        if callers is not Callers.AGENTS:
            raise PermissionDenied(f"{call.peer} is an agent; agents do not call this service")
        # Renewals are rare, so the latest revocations are read for each.
        await self._revocations.refresh()
        agent = agent_of(call.peer.spiffe_id)
        if reason := self._revocations.refusal(agent, call.certificate.not_valid_before_utc):
            raise Unauthenticated(f"your certificate is not accepted: {reason}")

    def _revoked(self, call: _Call) -> str:
        """Return why a valid certificate of a person of this trust domain is refused; empty if it is accepted."""
        member, domain = Member.of(call.peer.spiffe_id), self._identity.current().spiffe_id.trust_domain
        if member is None or call.peer.spiffe_id.trust_domain != domain:
            return ""
        return self._revocations.refusal(member.key, call.certificate.not_valid_before_utc)

    # --- calls in progress --------------------------------------------------------------------------------------------

    @contextmanager
    def _in_progress(self, call: _Call) -> Iterator[None]:
        """Register a call, so that `run` can end it while the block runs."""
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
            raise _Distrusted(call.ended) from None
        finally:
            self._calls.pop(task, None)

    async def run(self) -> None:
        """End calls in progress whose certificate is no longer trusted. Runs until it is cancelled."""
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            self.check_calls()

    def check_calls(self) -> None:
        """Verify the calls in progress once more: bundles change, certificates expire, and people are revoked."""
        bundles, now = self._identity.current().bundles, datetime.now(UTC)
        for task, call in list(self._calls.items()):
            if task.done():
                # The generator of a stream that was abandoned is finalised at some later time.
                self._calls.pop(task, None)
                continue
            if call.ended:
                if call.sending:
                    # Its caller has not taken a message since the last look.
                    task.cancel()
                continue
            call.ended = "" if is_agent(call.peer.spiffe_id) else self._revoked(call)
            if not call.ended and (call.bundles is not bundles or now > call.until):
                call.ended = call.verify_again(bundles)
            if call.ended:
                log.warning("call.ended", peer=str(call.peer), address=call.peer.address, reason=call.ended)
                if not call.sending:
                    task.cancel()

    @staticmethod
    async def _abort(context: Context, error: Exception) -> None:
        if isinstance(error, _Distrusted):
            # The same status as for a broken connection: clients resume the call with their current identity.
            await context.abort(grpc.StatusCode.UNAVAILABLE, f"your certificate is not accepted any more: {error}")
        await abort(context, error)

    # --- the interceptor ----------------------------------------------------------------------------------------------

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Wrap the handlers of our own services; health and reflection are open to every peer that TLS accepts."""
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or not method.startswith("/tachikoma."):
            return handler
        # The handlers get a stream of requests, of which they read one. So the caller is authenticated before its
        # request is received and parsed. On the wire there is no difference.
        if handler.unary_unary is not None:
            return grpc.stream_unary_rpc_method_handler(
                self._guarded(handler.unary_unary, method, handler.request_deserializer),
                response_serializer=handler.response_serializer,
            )
        if handler.unary_stream is not None:
            streaming = self._guarded_stream(handler.unary_stream, method, handler.request_deserializer)
        else:
            streaming = self._guarded_stream(handler.stream_stream, method, handler.request_deserializer, dialogue=True)
        return grpc.stream_stream_rpc_method_handler(streaming, response_serializer=handler.response_serializer)

    @asynccontextmanager
    async def _received(
        self, call: _Call, requests: AsyncIterator[bytes], parse: Parse, *, stream: bool
    ) -> AsyncIterator[Message]:
        """Receive and parse the request of an authenticated call, which counts for its caller while the block runs.

        Raises:
            ResourceExhausted: the caller has too many calls in progress.
            InvalidRequest: no request comes, or it cannot be parsed.
        """
        identity = str(call.peer)
        with self._quotas.call(identity, stream=stream):
            async with self._quotas.receiving(identity):
                raw = await first_message(requests)
                request = parsed(raw, parse)
            with self._quotas.holding(identity, len(raw)):
                del raw
                yield request

    def _guarded(
        self, behaviour: Callable[[Message, Context], Awaitable[Message]], method: str, parse: Parse
    ) -> Callable[[AsyncIterator[bytes], Context], Awaitable[Message | None]]:
        async def call(requests: AsyncIterator[bytes], context: Context) -> Message | None:
            stages.begin()
            try:
                with measured(method, context), self._in_progress(current := await self.authenticate(context, method)):
                    async with self._received(current, requests, parse, stream=False) as request:
                        return await behaviour(request, context)
            except Exception as error:
                await self._abort(context, error)
                return None

        return call

    def _guarded_stream(
        self,
        behaviour: Callable[[Message | AsyncIterator[Message], Context], AsyncIterator[Message]],
        method: str,
        parse: Parse,
        *,
        dialogue: bool = False,
    ) -> Callable[[AsyncIterator[bytes], Context], AsyncIterator[Message]]:
        """Guard an RPC that answers with a stream; in a dialogue, further requests follow the first one."""

        async def call(requests: AsyncIterator[bytes], context: Context) -> AsyncIterator[Message]:
            try:
                with (
                    measured(method, context) as answer,
                    self._in_progress(current := await self.authenticate(context, method)),
                ):
                    async with self._received(current, requests, parse, stream=True) as first:
                        async for item in behaviour(
                            dialogue_of(first, requests, parse) if dialogue else first, context
                        ):
                            current.sending = True
                            answer.sent(item)
                            yield item
                            current.sending = False
                            if current.ended:
                                raise _Distrusted(current.ended)
            except Exception as error:
                await self._abort(context, error)

        return call
