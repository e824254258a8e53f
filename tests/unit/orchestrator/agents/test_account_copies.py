"""The users of joined agents are equal on all servers, whatever each of them missed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, cast

from hypothesis import given
from hypothesis import strategies as st
from redis.exceptions import ConnectionError as RedisConnectionError

from tachikoma.redis import keys
from tachikoma.redis.commands import Redis
from tachikoma.redis.sentinel import Address
from tachikoma_orchestrator.agents.account_copies import AccountCopies
from tachikoma_orchestrator.agents.revocations import Revocations

AGENTS = ("a1", "a2", "a3")


class Server:
    """A server with users of agents: agent by the letter of which its password's hash consists."""

    def __init__(self, users: Mapping[str, str], *, away: bool = False) -> None:
        self.users = {f"agent.{agent}": letter * 64 for agent, letter in users.items()}
        self.away = away
        self.saved = 0

    @property
    def agents(self) -> dict[str, str]:
        return {user.removeprefix("agent."): digest[0] for user, digest in self.users.items()}

    async def acl_list(self) -> list[bytes]:
        if self.away:
            raise RedisConnectionError("away")
        return [f"user {user} on #{digest} -@all +ping".encode() for user, digest in self.users.items()]

    async def execute_command(self, _: str, command: str, *words: str) -> None:
        if command == "SAVE":
            self.saved += 1
        elif command == "DELUSER":
            for user in words:
                self.users.pop(user, None)
        else:
            (digest,) = [word[1:] for word in words if re.fullmatch("#[a-f]{64}", word)]
            self.users[words[0]] = digest


class World:
    """Servers, the first of which is the primary; agents that joined and revoked ones."""

    def __init__(
        self, *servers: Server, joined: tuple[str, ...] = AGENTS, revoked: frozenset[str] = frozenset()
    ) -> None:
        self.order = {("10.0.0.1", number): server for number, server in enumerate(servers)}
        self.joined, self.revoked = joined, revoked
        revocations = SimpleNamespace(active=lambda agent: agent if agent in self.revoked else None)
        self.copies = AccountCopies(cast(Redis, self), cast(Any, self), cast(Revocations, revocations))

    async def hkeys(self, key: str) -> list[bytes]:
        assert key == keys.JOINED
        return [agent.encode() for agent in self.joined]

    async def all(self) -> Mapping[Address, Redis]:
        return cast(Mapping[Address, Redis], self.order)

    def fail_over(self) -> None:
        """Let the second server be the primary."""
        first, second, *others = self.order
        self.order = {address: self.order[address] for address in (second, first, *others)}


async def test_a_change_on_the_primary_reaches_every_replica_and_its_file() -> None:
    primary, replica = Server({"a1": "a", "a2": "b"}), Server({"a2": "c", "a3": "d"})
    world = World(primary, replica, joined=("a1", "a2"))
    await world.copies.spread()
    # The third did not join: its user is from an ACL file.
    assert replica.agents == {"a1": "a", "a2": "b", "a3": "d"}
    assert primary.agents == {"a1": "a", "a2": "b"}
    assert (primary.saved, replica.saved) == (0, 1)
    await world.copies.spread()
    assert (primary.saved, replica.saved) == (0, 1)


async def test_a_replica_that_was_away_catches_up_and_delays_no_other() -> None:
    away, replica = Server({}, away=True), Server({})
    world = World(Server({"a1": "a"}), away, replica)
    await world.copies.spread()
    assert (away.agents, replica.agents) == ({}, {"a1": "a"})
    away.away = False
    await world.copies.spread()
    assert away.agents == {"a1": "a"}


async def test_without_the_users_of_the_primary_nothing_changes() -> None:
    replica = Server({"a1": "a"})
    await World(Server({}, away=True), replica, revoked=frozenset(AGENTS)).copies.spread()
    assert replica.agents == {"a1": "a"}


async def test_after_a_failover_the_new_primary_gets_what_it_lacks() -> None:
    first, second = Server({"a1": "a"}), Server({}, away=True)
    world = World(first, second)
    await world.copies.spread()
    second.away = False
    world.fail_over()
    await world.copies.spread()
    assert second.agents == first.agents == {"a1": "a"}
    # Without another failover, what the primary lacks was removed there.
    second.users.clear()
    await world.copies.spread()
    assert second.agents == {}


@given(
    users=st.lists(st.dictionaries(st.sampled_from(AGENTS), st.sampled_from("abcdef")), min_size=1, max_size=4),
    joined=st.sets(st.sampled_from(AGENTS)),
    revoked=st.frozensets(st.sampled_from(AGENTS)),
)
async def test_all_servers_agree_about_joined_agents_and_none_has_a_revoked_one(
    users: list[dict[str, str]], joined: set[str], revoked: frozenset[str]
) -> None:
    servers = [Server(each) for each in users]
    await World(*servers, joined=tuple(joined), revoked=revoked).copies.spread()
    wanted = {agent for agent in joined - revoked if any(agent in each for each in users)}
    for server, before in zip(servers, users, strict=True):
        assert server.agents.keys() & joined == wanted
        assert not server.agents.keys() & revoked
        assert {agent: server.agents[agent] for agent in wanted} == {
            agent: servers[0].agents[agent] for agent in wanted
        }
        others = before.keys() - joined - revoked
        assert {agent: server.agents[agent] for agent in others} == {agent: before[agent] for agent in others}
