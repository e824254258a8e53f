"""The gRPC service with which hosts and people that have no identity join; it listens on an address of its own.

The server shows its certificate, clients show none. Anyone who reaches the address may try a token, so everything that
costs memory, time or space in the audit trail is bounded.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from dataclasses import dataclass
from datetime import UTC, datetime
from ipaddress import ip_address, ip_network

import grpc
import grpc.aio
import structlog

from tachikoma.errors import InvalidRequest, ResourceExhausted, Unauthenticated
from tachikoma.exec.v1 import remote_execution_pb2 as pb
from tachikoma.exec.v1.remote_execution_pb2_grpc import JoiningServicer
from tachikoma.policy.masking.redaction import redact
from tachikoma.vocabulary.audit import AuditCode
from tachikoma_orchestrator.agents.enrolment import TokenRefused
from tachikoma_orchestrator.agents.joining import JoinAttempt, Joins
from tachikoma_orchestrator.api.addresses import peer_address
from tachikoma_orchestrator.api.guard import Context, abort
from tachikoma_orchestrator.audit.findings import Bound
from tachikoma_orchestrator.audit.refusals import address_subject
from tachikoma_orchestrator.audit.trail import AuditTrail

__all__ = ["Attempts", "Joining", "joining_server"]

log = structlog.get_logger(__name__)

#: The one message for every token that is not accepted; the reason is in the audit trail only.
REFUSED = (
    "the token is not accepted: it was used or replaced, has expired, or never was one; "
    "`tachikoma agents enroll` makes another"
)
#: Largest request and metadata; a request has about 400 bytes.
MAX_REQUEST_BYTES = 16 * 1024
#: Calls in progress at once; more are refused as RESOURCE_EXHAUSTED.
MAX_CALLS = 64
#: Longest life of a connection without a call, and of any connection.
IDLE_MS, AGE_MS = 10_000, 60_000
#: Refusals of one address, or one IPv6 network, in a minute; after that it waits until the minute is over.
MAX_REFUSALS = 10
#: Addresses whose refusals are remembered.
MAX_ADDRESSES = 4096
#: Longest wait until a certificate that follows a revocation becomes valid.
MAX_WAIT_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class _Refusals:
    """Refusals of one address within a minute."""

    #: Time of the first one, by the monotonic clock in seconds.
    since: float
    number: int

    def over(self, now: float) -> bool:
        return self.since + 60 <= now


class Attempts:
    """Counts the refused attempts of each address in the last minute."""

    def __init__(self) -> None:
        #: By address or network, the latest refusal last.
        self._refused: OrderedDict[str, _Refusals] = OrderedDict()

    @staticmethod
    def _network(address: str) -> str:
        try:
            version = ip_address(address).version
        except ValueError:
            return ""
        # A host with IPv6 usually has a whole network of addresses.
        return address if version == 4 else str(ip_network(f"{address}/64", strict=False))

    def wait_seconds(self, address: str) -> float:
        """Return how long an address has to wait; 0 if it may try now."""
        refusals, now = self._refused.get(self._network(address)), time.monotonic()
        if refusals is None or refusals.number < MAX_REFUSALS or refusals.over(now):
            return 0.0
        return refusals.since + 60 - now

    def refused(self, address: str) -> None:
        """Count a refusal."""
        network, now = self._network(address), time.monotonic()
        refusals = self._refused.get(network)
        if refusals is None or refusals.over(now):
            refusals = _Refusals(now, 0)
        self._refused[network] = _Refusals(refusals.since, refusals.number + 1)
        self._refused.move_to_end(network)
        while len(self._refused) > MAX_ADDRESSES:
            self._refused.popitem(last=False)


class Joining(JoiningServicer):
    """`tachikoma.exec.v1.Joining`."""

    def __init__(self, joins: Joins, trail: AuditTrail) -> None:
        self._joins = joins
        self._trail = trail
        self._attempts = Attempts()
        self._bound = Bound()

    async def Join(self, request: pb.JoinRequest, context: Context) -> pb.JoinResponse:  # noqa: N802
        try:
            return await self._join(request, peer_address(context.peer()))
        except Exception as error:
            await abort(context, error)
            raise

    async def _join(self, request: pb.JoinRequest, address: str) -> pb.JoinResponse:
        if wait := self._attempts.wait_seconds(address):
            raise ResourceExhausted("too many tokens were refused; try again later", retry_after_seconds=wait)
        self._trail.check()
        try:
            issued = await self._joins.join(JoinAttempt(request.agent_id, request.secret, request.csr, address))
        except TokenRefused as error:
            await self._refuse(request, address, str(error))
            raise Unauthenticated(REFUSED) from None
        except InvalidRequest as error:
            await self._refuse(request, address, str(error))
            raise
        # A certificate that is valid from before the agent's revocation would be refused; directly after it, one waits.
        wait = (issued.valid_from - datetime.now(UTC)).total_seconds()
        await asyncio.sleep(min(max(wait, 0.0), MAX_WAIT_SECONDS))
        return pb.JoinResponse(
            certificate_chain=issued.chain_pem,
            bundle=issued.bundle_pem,
            redis_password=issued.redis_password,
            redis_url=issued.redis_url,
            renew_address=issued.renew_address,
        )

    async def _refuse(self, request: pb.JoinRequest, address: str, reason: str) -> None:
        """Count a refusal, log it, and record it in the audit trail unless too many were recorded just now."""
        self._attempts.refused(address)
        shown = redact((request.agent_id[:64],))[0]
        log.warning("join.refused", agent=shown, address=address, reason=reason)
        if self._bound.admits():
            await self._trail.append_refusal(
                AuditCode.JOIN_REFUSED, subject=address_subject(address), agent_id=shown, authorized="0",
                client_ip=address, reason=reason[:300] + self._bound.left_out(),
            )  # fmt: skip


def joining_server() -> grpc.aio.Server:
    """Return a server with the bounds of this service, to which nothing else is added."""
    return grpc.aio.server(
        options=[
            ("grpc.max_send_message_length", 1024 * 1024),
            ("grpc.max_receive_message_length", MAX_REQUEST_BYTES),
            ("grpc.max_metadata_size", MAX_REQUEST_BYTES),
            ("grpc.max_concurrent_streams", 4),
            ("grpc.max_connection_idle_ms", IDLE_MS),
            ("grpc.max_connection_age_ms", AGE_MS),
            ("grpc.max_connection_age_grace_ms", IDLE_MS),
            ("grpc.so_reuseport", 0),
        ],
        maximum_concurrent_rpcs=MAX_CALLS,
    )
