"""The Redis users of joined agents on every server of the Sentinels, since Redis does not replicate users.

After each change, and regularly, the users of the primary are copied to its replicas. A server that was unavailable
gets them when it returns. After a failover, users that the new primary lacks are copied from its replicas. Users of
agents that did not join are not copied: they come from ACL files, which operators load on each server.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Protocol

import structlog
from redis.exceptions import RedisError

from tachikoma.redis import keys
from tachikoma.redis.acl_file import agents_in
from tachikoma.redis.commands import Redis
from tachikoma.redis.sentinel import Address
from tachikoma.redis.users import AGENT_PREFIX, agent_user, rules
from tachikoma_orchestrator.agents.redis_accounts import save_users
from tachikoma_orchestrator.agents.revocations import Revocations

__all__ = ["AccountCopies"]

log = structlog.get_logger(__name__)

#: Seconds between two comparisons.
COMPARE_SECONDS = 10.0
#: Joined agents' users of one server: SHA-256 of their passwords by user.
Users = Mapping[str, list[str]]


class ServersWithUsers(Protocol):
    """Gives a client of each server, the primary first."""

    async def all(self) -> Mapping[Address, Redis]:
        """Return a client of each server by its address. Raises redis errors."""

    async def close(self) -> None:
        """Close the connections."""


class AccountCopies:
    """Keeps the users of joined agents equal on all servers."""

    def __init__(self, redis: Redis, servers: ServersWithUsers, revocations: Revocations) -> None:
        """Prepare the copies.

        Args:
            redis: reads which agents joined.
            servers: clients of the user `enroller`.
            revocations: the revoked agents, whose users are removed everywhere.
        """
        self._redis = redis
        self._servers = servers
        self._revocations = revocations
        self._lock = asyncio.Lock()
        #: The primary of the last comparison; None before the first.
        self._primary: Address | None = None
        #: Servers that failed at the last comparison; each is logged once.
        self._failed: set[Address] = set()

    async def run(self) -> None:
        """Compare in each interval, until cancelled."""
        while True:
            await self.spread()
            await asyncio.sleep(COMPARE_SECONDS)

    async def spread(self) -> None:
        """Bring the users of joined agents to every server that can be reached. Raises no error of Redis."""
        async with self._lock:
            try:
                joined = {agent_user(name.decode(errors="replace")) for name in await self._redis.hkeys(keys.JOINED)}
                servers = await self._servers.all()
                found = dict(zip(servers, await asyncio.gather(*(map(self._users, servers.items()))), strict=True))
                await self._compare(servers, found, joined)
            except (RedisError, OSError) as error:
                log.warning("accounts.not_compared", error=str(error)[:300])

    async def close(self) -> None:
        """Close the connections."""
        await self._servers.close()

    async def _users(self, server: tuple[Address, Redis]) -> Users | None:
        """Return the users of agents on a server; None if the server does not answer."""
        address, redis = server
        try:
            lines = await redis.acl_list()
        except (RedisError, OSError) as error:
            self._note_failure(address, error)
            return None
        self._failed.discard(address)
        return agents_in("\n".join(line.decode() if isinstance(line, bytes) else line for line in lines))

    async def _compare(
        self, servers: Mapping[Address, Redis], found: Mapping[Address, Users | None], joined: set[str]
    ) -> None:
        """Make the users of all servers those of the primary. Change nothing while the primary's are unknown."""
        primary = next(iter(servers))
        reference = found[primary]
        if reference is None:
            return
        wanted = {user: hashes for user, hashes in reference.items() if user in joined}
        if primary != self._primary:
            # It may have been a replica that was away when an agent joined.
            for users in found.values():
                wanted |= {user: (users or {})[user] for user in (users or {}).keys() & joined - wanted.keys()}
        for address, users in found.items():
            if users is not None:
                await self._equalise(address, servers[address], users, self._without_revoked(wanted))
        self._primary = primary

    def _without_revoked(self, users: Users) -> Users:
        return {user: hashes for user, hashes in users.items() if not self._is_revoked(user)}

    def _is_revoked(self, user: str) -> bool:
        return self._revocations.active(user.removeprefix(AGENT_PREFIX)) is not None

    async def _equalise(self, address: Address, redis: Redis, users: Users, wanted: Users) -> None:
        changed = [user for user, hashes in wanted.items() if set(users.get(user, ())) != set(hashes)]
        removed = [user for user in users if self._is_revoked(user)]
        try:
            for user in changed:
                await redis.execute_command("ACL", "SETUSER", user, *rules(user, wanted[user]))
            if removed:
                await redis.execute_command("ACL", "DELUSER", *removed)
            if changed or removed:
                await save_users(redis)
                log.info("accounts.copied", server=f"{address[0]}:{address[1]}", users=changed, removed=removed)
        except (RedisError, OSError) as error:
            self._note_failure(address, error)

    def _note_failure(self, address: Address, error: Exception) -> None:
        if address not in self._failed:
            log.warning("accounts.server_failed", server=f"{address[0]}:{address[1]}", error=str(error)[:300])
        self._failed.add(address)
