"""Revoking agents on a real Redis: the record, the steps and their order."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from members import AGENT, DOMAIN, OPERATOR, Stand, refused
from tachikoma.errors import AgentUnknown, FailedPrecondition
from tachikoma.identity.spiffe import Member, SpiffeId, user_id
from tachikoma.redis import keys
from tachikoma.redis.commands import Redis
from tachikoma_orchestrator.agents.redis_accounts import Accounts
from tachikoma_orchestrator.agents.revocations import Revoked
from tachikoma_orchestrator.agents.revoking import EndedExecutions, Revoker


@pytest.fixture
async def stand(redis: Redis, tmp_path: Path) -> Stand:
    return Stand(redis, tmp_path)


class Steps:
    """Executions and accounts that note in which order a revocation uses them."""

    def __init__(self, stand: Stand) -> None:
        self.stand = stand
        self.taken: list[str] = []

    async def open_ids(self, agent: str) -> list[str]:
        assert not self.stand.revocations.active(agent)
        return ["known"]

    async def cancel_running(self, agent: str, *, by: str) -> None:
        assert self.stand.revocations.active(agent)
        self.taken.append(f"cancel for {by}")

    async def end_sessions(self, requester: SpiffeId, revoked: Revoked) -> None:
        assert self.stand.revocations.active("user/eve")
        self.taken.append(f"end sessions of {requester}: {revoked.session_error}")

    async def remove(self, agent: str) -> None:
        self.taken.append(f"remove {agent}")

    async def end_all(self, agent: str, revoked: Revoked, known: Sequence[str] = ()) -> EndedExecutions:
        assert known == ["known"]
        self.taken.append(f"end: {revoked.execution_error}")
        return EndedExecutions(cancelled=4, lost=2)


async def test_a_running_command_is_cancelled_before_its_agent_loses_access_and_ends_after(stand: Stand) -> None:
    await stand.redis.hset(keys.AGENTS, AGENT, "{}")
    steps = Steps(stand)

    class Noting(Accounts):
        async def remove(self, agent: str) -> None:
            await steps.remove(agent)

    revoker = Revoker(stand.redis, stand.identity, stand.revocations, steps, Noting(stand.redis))
    done = await revoker.revoke(AGENT, "stolen", OPERATOR)
    assert (done.agent_id, done.cancelled, done.lost, done.warnings) == (AGENT, 4, 2, ())
    assert steps.taken == [
        f"cancel for {OPERATOR}",
        f"remove {AGENT}",
        f"end: its agent was revoked by {OPERATOR}: stolen",
    ]
    [event] = await stand.events()
    assert (event.event, event.agent_id, event.actor, event.reason) == (
        "agent_revoked", AGENT, str(OPERATOR), "stolen"
    )  # fmt: skip


async def test_a_person_is_refused_before_its_sessions_are_ended(stand: Stand) -> None:
    steps = Steps(stand)
    revoker = Revoker(stand.redis, stand.identity, stand.revocations, steps, None)
    await revoker.revoke_user("eve", "left", OPERATOR)
    eve = user_id(DOMAIN, "eve")
    assert steps.taken == [f"end sessions of {eve}: its requester was revoked by {OPERATOR}: left"]


async def test_an_agent_that_was_only_enrolled_can_be_revoked_and_one_that_never_was_cannot(stand: Stand) -> None:
    token = await stand.token()
    await stand.members.revoker.revoke(AGENT, "wrong host", OPERATOR)
    with refused():
        await stand.join(token)
    with pytest.raises(AgentUnknown):
        await stand.members.revoker.revoke("web-2", "typo", OPERATOR)
    assert await stand.codes() == ["agent_enrolled", "agent_revoked"]


async def test_a_revocation_can_be_repeated(stand: Stand) -> None:
    await stand.joined()
    for reason in ("stolen", "again"):
        await stand.members.revoker.revoke(AGENT, reason, OPERATOR)
    revoked = stand.revocations.active(AGENT)
    assert revoked is not None
    assert revoked.reason == "again"
    assert (await stand.codes()).count("agent_revoked") == 2


async def test_without_an_authority_agents_can_be_revoked_but_not_enrolled(stand: Stand) -> None:
    await stand.redis.hset(keys.AGENTS, AGENT, "{}")
    bare = stand.membership(authority=None, accounts=None)
    with pytest.raises(FailedPrecondition, match="TACHIKOMA_CA"):
        await bare.enrolments.enroll(Member.agent(AGENT), timedelta(0), OPERATOR)
    done = await bare.revoker.revoke(AGENT, "stolen", OPERATOR)
    assert "ACL DELUSER agent.web-1" in done.warnings[0]
    assert stand.revocations.active(AGENT)


async def test_a_user_that_cannot_be_removed_is_left_to_the_operator_and_the_revocation_is_active(stand: Stand) -> None:
    await stand.joined()

    class Broken(Accounts):
        async def remove(self, agent: str) -> None:
            raise RedisConnectionError("gone")

    members = stand.membership(authority=stand.authority, accounts=Broken(stand.redis))
    done = await members.revoker.revoke(AGENT, "stolen", OPERATOR)
    assert done.warnings == (
        "the agent's Redis user could not be removed (gone): run ACL DELUSER agent.web-1 in Redis",
    )
    assert stand.revocations.active(AGENT)
