"""Where hosts join that have no identity yet: an address of its own, with one method, for whoever has a token.

The server shows its certificate, clients show none. Whoever reaches it may try, so all that costs anything is bounded.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from datetime import UTC, datetime
from ipaddress import ip_address, ip_network
from typing import Any

import grpc
import grpc.aio
import structlog

from tachikoma.client.rpc_errors import STATUS_DETAILS, error_to_details
from tachikoma.errors import InvalidRequest, ResourceExhausted, Unauthenticated
from tachikoma.exec.v1 import remote_execution_pb2 as pb
from tachikoma.exec.v1.remote_execution_pb2_grpc import JoiningServicer
from tachikoma.policy.redaction import redact
from tachikoma.vocabulary.audit import AuditCode
from tachikoma_orchestrator.agents.enrolment import TokenRefused
from tachikoma_orchestrator.agents.joining import JoinAttempt, Joins
from tachikoma_orchestrator.api.addresses import peer_address
from tachikoma_orchestrator.api.guard import translate
from tachikoma_orchestrator.audit.findings import Bound
from tachikoma_orchestrator.audit.trail import AuditTrail

__all__ = ["Attempts", "Joining", "joining_server"]

log = structlog.get_logger(__name__)

#: What is told of every token that is not accepted; the record has more.
REFUSED = (
    "the token is not accepted: it was used or replaced, has expired, or never was one; "
    "`tachikoma agents enroll` makes another"
)
#: Largest message; a request has about 400 bytes.
MAX_MESSAGE_BYTES = 16 * 1024
#: Calls under way at once; more are refused as RESOURCE_EXHAUSTED.
MAX_CALLS = 64
#: How long a connection may stay without a call, and at all.
IDLE_MS, AGE_MS = 10_000, 60_000
#: Refusals that an address, or a network of IPv6, may have in a minute; then it waits until that is over.
MAX_REFUSALS = 10
#: Addresses of which refusals are remembered.
MAX_ADDRESSES = 4096
#: Longest wait until a certificate is valid that follows a revocation.
MAX_WAIT_SECONDS = 5.0


class Attempts:
    """Who was refused how often in the last minute."""

    def __init__(self) -> None:
        #: Since when, and how often.
        self._refused: OrderedDict[str, tuple[float, int]] = OrderedDict()

    @staticmethod
    def _who(address: str) -> str:
        try:
            version = ip_address(address).version
        except ValueError:
            return ""
        # Of IPv6 everybody has a whole network.
        return address if version == 4 else str(ip_network(f"{address}/64", strict=False))

    def wait_seconds(self, address: str) -> float:
        """How long an address has to wait; 0 where it may try."""
        since, number = self._refused.get(self._who(address), (0.0, 0))
        left = since + 60 - time.monotonic()
        return left if number >= MAX_REFUSALS and left > 0 else 0.0

    def refused(self, address: str) -> None:
        """Remember a refusal."""
        who, now = self._who(address), time.monotonic()
        since, number = self._refused.get(who, (now, 0))
        if since + 60 <= now:
            since, number = now, 0
        self._refused[who] = since, number + 1
        self._refused.move_to_end(who)
        while len(self._refused) > MAX_ADDRESSES:
            self._refused.popitem(last=False)


class Joining(JoiningServicer):
    """`tachikoma.exec.v1.Joining`."""

    def __init__(self, joins: Joins, trail: AuditTrail) -> None:
        self._joins = joins
        self._trail = trail
        self._attempts = Attempts()
        self._bound = Bound()

    async def Join(self, request: pb.JoinRequest, context: Any) -> pb.JoinResponse:  # noqa: N802
        address = peer_address(context.peer())
        try:
            return await self._join(request, address)
        except Exception as error:
            told = translate(error)
            await context.abort(grpc.StatusCode[told.code], str(told), ((STATUS_DETAILS, error_to_details(told)),))
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
        # Only shortly after a revocation: the certificate is not accepted before.
        wait = (issued.valid_from - datetime.now(UTC)).total_seconds()
        await asyncio.sleep(min(max(wait, 0.0), MAX_WAIT_SECONDS))
        return pb.JoinResponse(
            certificate_chain=issued.chain_pem,
            bundle=issued.bundle_pem,
            redis_password=issued.redis_password,
            renew_address=issued.renew_address,
        )

    async def _refuse(self, request: pb.JoinRequest, address: str, why: str) -> None:
        self._attempts.refused(address)
        shown = redact((request.agent_id[:64],))[0]
        log.warning("join.refused", agent=shown, address=address, reason=why)
        if self._bound.admits():
            await self._trail.append(
                AuditCode.JOIN_REFUSED, agent_id=shown, authorized="0", client_ip=address,
                reason=why[:300] + self._bound.left_out(),
            )  # fmt: skip


def joining_server() -> grpc.aio.Server:
    """A server for it, and nothing else."""
    return grpc.aio.server(
        options=[
            ("grpc.max_send_message_length", 1024 * 1024),
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_metadata_size", MAX_MESSAGE_BYTES),
            ("grpc.max_concurrent_streams", 4),
            ("grpc.max_connection_idle_ms", IDLE_MS),
            ("grpc.max_connection_age_ms", AGE_MS),
            ("grpc.max_connection_age_grace_ms", IDLE_MS),
            ("grpc.so_reuseport", 0),
        ],
        maximum_concurrent_rpcs=MAX_CALLS,
    )
