"""Enrolments: a token lets one host join once as one agent, or one person once.

The token's secret is returned to the operator and stored nowhere. Redis holds its SHA-256 inside an enrolment that an
orchestrator signed, so write access to Redis is not enough to enroll a member.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from tachikoma.errors import FailedPrecondition, InvalidRequest
from tachikoma.identity.certificates import key_digest
from tachikoma.identity.join_token import SECRET_BYTES, JoinToken
from tachikoma.identity.signed_messages import Enrolment as SignedEnrolment
from tachikoma.identity.signing import InvalidSignature, sign, verify
from tachikoma.identity.spiffe import Member
from tachikoma.identity.svid import Svid, SvidSource
from tachikoma.redis import keys
from tachikoma.redis.commands import Redis
from tachikoma.vocabulary.clock import duration_ms, from_ms, now_ms, whole_seconds_of_ms
from tachikoma.vocabulary.durations import format_duration
from tachikoma_orchestrator.agents.authority import AuthoritySource, required
from tachikoma_orchestrator.agents.labels import checked, label_words
from tachikoma_orchestrator.agents.revocations import Revocations
from tachikoma_orchestrator.caller import Peer
from tachikoma_orchestrator.store.scripts import Runner, Script

__all__ = ["Enrolments", "TokenRefused", "VerifiedEnrolment", "audited"]

#: Lifetime of a token by default, and the longest.
DEFAULT_TTL, MAX_TTL = timedelta(minutes=15), timedelta(days=1)


def audited(member: Member, svid: Svid, agents: str, people: str) -> dict[str, str]:
    """Return the fields of an audit event about a member: the code for agents or that for people, and the owner."""
    if member.is_agent:
        return {"event": agents, "agent_id": member.name, "requested_by": ""}
    return {"event": people, "agent_id": "", "requested_by": str(member.spiffe_id(svid.spiffe_id.trust_domain))}


class TokenRefused(Exception):
    """A token is not accepted. The message is for the audit trail and never returned to the host."""


@dataclass(frozen=True, slots=True)
class VerifiedEnrolment:
    """An enrolment whose signature, secret and lifetime were verified."""

    #: The agent or the person.
    member: Member
    #: As stored in Redis; joining succeeds only while Redis still holds the same.
    stored: str
    claims: SignedEnrolment


class Enrolments:
    """Makes tokens and verifies them."""

    def __init__(
        self, redis: Redis, identity: SvidSource, revocations: Revocations, authority: AuthoritySource | None
    ) -> None:
        """Prepare the enrolment of members.

        Args:
            redis: the connections.
            identity: the orchestrator's own.
            revocations: the revoked agents.
            authority: issues the certificates; None if hosts cannot join here.
        """
        self._redis = redis
        self._identity = identity
        self._revocations = revocations
        self._authority = authority
        self._runner = Runner(redis)
        self._enroll = Script("enroll")

    async def enroll(
        self, member: Member, ttl: timedelta, by: Peer, *, labels: Mapping[str, str] | None = None
    ) -> tuple[str, datetime]:
        """Make a token for an agent or a person. It replaces an earlier token of the same member.

        Args:
            member: the agent or the person.
            ttl: lifetime of the token; zero for the default.
            by: the operator.
            labels: all labels of the agent once a host has joined. None or empty: those that it has.

        Returns:
            The token, and the time at which it expires.

        Raises:
            FailedPrecondition: nobody can join here, or an agent of that id is online.
            InvalidRequest: the name, the lifetime or a label is invalid.
        """
        authority = required(self._authority)
        if Member.parse(member.key) != member:
            what = "agent id" if member.is_agent else "name of a person"
            raise InvalidRequest(f"{member.name[:80]!r} is not a valid {what}")
        ttl = ttl or DEFAULT_TTL
        if not timedelta(0) < ttl <= MAX_TTL:
            raise InvalidRequest(f"the lifetime of a token is more than 0 and at most {format_duration(MAX_TTL)}")
        bound = checked(labels) if labels else None
        svid, secret = self._identity.current(), secrets.token_bytes(SECRET_BYTES)
        root = _root_of(svid)
        made_ms = now_ms()
        claims = await self._claims(svid, member, secret, made_ms, ttl, by)
        await self._store(svid, member, claims.model_copy(update={"labels": bound}), ttl)
        token = JoinToken(
            id=str(member.spiffe_id(svid.spiffe_id.trust_domain)),
            address=authority.join_address,
            server_name=authority.server_name,
            root=root.public_bytes(Encoding.DER),
            secret=secret,
        )
        return str(token), from_ms(made_ms) + ttl

    async def _claims(
        self, svid: Svid, member: Member, secret: bytes, at_ms: int, ttl: timedelta, by: Peer
    ) -> SignedEnrolment:
        """Return the enrolment of a secret. It is newer than the latest revocation, whatever the clocks say."""
        await self._revocations.refresh()
        revoked = self._revocations.latest(member.key)
        return SignedEnrolment(
            iss=str(svid.spiffe_id),
            iat=whole_seconds_of_ms(at_ms),
            agent=member.key,
            secret_sha256=hashlib.sha256(secret).hexdigest(),
            made_ms=at_ms if revoked is None else max(at_ms, revoked.at_ms + 1),
            exp=math.ceil((from_ms(at_ms) + ttl).timestamp()),
            by=str(by),
        )

    async def _store(self, svid: Svid, member: Member, enrolment: SignedEnrolment, ttl: timedelta) -> None:
        """Sign an enrolment and store it with its audit event.

        Raises:
            FailedPrecondition: an agent of that id is online.
        """
        agent = member.is_agent
        words = f", with the labels {label_words(enrolment.labels)}" if enrolment.labels else ""
        call = self._enroll(
            keys=[
                keys.enrolment(member.key), keys.REVOKED, keys.AUDIT, *([keys.info(member.name)] if agent else []),
            ],
            args={
                "agent": member.key,
                **audited(member, svid, "agent_enrolled", "user_enrolled"),
                "ttl_ms": max(1, duration_ms(ttl)),
                "by": enrolment.by,
                "reason": f"a token valid for {format_duration(ttl)}{words}",
            },
            payloads=[sign(svid, enrolment)],
        )  # fmt: skip
        if not await self._runner.run(call):
            raise FailedPrecondition(
                f"agent {member.name!r} is online; to replace its host, revoke the agent or stop its worker first"
            )

    async def verify(self, agent: str, secret: bytes) -> VerifiedEnrolment:
        """Verify a token against the enrolment in Redis.

        Args:
            agent, secret: the member's key and the secret, as the token has them; not trusted.

        Raises:
            TokenRefused: no valid enrolment matches the token, or its owner was revoked after it.
        """
        member = Member.parse(agent)
        if member is None:
            raise TokenRefused("the token names no valid agent id or person")
        raw: bytes | None = await self._redis.get(keys.enrolment(agent))
        if raw is None:
            raise TokenRefused("no enrolment exists: none was made, or its token was used or has expired")
        stored = raw.decode("ascii", "replace")
        claims = self._verify_signature(stored, agent)
        if not hmac.compare_digest(hashlib.sha256(secret).hexdigest(), claims.secret_sha256):
            raise TokenRefused("the secret is wrong")
        if time.time() >= claims.exp:
            raise TokenRefused("the token has expired")
        await self._revocations.refresh()
        revoked = self._revocations.latest(agent)
        if revoked is not None and claims.made_ms <= revoked.at_ms:
            raise TokenRefused("the token was made before its owner was revoked")
        return VerifiedEnrolment(member, stored, claims)

    def _verify_signature(self, stored: str, agent: str) -> SignedEnrolment:
        svid = self._identity.current()
        try:
            claims = verify(stored, SignedEnrolment, svid.bundle, svid.spiffe_id, kept=True)
            if claims.agent != agent:
                raise InvalidSignature(f"is for {claims.agent}")
        except InvalidSignature as error:
            raise TokenRefused(f"the enrolment in Redis {error}") from None
        return claims


def _root_of(svid: Svid) -> x509.Certificate:
    """Return the root certificate that an identity chains to."""
    digest = svid.bundle.root_of(svid.chain[0], list(svid.chain[1:]))
    return next(root for root in svid.bundle.roots if key_digest(root) == digest)
