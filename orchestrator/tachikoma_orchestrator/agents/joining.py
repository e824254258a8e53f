"""Joining: a host with a token becomes an agent, with a certificate for its own key and a Redis user of its own.

A person joins in the same way, without a Redis user.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import structlog
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from redis.exceptions import RedisError

from tachikoma.errors import InvalidRequest, Unavailable
from tachikoma.identity.authority import check_request, issued_at
from tachikoma.identity.signed_messages import Enrolment as SignedEnrolment
from tachikoma.identity.spiffe import InvalidIdentity, Member
from tachikoma.identity.svid import Svid, SvidSource
from tachikoma.redis import keys
from tachikoma.redis.commands import Redis
from tachikoma.vocabulary.clock import to_ms
from tachikoma_orchestrator.agents.authority import Authority, AuthoritySource, IssuedIdentity, required
from tachikoma_orchestrator.agents.enrolment import Enrolments, TokenRefused, VerifiedEnrolment, audited
from tachikoma_orchestrator.agents.labels import ATTEMPTS, Labels, label_words
from tachikoma_orchestrator.agents.redis_accounts import Accounts
from tachikoma_orchestrator.agents.revocations import Revocations
from tachikoma_orchestrator.store.scripts import JsonObject, Runner, Script

__all__ = ["JoinAttempt", "Joins"]

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class JoinAttempt:
    """The claims of a host or person that wants to join; nothing in it is verified."""

    #: Key of the member and secret, as the token has them.
    agent: str
    secret: bytes
    #: The host's certificate signing request, PKCS #10 in DER.
    csr: bytes
    #: IP address of the host.
    address: str


class Joins:
    """Turns hosts that hold a token into agents, and people into users, once for each token."""

    def __init__(
        self,
        redis: Redis,
        identity: SvidSource,
        revocations: Revocations,
        enrolments: Enrolments,
        labels: Labels,
        authority: AuthoritySource | None,
        accounts: Accounts | None,
    ) -> None:
        """Prepare the step of joining.

        Args:
            redis: the connections.
            identity: the orchestrator's own.
            revocations: the revoked agents.
            enrolments: verifies tokens.
            labels: binds the labels that a token names.
            authority: issues the certificates; None if hosts cannot join here.
            accounts: manages the agents' Redis users; None if this orchestrator may not.
        """
        self._identity = identity
        self._revocations = revocations
        self._enrolments = enrolments
        self._labels = labels
        self._authority = authority
        self._accounts = accounts
        self._runner = Runner(redis)
        self._join = Script("join")

    async def join(self, attempt: JoinAttempt) -> IssuedIdentity:
        """Let the holder of a token join. Safe to repeat until the token is used.

        Raises:
            FailedPrecondition: hosts cannot join here.
            TokenRefused: the token is not accepted.
            InvalidRequest: the token is valid but the certificate request is not; the token stays usable.
            Unavailable: the Redis user could not be created; the token is used.
        """
        authority = required(self._authority)
        enrolment = await self._enrolments.verify(attempt.agent, attempt.secret)
        svid = self._identity.current()
        member = enrolment.member
        leaf = self._issue(authority, svid, member, attempt.csr)
        if self._accounts is not None and member.is_agent:
            # Before the token is used: without Redis users the agent could not connect.
            await self._accounts.check()
        await self._use(enrolment, svid, attempt, leaf)
        if not member.is_agent:
            await self._revocations.refresh()
            log.info("user.joined", user=member.name, address=attempt.address, serial=f"{leaf.serial_number:x}")
            return authority.identity(leaf, svid)
        password = await self._create_account(member.name)
        log.info("agent.joined", agent=member.name, address=attempt.address, serial=f"{leaf.serial_number:x}")
        return authority.identity(leaf, svid, password, authority.redis_url)

    def _issue(self, authority: Authority, svid: Svid, member: Member, csr: bytes) -> x509.Certificate:
        spiffe_id = member.spiffe_id(svid.spiffe_id.trust_domain)
        try:
            key = check_request(csr, spiffe_id)
        except InvalidIdentity as error:
            raise InvalidRequest(str(error)) from None
        return authority.issue(key, spiffe_id, svid, self._revocations.accepted_from(member.key))

    async def _use(
        self, enrolment: VerifiedEnrolment, svid: Svid, attempt: JoinAttempt, leaf: x509.Certificate
    ) -> None:
        """Use the token and record the join, atomically.

        Raises:
            TokenRefused: the token was used, replaced or revoked since it was verified.
            Unavailable: operators changed the labels of the agent at each attempt.
        """
        claims, member = enrolment.claims, enrolment.member
        digest = leaf.fingerprint(hashes.SHA256()).hex()
        entry: dict[str, str | int] = {"by": claims.by, "address": attempt.address, "certificate": digest}
        if not member.is_agent:
            entry["at_ms"] = to_ms(issued_at(leaf))
        arguments: JsonObject = {
            "agent": member.key,
            **audited(member, svid, "join_accepted", "user_joined"),
            "entry": json.dumps(entry),
            "by": claims.by,
            "address": attempt.address,
            "reason": f"certificate {leaf.serial_number:x} until {leaf.not_valid_after_utc:%Y-%m-%d %H:%M:%S} UTC",
            "certificate_sha256": digest,
            "labels": label_words(claims.labels or {}),
        }
        for _ in range(ATTEMPTS):
            outcome = await self._record(enrolment, arguments)
            if outcome == b"JOINED":
                await self._labels.refresh()
                return
            if outcome == b"REFUSED":
                raise TokenRefused("the token was used, replaced or revoked in the meantime")
        why = f"the labels of {member.name} change all the time; try again"
        raise Unavailable(why, metadata={"dependency": "redis"})

    async def _record(self, enrolment: VerifiedEnrolment, arguments: JsonObject) -> bytes:
        """Record a join with the labels that its token binds. Return JOINED, REFUSED or LABELS, as `lua/join.lua`."""
        member = enrolment.member
        # Read before the labels are signed, so that these are later than the ones they replace.
        stored = "" if enrolment.claims.labels is None else await self._labels.stored(member.key)
        call = self._join(
            keys=[
                keys.enrolment(member.key), keys.JOINED if member.is_agent else keys.USERS, keys.REVOKED, keys.AUDIT,
                keys.LABELS, keys.LABELS_CHANGES,
            ],
            args=arguments,
            payloads=[enrolment.stored, self._bound(enrolment.claims), stored],
        )  # fmt: skip
        outcome: bytes = await self._runner.run(call)
        return outcome

    def _bound(self, claims: SignedEnrolment) -> str:
        """Return the signed labels that an enrolment binds; empty if it names none."""
        return "" if claims.labels is None else self._labels.signed(claims.agent, claims.labels, claims.by)

    async def _create_account(self, agent: str) -> str:
        """Create the agent's Redis user and return its password; empty if this orchestrator may not.

        Raises:
            TokenRefused: the agent was revoked in the meantime.
            Unavailable: Redis failed.
        """
        password = ""
        try:
            if self._accounts is not None:
                password = await self._accounts.create(agent)
            await self._revocations.refresh()
            if self._revocations.active(agent) and self._accounts is not None:
                # The revocation may have removed the user before it was created here.
                await self._accounts.remove(agent)
        except (RedisError, OSError) as error:
            log.error("account.not_created", agent=agent, error=str(error))
            raise Unavailable(
                f"the Redis user of agent {agent!r} could not be created; its token is used, so enroll it again",
                metadata={"dependency": "redis"},
            ) from None
        if self._revocations.active(agent):
            raise TokenRefused("the agent was revoked in the meantime")
        return password
