"""Revocation of agents and people: ends their membership, an agent's access and executions, a person's sessions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import structlog
from redis.exceptions import RedisError

from tachikoma.errors import AgentUnknown, InvalidRequest
from tachikoma.identity.spiffe import Member, SpiffeId
from tachikoma.identity.svid import SvidSource
from tachikoma.redis import keys
from tachikoma.redis.commands import Redis
from tachikoma.redis.users import agent_user
from tachikoma.vocabulary.agents import Revocation
from tachikoma.vocabulary.clock import now_ms
from tachikoma_orchestrator.agents.enrolment import audited
from tachikoma_orchestrator.agents.redis_accounts import Accounts
from tachikoma_orchestrator.agents.revocations import Revocations, Revoked
from tachikoma_orchestrator.caller import Peer
from tachikoma_orchestrator.store.scripts import Runner, Script

__all__ = ["EndedExecutions", "MemberExecutions", "Revoker"]

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class EndedExecutions:
    """Numbers of executions that a revocation ended."""

    #: Executions that had not started, and never will.
    cancelled: int
    #: Executions that had started; their final state is unknown.
    lost: int


class MemberExecutions(Protocol):
    """The executions of members, as far as a revocation needs them (`executions/revocation.py`)."""

    async def open_ids(self, agent: str) -> list[str]:
        """Return the ids of the agent's executions that have not ended."""

    async def cancel_running(self, agent: str, *, by: str) -> None:
        """Send the agent a signed cancel order for each execution that it has started."""

    async def end_sessions(self, requester: SpiffeId, revoked: Revoked) -> None:
        """Cancel every interactive execution of a person that has not ended."""

    async def end_all(self, agent: str, revoked: Revoked, known: Sequence[str] = ()) -> EndedExecutions:
        """Give every execution of the agent a final state, except those that wait for an approval."""


class Revoker:
    """Revokes agents and people."""

    def __init__(
        self,
        redis: Redis,
        identity: SvidSource,
        revocations: Revocations,
        executions: MemberExecutions,
        accounts: Accounts | None,
    ) -> None:
        """Prepare the revocation of members.

        Args:
            redis: the connections.
            identity: the orchestrator's own.
            revocations: the revoked agents.
            executions: cancels and ends the executions of a revoked agent, and the sessions of a revoked person.
            accounts: manages the agents' Redis users; None if this orchestrator may not.
        """
        self._identity = identity
        self._revocations = revocations
        self._executions = executions
        self._accounts = accounts
        self._runner = Runner(redis)
        self._revoke = Script("revoke")

    async def revoke(self, agent: str, reason: str, by: Peer) -> Revocation:
        """Revoke an agent and end its executions. Safe to repeat.

        Raises:
            AgentUnknown: there is no such agent.
        """
        # A reaper may end some of them before step 4; they are counted all the same.
        known = await self._executions.open_ids(agent)
        # 1. From here on nothing that the agent says is accepted, and no order is sent to it.
        revoked = await self._record(Member.agent(agent), reason, by)
        if revoked is None:
            raise AgentUnknown(f"there is no agent {agent[:80]!r}", metadata={"agent": agent[:80]})
        # 2. An agent that still obeys kills its commands. The next step would keep the cancel orders from it.
        await self._executions.cancel_running(agent, by=str(by))
        # 3. Its connections to Redis are closed, and it cannot open new ones.
        warnings = await self._remove_account(agent)
        # 4. Each of its executions gets a final state.
        ended = await self._executions.end_all(agent, revoked, known)
        log.warning("agent.revoked", agent=agent, by=str(by), reason=reason)
        return Revocation(agent_id=agent, cancelled=ended.cancelled, lost=ended.lost, warnings=warnings)

    async def revoke_user(self, name: str, reason: str, by: Peer) -> Revoked:
        """Revoke a person, with an identity from any source. Safe to repeat.

        Every certificate of the person is refused from then on, and calls in progress end, until the person logs in
        with a new token. Interactive executions of the person are cancelled. Others continue; an operator may cancel
        them.

        Raises:
            InvalidRequest: no person can have this name, or it is that of the operator.
            redis errors: Redis failed. If the revocation is recorded, the reaper cancels the remaining sessions.
        """
        member = Member.user(name)
        if member == Member.of(by.spiffe_id):
            raise InvalidRequest("you cannot revoke yourself; another operator can")
        revoked = await self._record(member, reason, by)
        if revoked is None:
            raise InvalidRequest(f"{name[:80]!r} is not a valid name of a person")
        requester = member.spiffe_id(self._identity.current().spiffe_id.trust_domain)
        await self._executions.end_sessions(requester, revoked)
        log.warning("user.revoked", user=name, by=str(by), reason=reason)
        return revoked

    async def _record(self, member: Member, reason: str, by: Peer) -> Revoked | None:
        """Store the revocation with its audit event, and return it as this orchestrator now knows it.

        Returns None if there is no such member.
        """
        key = member.key
        if Member.parse(key) != member:
            return None
        joined = keys.JOINED if member.is_agent else keys.USERS
        call = self._revoke(
            keys=[keys.REVOKED, keys.AGENTS, joined, keys.enrolment(key), keys.ONLINE, keys.AUDIT],
            args={
                "agent": key,
                **audited(member, self._identity.current(), "agent_revoked", "user_revoked"),
                "now_ms": now_ms(),
                "entry": json.dumps({"by": str(by), "reason": reason}),
                "by": str(by),
                "reason": reason,
            },
        )
        if not await self._runner.run(call, confirmed=True):
            return None
        await self._revocations.refresh()
        revoked = self._revocations.latest(key)
        assert revoked is not None
        return revoked

    async def _remove_account(self, agent: str) -> tuple[str, ...]:
        """Remove the agent's Redis user. Return what the operator has to do by hand, if anything."""
        user = agent_user(agent)
        if self._accounts is None:
            return (
                "this orchestrator removes no Redis users (TACHIKOMA_ENROLLER_PASSWORD_FILE is not set): run "
                f"ACL DELUSER {user} in Redis, and remove the user from its ACL file",
            )
        try:
            await self._accounts.remove(agent)
        except (RedisError, OSError) as error:
            log.error("account.not_removed", agent=agent, error=str(error))
            return (f"the agent's Redis user could not be removed ({error}): run ACL DELUSER {user} in Redis",)
        return ()
