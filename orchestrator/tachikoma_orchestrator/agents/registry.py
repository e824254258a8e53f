"""The agents: who was ever heard of, and how they are.

An agent writes its own `agent.<id>:info`, which expires: where it is missing the agent is offline. It publishes the
same on `agent.<id>:events`; what was heard last is kept in `orch:agents`, since an agent may not write that itself.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import structlog
from pydantic import ValidationError
from redis.exceptions import ResponseError

from tachikoma.errors import AgentUnknown
from tachikoma.redis import keys
from tachikoma.redis.access import wrong_type
from tachikoma.redis.commands import Redis
from tachikoma.streams.heartbeat import Heartbeat, Trust
from tachikoma.vocabulary.agents import AgentInfo, AgentTrust
from tachikoma.vocabulary.model import Model
from tachikoma.vocabulary.types import is_identifier
from tachikoma_orchestrator.agents.revocations import Revocations
from tachikoma_orchestrator.store.scripts import Runner, Script

__all__ = ["AgentState", "Registry"]

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class AgentState:
    """An agent's last heartbeat, and when it came by the clock of Redis."""

    heartbeat: Heartbeat
    seen_ms: int
    online: bool


def _trust(said: Trust) -> AgentTrust:
    expires = datetime.fromtimestamp(said.expires_ms / 1000, UTC)
    return AgentTrust(spiffe_id=said.spiffe_id, expires=expires, root=said.root, bundle=said.bundle)


class _Draining(Model):
    """What is kept of an agent that takes no new executions."""

    by: str
    reason: str

    @classmethod
    def read(cls, raw: bytes) -> _Draining:
        """Read it; what is none of ours keeps an agent from taking executions all the same."""
        try:
            return cls.model_validate_json(raw)
        except ValidationError:
            return cls(by="", reason="what Redis says of it cannot be read; resume it")


