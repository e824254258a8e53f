"""Membership: the steps by which a host becomes, stays and stops being an agent, and a person a user.

1. An operator enrolls an agent or a person and gets a token (`enrolment.py`).
2. A host or a person joins with the token, once (`joining.py`). Each gets a certificate for its own key, and an agent a
   Redis user.
3. The member renews its certificate by itself (`renewal.py`).
4. An operator revokes the member (`revoking.py`). Every orchestrator learns it within a second (`revocations.py`).
   `users.py` lists people.
"""

from __future__ import annotations

from dataclasses import dataclass

from tachikoma.identity.svid import SvidSource
from tachikoma.redis.commands import Redis
from tachikoma_orchestrator.agents.authority import AuthoritySource
from tachikoma_orchestrator.agents.enrolment import Enrolments
from tachikoma_orchestrator.agents.joining import Joins
from tachikoma_orchestrator.agents.labels import Labels
from tachikoma_orchestrator.agents.redis_accounts import Accounts
from tachikoma_orchestrator.agents.renewal import Renewals
from tachikoma_orchestrator.agents.revocations import Revocations
from tachikoma_orchestrator.agents.revoking import MemberExecutions, Revoker
from tachikoma_orchestrator.agents.users import Users

__all__ = ["Membership"]


@dataclass(frozen=True, slots=True)
class Membership:
    """The four steps of membership, over the same Redis, identity and revocations."""

    enrolments: Enrolments
    joins: Joins
    renewals: Renewals
    revoker: Revoker
    users: Users

    @classmethod
    def over(
        cls,
        redis: Redis,
        identity: SvidSource,
        revocations: Revocations,
        labels: Labels,
        executions: MemberExecutions,
        *,
        authority: AuthoritySource | None,
        accounts: Accounts | None,
    ) -> Membership:
        """Wire the steps.

        Args:
            redis: the connections.
            identity: the orchestrator's own.
            revocations: the revoked agents.
            labels: the labels of agents.
            executions: cancels and ends the executions of a revoked agent.
            authority: issues the certificates; None if hosts cannot join here.
            accounts: manages the agents' Redis users; None if this orchestrator may not.
        """
        enrolments = Enrolments(redis, identity, revocations, authority)
        return cls(
            enrolments=enrolments,
            joins=Joins(redis, identity, revocations, enrolments, labels, authority, accounts),
            renewals=Renewals(identity, revocations, authority),
            revoker=Revoker(redis, identity, revocations, executions, accounts),
            users=Users(redis, revocations),
        )
