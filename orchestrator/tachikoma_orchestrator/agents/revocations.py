"""Which agents were cut off: every orchestrator knows, and heeds it wherever an agent says or asks for anything.

An agent that is cut off (`lua/revoke.lua`) counts for nothing, whatever certificate it shows, until it joins again
(`lua/join.lua`); what was issued to it before it was cut off counts for nothing after that either. Scripts look into
Redis itself. This is what the rest decides by: a copy that is some tenths of a second old, and never takes back what it
knew, so that whoever owns Redis cannot let anybody back in under a running orchestrator.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

import structlog
from pydantic import BaseModel, ConfigDict, ValidationError
from redis.exceptions import RedisError

from tachikoma.redis import keys
from tachikoma.redis.commands import Redis
from tachikoma.vocabulary.types import Milliseconds

__all__ = ["Revocations", "Revoked", "parse"]

log = structlog.get_logger(__name__)

#: Between looks at Redis. With a look that takes as long, everybody knows within a second.
LOOK_SECONDS = 0.5


class _Said(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    by: str
    reason: str


class _Entry(BaseModel):
    """As `lua/revoke.lua` writes it."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    in_force: bool
    at_ms: Milliseconds
    said: _Said


@dataclass(frozen=True, slots=True)
class Revoked:
    """That an agent was cut off."""

    #: What was issued until then never counts again.
    at_ms: int
    by: str
    reason: str
    #: Whether it still is.
    in_force: bool

    @property
    def at(self) -> datetime:
        return datetime.fromtimestamp(self.at_ms / 1000, UTC)

    @property
    def over(self) -> datetime:
        """From when on certificates that are issued count again; they know whole seconds."""
        return datetime.fromtimestamp(self.at_ms // 1000 + 1, UTC)

    @property
    def why(self) -> str:
        """What is told of executions that this ends."""
        return f"its agent was cut off by {self.by}: {self.reason}"

    def refusal(self, agent: str, begins: datetime) -> str:
        """Why a certificate of the agent that begins then counts for nothing; empty where it counts."""
        if self.in_force:
            return f"agent {agent} was cut off at {self.at:%Y-%m-%d %H:%M:%S} UTC by {self.by}"
        if begins.timestamp() * 1000 <= self.at_ms:
            return f"the certificate was issued before agent {agent} was cut off at {self.at:%Y-%m-%d %H:%M:%S} UTC"
        return ""


def parse(raw: bytes) -> Revoked:
    """What stands in Redis. Of what nobody can read, that it is cut off is all that is safe."""
    try:
        entry = _Entry.model_validate_json(raw)
    except ValidationError as error:
        log.error("revocation.unreadable", error=str(error)[:300])
        return Revoked(0, "", "its entry in Redis cannot be read", in_force=True)
    return Revoked(entry.at_ms, entry.said.by, entry.said.reason, entry.in_force)


class Revocations:
    """The copy of one orchestrator."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._known: dict[str, Revoked] = {}

    async def run(self) -> None:
        """Look for ever."""
        while True:
            await self.look_if_there()
            await asyncio.sleep(LOOK_SECONDS)

    async def look_if_there(self) -> None:
        """Look once, if Redis is there; nobody can cut anybody off either while it is not."""
        try:
            await self.look()
        except (RedisError, OSError) as error:
            log.warning("revocations.redis_away", error=str(error))

    async def look(self) -> None:
        """Look once. Raises redis errors."""
        found: Mapping[bytes, bytes] = await self._redis.hgetall(keys.REVOKED)
        for name, raw in found.items():
            agent, entry = name.decode(errors="replace"), parse(raw)
            known = self._known.get(agent)
            if known is None or entry.at_ms >= known.at_ms:
                self._known[agent] = entry
            if known != self._known[agent]:
                log.info("agent.revoked" if entry.in_force else "agent.let_in_again", agent=agent, by=entry.by)

    def of(self, agent: str) -> Revoked | None:
        """That it was cut off some time, if it was."""
        return self._known.get(agent)

    def in_force(self, agent: str) -> Revoked | None:
        """That it is cut off now, if it is."""
        known = self._known.get(agent)
        return known if known is not None and known.in_force else None

    def refusal(self, agent: str, begins: datetime) -> str:
        """Why a certificate of an agent that begins then counts for nothing; empty where it counts."""
        known = self._known.get(agent)
        return "" if known is None else known.refusal(agent, begins)