class Registry:
    """Reads and keeps what agents say of themselves."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._runner = Runner(redis)
        self._heard = Script("heard")
        self._left = Script("left")
        self._drain = Script("drain")
        self.revocations = Revocations(redis)
        self._labels: dict[str, dict[str, str]] = {}
        self._journals: dict[str, str] = {}

    def labels(self, agent: str) -> dict[str, str]:
        """What an agent says of itself; nothing of one that was not heard of."""
        return self._labels.get(agent, {})

    async def journal(self, agent: str) -> str:
        """The journal an agent has now, by its last heartbeat; empty of one that was not heard of."""
        if agent not in self._journals:
            # It joined, and its heartbeat is still on the way.
            raw = await self._redis.get(keys.info(agent))
            if raw:
                await self.heard(agent, raw)
        return self._journals.get(agent, "")

    async def discover(self) -> None:
        """Learn of agents that said something while nobody listened. Reads every key once, in steps."""
        async for key in self._redis.scan_iter(match=keys.ALL_INFO, count=1000):
            agent = keys.agent_of_channel(key.decode(errors="replace"))
            try:
                raw = await self._redis.get(key)
            except ResponseError as error:
                if not wrong_type(error):
                    raise
                log.warning("heartbeat.unreadable", agent=agent[:64], error=str(error))
                continue
            if raw:
                await self.heard(agent, raw)

    async def heard(self, agent: str, raw: bytes) -> None:
        """Keep a heartbeat, unless its agent is cut off; the first of each run goes on the record."""
        try:
            heartbeat = Heartbeat.model_validate_json(raw)
        except ValidationError as error:
            log.warning("heartbeat.unreadable", agent=agent, error=str(error)[:500])
            return
        if not is_identifier(agent):
            log.warning("heartbeat.unreadable", agent=agent[:64], error="no agent has such an id")
            return
        what = f"version {heartbeat.version} on {heartbeat.hostname}"
        call = self._heard(
            keys=[keys.AGENTS, keys.ONLINE, keys.AUDIT, keys.REVOKED],
            args=[agent, heartbeat.model_dump_json(), heartbeat.run, what],
        )
        if await self._runner.run(call):
            self._labels[agent], self._journals[agent] = heartbeat.labels, heartbeat.boot

    async def notice_departures(self, agents: Mapping[str, AgentState]) -> None:
        """Put on the record which of the agents that joined are gone."""
        for agent in [item.decode(errors="replace") for item in await self._redis.hkeys(keys.ONLINE)]:
            if agent not in agents or not agents[agent].online:
                call = self._left(keys=[keys.info(agent), keys.ONLINE, keys.AUDIT], args=[agent])
                if await self._runner.run(call):
                    log.info("agent.left", agent=agent)

    async def drain(self, agent: str, *, by: str, reason: str) -> None:
        """Let an agent take no new executions; what waits on its queue and what runs go on.

        Raises:
            AgentUnknown: it was never heard of.
        """
        await self._set_draining(agent, _Draining(by=by, reason=reason).model_dump_json(), by, reason)

    async def resume(self, agent: str, *, by: str) -> None:
        """Let an agent take executions again. Raises as `drain` does."""
        await self._set_draining(agent, "", by, "")

    async def _set_draining(self, agent: str, kept: str, by: str, reason: str) -> None:
        call = self._drain(keys=[keys.DRAINING, keys.AGENTS, keys.AUDIT], args=[agent, kept, by, reason])
        if not await self._runner.run(call):
            raise AgentUnknown(f"there is no agent {agent[:80]!r}", metadata={"agent": agent[:80]})

    async def all(self) -> dict[str, AgentState]:
        """Every agent ever heard of."""
        kept: dict[bytes, bytes] = await self._redis.hgetall(keys.AGENTS)
        agents = [agent.decode(errors="replace") for agent in kept]
        async with self._redis.pipeline(transaction=False) as pipe:
            for agent in agents:
                pipe.get(keys.info(agent))
            current = await pipe.execute(raise_on_error=False) if agents else []
        states: dict[str, AgentState] = {}
        for agent, raw, info in zip(agents, kept.values(), current, strict=True):
            if isinstance(info, Exception):
                if not wrong_type(info):
                    raise info
                info = None
            if not is_identifier(agent):
                log.warning("agent.unreadable", agent=agent[:64], error="no agent has such an id")
                continue
            try:
                entry: dict[str, Any] = json.loads(raw)
                heartbeat, seen_ms = Heartbeat.model_validate(entry["heartbeat"]), int(entry["seen_ms"])
            except (ValueError, TypeError, KeyError, RecursionError) as error:
                # Not written by us; it must not hide the others.
                log.warning("agent.unreadable", agent=agent[:64], error=str(error)[:300])
                continue
            if info:
                try:
                    heartbeat = Heartbeat.model_validate_json(info)
                except ValidationError:
                    info = None
            if self.revocations.in_force(agent):
                info = None
            states[agent] = AgentState(heartbeat, seen_ms, online=info is not None)
        return states

    async def describe(self) -> list[AgentInfo]:
        """All agents for callers, by id."""
        states = await self.all()
        agents = sorted(states)
        async with self._redis.pipeline(transaction=False) as pipe:
            for agent in agents:
                pipe.llen(keys.queue(agent))
            pipe.hgetall(keys.DRAINING)
            answers = await pipe.execute(raise_on_error=False)
        *queued, drained = answers
        if isinstance(drained, Exception):
            # The script of admission would refuse everything too.
            raise drained
        described = []
        for agent, length in zip(agents, queued, strict=True):
            state = states[agent]
            beat = state.heartbeat
            kept = drained.get(agent.encode())
            draining = _Draining.read(kept) if kept is not None else None
            warnings = beat.warnings
            if isinstance(length, Exception):
                if not wrong_type(length):
                    raise length
                length, warnings = 0, (*warnings, "its queue in Redis is none")
            revoked = self.revocations.in_force(agent)
            described.append(
                AgentInfo(
                    id=agent,
                    online=state.online,
                    last_seen=datetime.fromtimestamp(state.seen_ms / 1000, UTC),
                    version=beat.version,
                    hostname=beat.hostname,
                    labels=beat.labels,
                    running=beat.running,
                    slots=beat.slots,
                    queued=length,
                    load=beat.load,
                    memory_used=beat.memory_used,
                    disk_used=beat.disk_used,
                    warnings=warnings,
                    trust=None if beat.trust is None else _trust(beat.trust),
                    draining=draining is not None,
                    drained_by=draining.by if draining else "",
                    drain_reason=draining.reason if draining else "",
                    revoked=revoked is not None,
                    revoked_by=revoked.by if revoked else "",
                    revoke_reason=revoked.reason if revoked else "",
                )
            )
        return described
