"""The people that have an identity from a token, or were revoked."""

from __future__ import annotations

from collections.abc import Mapping

import structlog
from pydantic import BaseModel, ConfigDict, ValidationError

from tachikoma.identity.spiffe import Member
from tachikoma.redis import keys
from tachikoma.redis.commands import Redis
from tachikoma.vocabulary.clock import from_ms
from tachikoma.vocabulary.types import Milliseconds
from tachikoma.vocabulary.users import UserInfo
from tachikoma_orchestrator.agents.revocations import Revocations

__all__ = ["Users"]

log = structlog.get_logger(__name__)


class _Joined(BaseModel):
    """An entry as `joining.py` stores it."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    by: str
    address: str
    at_ms: Milliseconds


class Users:
    """Lists people."""

    def __init__(self, redis: Redis, revocations: Revocations) -> None:
        """Use the connections, and this orchestrator's copy of the revocations."""
        self._redis = redis
        self._revocations = revocations

    async def describe(self) -> list[UserInfo]:
        """Return all people, by name. Raises redis errors."""
        joined: Mapping[bytes, bytes] = await self._redis.hgetall(keys.USERS)
        await self._revocations.refresh()
        entries = {key.decode(errors="replace"): raw for key, raw in joined.items()}
        found = {key: Member.parse(key) for key in (*entries, *self._revocations.members())}
        people = {key: member for key, member in found.items() if member is not None and not member.is_agent}
        return [self._info(key, people[key].name, entries.get(key)) for key in sorted(people)]

    async def info(self, name: str) -> UserInfo:
        """Return the login and revocation of one person. Raises redis errors."""
        key = Member.user(name).key
        await self._revocations.refresh()
        return self._info(key, name, await self._redis.hget(keys.USERS, key))

    def _info(self, key: str, name: str, raw: bytes | None) -> UserInfo:
        revoked, entry = self._revocations.active(key), None
        try:
            entry = None if raw is None else _Joined.model_validate_json(raw)
        except ValidationError as error:
            log.error("user.unreadable", user=name, error=str(error)[:300])
        return UserInfo(
            name=name,
            joined=None if entry is None else from_ms(entry.at_ms),
            enrolled_by="" if entry is None else entry.by,
            address="" if entry is None else entry.address,
            revoked=revoked is not None,
            revoked_by="" if revoked is None else revoked.by,
            revoke_reason="" if revoked is None else revoked.reason,
        )
