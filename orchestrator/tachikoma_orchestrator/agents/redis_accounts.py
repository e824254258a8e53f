"""The agents' users in Redis, made and removed while it runs.

That needs a user of its own (`redis_users.ENROLLER`), which can give any right to anybody: only orchestrators that let
agents join have its password, and they use it for nothing else.
"""

from __future__ import annotations

import hashlib
import secrets

import structlog
from redis.exceptions import ResponseError

from tachikoma.redis import keys
from tachikoma.redis.commands import Redis
from tachikoma.redis.users import agent_user, rules

__all__ = ["Accounts"]

log = structlog.get_logger(__name__)


class Accounts:
    """Makes and removes them. All methods raise redis errors."""

    def __init__(self, redis: Redis) -> None:
        """Use a connection of the user `enroller`."""
        self._redis = redis

    async def check(self) -> None:
        """See that Redis lets us in, and can keep users."""
        await self._save()

    async def give(self, agent: str) -> str:
        """A new password for an agent, whose user is made, or made anew: who had the one before is thrown out."""
        user, password = agent_user(agent), secrets.token_hex(32)
        await self._redis.execute_command("ACL", "DELUSER", user)
        words = rules(user, [hashlib.sha256(password.encode()).hexdigest()])
        await self._redis.execute_command("ACL", "SETUSER", user, *words)
        await self._save()
        return password

    async def remove(self, agent: str) -> None:
        """Throw an agent out: its connections end at once, and what waits for it is gone."""
        await self._redis.execute_command("ACL", "DELUSER", agent_user(agent))
        await self._redis.delete(keys.queue(agent), keys.info(agent))
        await self._save()

    async def close(self) -> None:
        """Close the connections."""
        await self._redis.aclose()

    async def _save(self) -> None:
        try:
            await self._redis.execute_command("ACL", "SAVE")
        except ResponseError as error:
            if "not configured to use an ACL file" not in str(error):
                raise
            # `tachikoma redis check` asks for one.
            log.warning("accounts.not_saved", reason="Redis has no aclfile: a restart of it forgets its users")
