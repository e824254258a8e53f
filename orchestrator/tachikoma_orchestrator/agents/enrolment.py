"""Who may be an agent: enrolment with a token, certificates, and cutting off.

1. An operator enrols an agent. The secret of its token is told once; Redis keeps its SHA-256, in an enrolment that the
   orchestrator signed, so that whoever owns Redis can make none.
2. A host joins with the token (`joining.py`), once: a script uses the enrolment up. It gets a certificate for its own
   key, and the password of a Redis user that is made for it.
3. It renews the certificate by itself, over mTLS.
4. An operator cuts it off: from then on nothing of it counts (`revocations.py`), and what it was to run is ended.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import math
import secrets
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import structlog
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from redis.exceptions import RedisError

from tachikoma.errors import (
    AgentUnknown,
    ConfigurationError,
    FailedPrecondition,
    InvalidRequest,
    PermissionDenied,
    ServerError,
    Unavailable,
)
from tachikoma.identity.authority import CertificateAuthority, check_request, new_key
from tachikoma.identity.join_token import SECRET_BYTES, JoinToken, agent_of
from tachikoma.identity.signed_messages import Enrolment as SignedEnrolment
from tachikoma.identity.signed_messages import InvalidSignature, sign, verify
from tachikoma.identity.spiffe import InvalidIdentity, SpiffeId, agent_id, key_digest
from tachikoma.identity.svid import Svid, SvidSource
from tachikoma.redis import keys
from tachikoma.redis.commands import Redis
from tachikoma.vocabulary.agents import Enrolment, Revocation
from tachikoma.vocabulary.states import ExecState
from tachikoma.vocabulary.types import format_duration, is_identifier
from tachikoma_orchestrator.agents.redis_accounts import Accounts
from tachikoma_orchestrator.agents.revocations import Revocations
from tachikoma_orchestrator.caller import Peer
from tachikoma_orchestrator.executions.cancel import send_cancel
from tachikoma_orchestrator.executions.ledger import Ledger, Record
from tachikoma_orchestrator.store.scripts import Runner, Script

__all__ = ["Authority", "Certificate", "Membership", "TokenRefused"]

log = structlog.get_logger(__name__)

#: How long a token lasts where nobody says, and at the most.
DEFAULT_TTL, MAX_TTL = timedelta(minutes=15), timedelta(days=1)
#: Executions looked at in one step.
BATCH = 500


class TokenRefused(Exception):
    """A token that is not accepted; why is for the record, not for whoever showed it."""


@dataclass(frozen=True, slots=True)
class Authority:
    """What certificates for agents are made with, and what agents are told of the orchestrator."""

    ca: CertificateAuthority
    #: How long certificates last.
    lifetime: timedelta
    #: host:port where hosts join, and where agents renew.
    join_address: str
    renew_address: str
    #: DNS name in the orchestrator's certificate.
    server_name: str

    def check(self, svid: Svid) -> None:
        """See that what it issues is trusted.

        Raises:
            ConfigurationError: it is not, so no agent could join.
        """
        try:
            self.issue(new_key().public_key(), agent_id(svid.spiffe_id.trust_domain, "probe"), svid)
        except (InvalidIdentity, ServerError) as error:
            raise ConfigurationError(
                f"the orchestrator's own bundle would not trust what its certificate authority issues: {error}"
            ) from None

    def issue(
        self, key: ec.EllipticCurvePublicKey, spiffe_id: SpiffeId, svid: Svid, earliest: datetime | None = None
    ) -> x509.Certificate:
        """A certificate, which is trusted by the orchestrator itself.

        Raises:
            ServerError: it would not be.
        """
        leaf = self.ca.sign(key, spiffe_id, lifetime=self.lifetime, earliest=earliest)
        sent = x509.load_pem_x509_certificates(self.ca.chain(leaf))
        try:
            svid.bundle.verify(leaf, sent[1:], max(datetime.now(UTC), leaf.not_valid_before_utc))
        except InvalidIdentity as error:
            raise ServerError(f"the certificate authority is not trusted any more: {error}") from None
        return leaf


@dataclass(frozen=True, slots=True)
class Certificate:
    """What an agent gets."""

    chain_pem: bytes
    bundle_pem: bytes
    renew_address: str
    #: Of its Redis user; empty where that is not ours to make.
    redis_password: str = ""


class Membership:
    """Enrols, lets join, renews and cuts off."""

    def __init__(
        self,
        redis: Redis,
        ledger: Ledger,
        identity: SvidSource,
        revocations: Revocations,
        authority: Authority | None,
        accounts: Accounts | None,
    ) -> None:
        """Prepare it.

        Args:
            redis: the connections.
            ledger: what agents were to run.
            identity: the orchestrator's own.
            revocations: who was cut off.
            authority: what certificates are made with; None where no agent joins with a token.
            accounts: what Redis users are made with; None where that is not ours to do.
        """
        self._redis = redis
        self._ledger = ledger
        self._identity = identity
        self._revocations = revocations
        self._authority = authority
        self._accounts = accounts
        self._runner = Runner(redis)
        self._enroll, self._join, self._revoke = Script("enroll"), Script("join"), Script("revoke")

    def _with_authority(self) -> Authority:
        if self._authority is None:
            raise FailedPrecondition(
                "this orchestrator lets nobody join: it has no certificate authority "
                "(TACHIKOMA_CA, TACHIKOMA_JOIN_LISTEN)"
            )
        return self._authority

    # --- enrolling ----------------------------------------------------------------------------------------------------

    async def enroll(self, agent: str, ttl: timedelta, by: Peer) -> Enrolment:
        """Make a token, in place of any before it.

        Raises:
            FailedPrecondition: nobody can join here, or an agent of that id is online.
            InvalidRequest: that is no id, or no time for a token to last.
        """
        authority = self._with_authority()
        if not is_identifier(agent):
            raise InvalidRequest(f"{agent[:80]!r} is no id of an agent")
        ttl = ttl or DEFAULT_TTL
        if not timedelta(0) < ttl <= MAX_TTL:
            raise InvalidRequest(f"a token lasts at most {format_duration(MAX_TTL)}, and longer than nothing")
        svid, secret, now = self._identity.current(), secrets.token_bytes(SECRET_BYTES), time.time()
        root = _root_of(svid)
        await self._revocations.look()
        before = self._revocations.of(agent)
        enrolment = SignedEnrolment(
            iss=str(svid.spiffe_id),
            iat=int(now),
            agent=agent,
            secret_sha256=hashlib.sha256(secret).hexdigest(),
            made_ms=max(int(now * 1000), before.at_ms + 1 if before is not None else 0),
            exp=math.ceil(now + ttl.total_seconds()),
            by=str(by),
        )
        expires = datetime.fromtimestamp(now + ttl.total_seconds(), UTC)
        call = self._enroll(
            keys=[keys.enrolment(agent), keys.info(agent), keys.REVOKED, keys.AUDIT],
            args=[
                agent, sign(svid, enrolment), math.ceil(ttl.total_seconds() * 1000), str(by),
                f"a token that lasts {format_duration(ttl)}",
            ],
        )  # fmt: skip
        if not await self._runner.run(call):
            raise FailedPrecondition(
                f"agent {agent!r} is online; if another host is to take its place, revoke it first, or stop its worker"
            )
        token = JoinToken(
            id=str(agent_id(svid.spiffe_id.trust_domain, agent)),
            address=authority.join_address,
            server_name=authority.server_name,
            root=root.public_bytes(Encoding.DER),
            secret=secret,
        )
        return Enrolment(agent_id=agent, token=str(token), expires=expires)

    # --- joining ------------------------------------------------------------------------------------------------------

    async def join(self, agent: str, secret: bytes, csr: bytes, address: str) -> tuple[Certificate, datetime]:
        """Let the holder of a token join.

        Args:
            agent, secret: of the token.
            csr: its request for a certificate.
            address: where it comes from.

        Returns:
            What it gets, and from when on that is good: for an agent that was cut off a moment ago, a moment later.

        Raises:
            TokenRefused: the token is not accepted.
            InvalidRequest: the token is right, but not what it asks for; the token can be used again.
        """
        authority = self._with_authority()
        if not is_identifier(agent):
            raise TokenRefused("it names no agent")
        raw: bytes | None = await self._redis.get(keys.enrolment(agent))
        if raw is None:
            raise TokenRefused("nobody enrolled it, or its token was used or has expired")
        svid = self._identity.current()
        stored = raw.decode("ascii", "replace")
        try:
            enrolment = verify(stored, SignedEnrolment, svid.bundle, svid.spiffe_id, kept=True)
            if enrolment.agent != agent:
                raise InvalidSignature(f"is for {enrolment.agent}")
        except InvalidSignature as error:
            raise TokenRefused(f"the enrolment in Redis {error}") from None
        if not hmac.compare_digest(hashlib.sha256(secret).hexdigest(), enrolment.secret_sha256):
            raise TokenRefused("the secret is wrong")
        if time.time() >= enrolment.exp:
            raise TokenRefused("its token has expired")
        await self._revocations.look()
        before = self._revocations.of(agent)
        if before is not None and enrolment.made_ms <= before.at_ms:
            raise TokenRefused("it was made before the agent was cut off")
        spiffe_id = agent_id(svid.spiffe_id.trust_domain, agent)
        try:
            key = check_request(csr, spiffe_id)
        except InvalidIdentity as error:
            raise InvalidRequest(str(error)) from None
        leaf = authority.issue(key, spiffe_id, svid, before.over if before is not None else None)
        if self._accounts is not None:
            await self._accounts.check()
        digest = leaf.fingerprint(hashes.SHA256()).hex()
        call = self._join(
            keys=[keys.enrolment(agent), keys.JOINED, keys.REVOKED, keys.AUDIT],
            args=[
                agent, stored, json.dumps({"by": enrolment.by, "address": address, "certificate": digest}),
                enrolment.by, address,
                f"certificate {leaf.serial_number:x} until {leaf.not_valid_after_utc:%Y-%m-%d %H:%M:%S} UTC",
                digest,
            ],
        )  # fmt: skip
        if not await self._runner.run(call):
            raise TokenRefused("its token was used, replaced or revoked meanwhile")
        password = await self._give_account(agent)
        log.info("agent.joined", agent=agent, address=address, serial=f"{leaf.serial_number:x}")
        return self._certificate(authority, svid, leaf, password), leaf.not_valid_before_utc

    async def _give_account(self, agent: str) -> str:
        """The password of a Redis user that is made for an agent; empty where that is not ours to do.

        Raises:
            TokenRefused: the agent was cut off meanwhile.
            Unavailable: Redis failed.
        """
        password = ""
        try:
            if self._accounts is not None:
                password = await self._accounts.give(agent)
            await self._revocations.look()
            if self._revocations.in_force(agent) and self._accounts is not None:
                # Whoever cut it off may have been here before the user was made.
                await self._accounts.remove(agent)
        except (RedisError, OSError) as error:
            log.error("account.not_made", agent=agent, error=str(error))
            raise Unavailable(
                f"the Redis user of agent {agent!r} could not be made, and the token is used now: enroll it again",
                metadata={"dependency": "redis"},
            ) from None
        if self._revocations.in_force(agent):
            raise TokenRefused("the agent was cut off meanwhile")
        return password

    @staticmethod
    def _certificate(authority: Authority, svid: Svid, leaf: x509.Certificate, password: str = "") -> Certificate:
        return Certificate(authority.ca.chain(leaf), svid.bundle.pem, authority.renew_address, password)

    # --- renewing -----------------------------------------------------------------------------------------------------

    async def renew(self, peer: Peer, csr: bytes) -> Certificate:
        """The next certificate of an agent that calls; that it was not cut off, the guard has seen.

        Raises:
            PermissionDenied: it is no agent, or did not join here.
            InvalidRequest: it asks for something else.
        """
        authority, svid = self._with_authority(), self._identity.current()
        agent = agent_of(peer.spiffe_id)
        if not agent or peer.spiffe_id.trust_domain != svid.spiffe_id.trust_domain:
            raise PermissionDenied(f"{peer} is no agent of {svid.spiffe_id.trust_domain}; only agents renew here")
        if peer.certificate is None or not authority.ca.issued(peer.certificate):
            raise PermissionDenied(f"{peer} did not join here; whoever issued its certificate renews it")
        try:
            key = check_request(csr, peer.spiffe_id)
        except InvalidIdentity as error:
            raise InvalidRequest(str(error)) from None
        before = self._revocations.of(agent)
        leaf = authority.issue(key, peer.spiffe_id, svid, before.over if before is not None else None)
        log.info("agent.renewed", agent=agent, serial=f"{leaf.serial_number:x}", until=str(leaf.not_valid_after_utc))
        return self._certificate(authority, svid, leaf)

    # --- cutting off --------------------------------------------------------------------------------------------------

    async def revoke(self, agent: str, reason: str, by: Peer) -> Revocation:
        """Cut an agent off, and end what it was to run. Safe to repeat.

        Raises:
            AgentUnknown: there is no such agent.
        """
        said = json.dumps({"by": str(by), "reason": reason})
        call = self._revoke(
            keys=[keys.REVOKED, keys.AGENTS, keys.JOINED, keys.enrolment(agent), keys.ONLINE, keys.AUDIT],
            args=[agent, time.time_ns() // 1_000_000, said, str(by), reason],
        )
        # 1. Nothing is believed of it or sent to it from here on.
        if not is_identifier(agent) or not await self._runner.run(call):
            raise AgentUnknown(f"there is no agent {agent[:80]!r}", metadata={"agent": agent[:80]})
        await self._revocations.look()
        # 2. One that still does as it is told ends what it runs; the next step would keep that from it.
        await self._cancel_all(agent, by)
        # 3. It is thrown out of Redis.
        warnings = []
        if self._accounts is None:
            warnings.append(
                "this orchestrator removes no Redis users (TACHIKOMA_ENROLLER_PASSWORD_FILE): "
                f"ACL DELUSER agent.{agent} there, and in its ACL file"
            )
        else:
            try:
                await self._accounts.remove(agent)
            except (RedisError, OSError) as error:
                log.error("account.not_removed", agent=agent, error=str(error))
                warnings.append(f"its Redis user could not be removed ({error}): ACL DELUSER agent.{agent} there")
        # 4. What it was to run has an end.
        ended = await self._end_all(agent)
        log.warning("agent.cut_off", agent=agent, by=str(by), reason=reason)
        return Revocation(
            agent_id=agent,
            cancelled=ended.count(ExecState.CANCELLED),
            lost=ended.count(ExecState.LOST),
            warnings=tuple(warnings),
        )

    async def _open(self, agent: str) -> list[Record]:
        """Its executions that have not ended, but for those that wait for an approval."""
        found, offset = [], 0
        while ids := await self._ledger.open_executions(offset=offset, limit=BATCH):
            found += [record for record in await self._ledger.records(ids) if record.agent == agent]
            offset += len(ids)
        return [record for record in found if record.state is not ExecState.PENDING_APPROVAL]

    async def _cancel_all(self, agent: str, by: Peer) -> None:
        records = await self._open(agent)
        async with self._redis.pipeline(transaction=False) as pipe:
            for record in records:
                pipe.exists(keys.claim(agent, record.exec_id))
            claimed = await pipe.execute() if records else []
        for record, is_claimed in zip(records, claimed, strict=True):
            if is_claimed:
                await send_cancel(self._redis, self._identity, agent, record.exec_id, by=str(by), requested_by="")

    async def _end_all(self, agent: str) -> list[ExecState]:
        revoked = self._revocations.of(agent)
        assert revoked is not None
        ended = [await self._ledger.cut_off(record, revoked) for record in await self._open(agent)]
        return [state for state in ended if state is not None]


def _root_of(svid: Svid) -> x509.Certificate:
    """The root that vouches for an identity."""
    digest = svid.bundle.root_of(svid.chain[0], list(svid.chain[1:]))
    return next(root for root in svid.bundle.roots if key_digest(root) == digest)
