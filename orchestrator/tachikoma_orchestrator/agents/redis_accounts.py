"""The agents' Redis users, created and removed while Redis runs.

That needs a Redis user of its own (`tachikoma.redis.users.ENROLLER`), which can give any right to any user. Only
orchestrators that let agents join have its password, and they use it for nothing else. With Sentinels,
`account_copies` brings each change to the other servers.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Awaitable, Callable

import structlog
from redis.exceptions import ResponseError

from tachikoma.redis import keys
from tachikoma.redis.commands import Redis
from tachikoma.redis.users import agent_user, rules

__all__ = ["Accounts", "save_users"]

log = structlog.get_logger(__name__)


class Accounts:
    """Creates and removes the agents' Redis users. All methods raise redis errors."""

    def __init__(self, redis: Redis, spread: Callable[[], Awaitable[None]] | None = None) -> None:
        """Prepare the management of Redis users.

        Args:
            redis: a connection of the user `enroller`.
            spread: copies the changes to the other servers; None without other servers.
        """
        self._redis = redis
        self._spread = spread

    async def check(self) -> None:
        """Check that Redis accepts the password and can store users."""
        await save_users(self._redis)

    async def create(self, agent: str) -> str:
        """Create or recreate an agent's Redis user and return its new password.

        Connections that use the previous password are closed.
        """
        user, password = agent_user(agent), secrets.token_hex(32)
        await self._redis.execute_command("ACL", "DELUSER", user)
        words = rules(user, [hashlib.sha256(password.encode()).hexdigest()])
        await self._redis.execute_command("ACL", "SETUSER", user, *words)
        await self._saved()
        return password

    async def remove(self, agent: str) -> None:
        """Remove an agent's Redis user, its queues and its registration. Its connections are closed."""
        await self._redis.execute_command("ACL", "DELUSER", agent_user(agent))
        await self._redis.delete(*keys.queues(agent), keys.info(agent))
        await self._saved()

    async def close(self) -> None:
        """Close the connections."""
        await self._redis.aclose()

    async def _saved(self) -> None:
        await save_users(self._redis)
        if self._spread is not None:
            await self._spread()


async def save_users(redis: Redis) -> None:
    """Store the users of a server in its ACL file. Raises redis errors."""
    try:
        await redis.execute_command("ACL", "SAVE")
    except ResponseError as error:
        if "not configured to use an ACL file" not in str(error):
            raise
        # `tachikoma redis check` reports the missing ACL file.
        log.warning("accounts.not_saved", reason="Redis has no aclfile: a restart of Redis loses its users")
