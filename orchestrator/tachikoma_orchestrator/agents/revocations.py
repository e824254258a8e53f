"""The revoked agents and people, as one orchestrator knows them.

A revoked member (`lua/revoke.lua`) is refused everywhere, whatever certificate it shows, until it joins again
(`lua/join.lua`). A certificate or token that was issued before the revocation stays refused even then.

Lua scripts read the revocations in Redis. All other code reads this copy, which is at most about a second old.
The copy never forgets a revocation: write access to Redis is not enough to readmit an agent under a running
orchestrator.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

import structlog
from pydantic import BaseModel, ConfigDict, ValidationError

from tachikoma.redis import keys
from tachikoma.redis.commands import Redis
from tachikoma.vocabulary.clock import from_ms, ms_of_seconds, to_ms, whole_seconds_of_ms
from tachikoma.vocabulary.types import Milliseconds
from tachikoma_orchestrator.agents.refreshed_copy import RefreshedCopy

__all__ = ["Revocations", "Revoked", "parse"]

log = structlog.get_logger(__name__)


class _Details(BaseModel):
    """The operator's part of an entry."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    by: str
    reason: str


class _Entry(BaseModel):
    """An entry as `lua/revoke.lua` writes it."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    active: bool
    at_ms: Milliseconds
    details: _Details


@dataclass(frozen=True, slots=True)
class Revoked:
    """A revocation of an agent or a person."""

    #: Time of the revocation. Certificates and tokens issued until then are never accepted again.
    at_ms: int
    #: SPIFFE ID of the operator.
    by: str
    #: The operator's reason.
    reason: str
    #: False once the agent has joined again, or the person logged in again.
    active: bool

    @property
    def at(self) -> datetime:
        """Time of the revocation."""
        return from_ms(self.at_ms)

    @property
    def accepted_from(self) -> datetime:
        """Earliest start of a certificate that is accepted once the agent has joined again, in whole seconds."""
        return from_ms(ms_of_seconds(whole_seconds_of_ms(self.at_ms) + 1))

    @property
    def execution_error(self) -> str:
        """The `error` of the executions that the revocation ends."""
        return f"its agent was revoked by {self.by}: {self.reason}"

    @property
    def session_error(self) -> str:
        """The reason for the end of the sessions that the revocation of a person ends."""
        return f"its requester was revoked by {self.by}: {self.reason}"

    def refusal(self, agent: str, begins: datetime) -> str:
        """Return why a certificate of the agent is refused, by the start of its validity; empty if it is accepted."""
        owner = f"agent {agent}" if "/" not in agent else agent.replace("/", " ", 1)
        if self.active:
            return f"{owner} was revoked at {self.at:%Y-%m-%d %H:%M:%S} UTC by {self.by}"
        if to_ms(begins) <= self.at_ms:
            return f"the certificate was issued before {owner} was revoked at {self.at:%Y-%m-%d %H:%M:%S} UTC"
        return ""


def parse(raw: bytes) -> Revoked:
    """Read an entry in Redis. An unreadable entry counts as an active revocation, which is the safe choice."""
    try:
        entry = _Entry.model_validate_json(raw)
    except ValidationError as error:
        log.error("revocation.unreadable", error=str(error)[:300])
        return Revoked(0, "", "its entry in Redis cannot be read", active=True)
    return Revoked(entry.at_ms, entry.details.by, entry.details.reason, entry.active)


class Revocations(RefreshedCopy):
    """One orchestrator's copy of the revocations in Redis."""

    subject = "revocations"

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._known: dict[str, Revoked] = {}
        #: The same as Redis contained them.
        self._raw: dict[str, bytes] = {}

    async def refresh(self) -> None:
        """Read the revocations in Redis. Raises redis errors."""
        found: Mapping[bytes, bytes] = await self._redis.hgetall(keys.REVOKED)
        for name, raw in found.items():
            agent, entry = name.decode(errors="replace"), parse(raw)
            known = self._known.get(agent)
            if known is None or entry.at_ms >= known.at_ms:
                self._known[agent], self._raw[agent] = entry, raw
            if known != self._known[agent]:
                log.info("revocation.active" if entry.active else "revocation.ended", agent=agent, by=entry.by)

    async def write_again(self, redis: Redis) -> None:
        """Write the revocations again that Redis lost. Raises redis errors.

        Args:
            redis: connections that need not wait for the new life of Redis.
        """
        found: Mapping[bytes, bytes] = await redis.hgetall(keys.REVOKED)
        for agent, raw in self._raw.items():
            stored = found.get(agent.encode())
            if stored is None or parse(stored).at_ms < self._known[agent].at_ms:
                log.warning("revocation.written_again", agent=agent)
                await redis.hset(keys.REVOKED, agent, raw)

    def members(self) -> tuple[str, ...]:
        """Return the key of each member that was ever revoked (`spiffe.Member.key`)."""
        return tuple(self._known)

    def latest(self, agent: str) -> Revoked | None:
        """Return the agent's latest revocation, active or not; None if it was never revoked."""
        return self._known.get(agent)

    def active(self, agent: str) -> Revoked | None:
        """Return the agent's active revocation; None if it is not revoked now."""
        known = self._known.get(agent)
        return known if known is not None and known.active else None

    def accepted_from(self, agent: str) -> datetime | None:
        """Return the earliest start of a certificate that the agent may get; None for any."""
        known = self._known.get(agent)
        return None if known is None else known.accepted_from

    def refusal(self, agent: str, begins: datetime) -> str:
        """Return why a certificate of the agent is refused, by the start of its validity; empty if it is accepted."""
        known = self._known.get(agent)
        return "" if known is None else known.refusal(agent, begins)
