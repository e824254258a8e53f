"""Membership on a real Redis, without a server around it: what the tests of `agents/` share."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tachikoma.dev.ca import DevelopmentCA
from tachikoma.identity.authority import CertificateAuthority, make_request, new_key, private_pem
from tachikoma.identity.file_source import FileSvidSource
from tachikoma.identity.join_token import JoinToken
from tachikoma.identity.spiffe import Member, SpiffeId, agent_id, service_id, user_id
from tachikoma.identity.svid import Svid
from tachikoma.redis.commands import Redis
from tachikoma.vocabulary.audit import ExecAuditLog
from tachikoma_orchestrator.agents.authority import Authority, IssuedIdentity
from tachikoma_orchestrator.agents.enrolment import TokenRefused
from tachikoma_orchestrator.agents.joining import JoinAttempt
from tachikoma_orchestrator.agents.labels import Labels
from tachikoma_orchestrator.agents.membership import Membership
from tachikoma_orchestrator.agents.redis_accounts import Accounts
from tachikoma_orchestrator.agents.revocations import Revocations
from tachikoma_orchestrator.audit.trail import AuditTrail
from tachikoma_orchestrator.caller import Peer
from tachikoma_orchestrator.executions.ledger import Ledger
from tachikoma_orchestrator.executions.revocation import ExecutionsOfMembers

DOMAIN, AGENT = "tachikoma.local", "web-1"
OPERATOR = Peer(user_id(DOMAIN, "root"), "192.0.2.7")
WEB = agent_id(DOMAIN, AGENT)


@dataclass(frozen=True)
class Fixed:
    """An authority that is not replaced."""

    current: Authority


class Stand:
    """An orchestrator's membership, under the certificate authority of a root."""

    def __init__(self, redis: Redis, folder: Path) -> None:
        self.redis, self.folder = redis, folder
        self.root = DevelopmentCA(folder / "root", DOMAIN)
        self.root.issue(service_id(DOMAIN, "orchestrator"), folder / "orchestrator", dns_names=("orch.example",))
        self.identity = FileSvidSource(folder / "orchestrator")
        above = CertificateAuthority.load(folder / "root")
        self.ca = CertificateAuthority.create(
            folder / "ca", DOMAIN, name="Agents", lifetime=timedelta(days=1), under=above
        )
        self.trail = AuditTrail(redis)
        self.ledger = Ledger(
            redis, self.trail, queue_size=10, approvals_size=10, retention=timedelta(hours=1), durable=False
        )
        self.authority = Authority(self.ca, timedelta(hours=1), "192.0.2.1:8535", "192.0.2.1:8534", "orch.example")
        self.authority.check(self.identity.current())
        self.revocations = Revocations(redis)
        self.labels = Labels(redis, self.identity)
        self.members = self.membership(authority=self.authority, accounts=Accounts(redis))

    def membership(
        self,
        *,
        authority: Authority | None,
        accounts: Accounts | None,
        revocations: Revocations | None = None,
    ) -> Membership:
        """The membership of an orchestrator on the same Redis."""
        return Membership.over(
            self.redis,
            self.identity,
            revocations or self.revocations,
            self.labels,
            ExecutionsOfMembers(self.redis, self.ledger, self.identity),
            authority=None if authority is None else Fixed(authority),
            accounts=accounts,
        )

    async def token(self, agent: str = AGENT, ttl: timedelta = timedelta(minutes=5)) -> JoinToken:
        """The token of a new enrolment."""
        made, _ = await self.members.enrolments.enroll(Member.parse(agent) or Member.agent(agent), ttl, OPERATOR)
        return JoinToken.parse(made)

    async def join(self, token: JoinToken, members: Membership | None = None, **changes: Any) -> IssuedIdentity:
        """Join as the holder of a token, except for the changes."""
        agent = Member.required(token.spiffe_id).key
        right = {"agent": agent, "secret": token.secret, "csr": request_of(token.spiffe_id), "address": "192.0.2.9"}
        return await (members or self.members).joins.join(JoinAttempt(**{**right, **changes}))

    async def joined(self, agent: str = AGENT) -> Svid:
        """The identity of an agent that joined."""
        key = new_key()
        token = await self.token(agent)
        issued = await self.join(token, csr=make_request(key, token.spiffe_id))
        # Certificates begin at a whole second.
        await asyncio.sleep(max(0.0, (issued.valid_from - dt.datetime.now(dt.UTC)).total_seconds()))
        svid = Svid.load(issued.chain_pem, private_pem(key), issued.bundle_pem)
        svid.verify()
        return svid

    async def users(self, agent: str = AGENT) -> list[str]:
        """The agent's users in Redis, as ACL LIST shows them: none or one."""
        return [line for line in await self.redis.acl_list() if line.startswith(f"user agent.{agent} ")]

    async def events(self) -> list[ExecAuditLog]:
        """The audit trail."""
        return (await self.trail.read(after="0", limit=100)).events

    async def codes(self) -> list[str]:
        """The codes of the audit trail."""
        return [event.event for event in await self.events()]


def request_of(spiffe_id: SpiffeId = WEB) -> bytes:
    """A certificate signing request with a new key."""
    return make_request(new_key(), spiffe_id)


@contextmanager
def refused(reason: str = "") -> Iterator[None]:
    """Expect that the token is refused."""
    with pytest.raises(TokenRefused, match=reason or None):
        yield
