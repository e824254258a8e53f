"""The registry of agents: all known agents, with their last heartbeat and state.

An agent writes its own `agent.<id>:info`, which expires: an agent without this key is offline. It publishes the same
heartbeat on `agent.<id>:events`. The orchestrator stores the last heartbeat in `orch:agents`, which agents cannot
write.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import structlog
from pydantic import BaseModel, ConfigDict, ValidationError
from redis.exceptions import ResponseError

from tachikoma.errors import AgentUnknown
from tachikoma.identity.svid import SvidSource
from tachikoma.redis import keys
from tachikoma.redis.access import wrong_type
from tachikoma.redis.commands import Redis
from tachikoma.streams.heartbeat import REST_SECONDS, Heartbeat, Trust
from tachikoma.vocabulary.agents import AgentInfo, AgentTrust
from tachikoma.vocabulary.clock import from_ms
from tachikoma.vocabulary.identifiers import is_identifier
from tachikoma.vocabulary.model import Model
from tachikoma.vocabulary.types import Milliseconds
from tachikoma_orchestrator.agents.labels import Labels
from tachikoma_orchestrator.agents.observations import Observations
from tachikoma_orchestrator.agents.revocations import Revocations
from tachikoma_orchestrator.metrics import LEASE_MISSES
from tachikoma_orchestrator.store.drains import Drains
from tachikoma_orchestrator.store.lives import Lives
from tachikoma_orchestrator.store.scripts import JsonObject, Runner, Script

__all__ = ["AgentState", "Registry"]

log = structlog.get_logger(__name__)

#: Agents whose queues are counted by one call of the script.
QUEUED_AT_ONCE = 100
#: Agents that are read in one round trip, and whose leases one command asks for.
READ_AT_ONCE = 200


@dataclass(frozen=True, slots=True)
class AgentState:
    """An agent's last heartbeat and whether its lease is running."""

    heartbeat: Heartbeat
    #: Time of the heartbeat by the clock of Redis.
    seen_ms: int
    online: bool
    #: Labels that operators bound to it.
    labels: Mapping[str, str] = field(default_factory=dict)


class _Seen(BaseModel):
    """An entry of `orch:agents`, as `lua/heard.lua` writes it."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    seen_ms: Milliseconds
    heartbeat: Heartbeat


class _Draining(Model):
    """An entry of `orch:draining`: the agent takes no new executions."""

    #: SPIFFE ID of the operator.
    by: str
    #: The operator's reason.
    reason: str

    @classmethod
    def read(cls, raw: bytes) -> _Draining:
        """Read an entry. An unreadable one drains its agent all the same, as it does in the admission script."""
        try:
            return cls.model_validate_json(raw)
        except ValidationError:
            return cls(by="", reason="its entry in Redis cannot be read; resume the agent to remove the entry")


class Registry:
    """Stores heartbeats and describes agents."""

    def __init__(self, redis: Redis, identity: SvidSource, lives: Lives | None = None) -> None:
        """Prepare the registry of agents.

        Args:
            redis: the connections.
            identity: the orchestrator's own, which signs labels.
            lives: learns which lives of Redis the agents remember; None if it is not needed.
        """
        self._redis = redis
        self._lives = lives
        self._runner = Runner(redis)
        self._heard = Script("heard")
        self._queued = Script("queued")
        self._left = Script("left")
        self._drain = Script("drain")
        self.revocations = Revocations(redis)
        self.drains = Drains(redis)
        self.observations = Observations()
        #: The labels that operators bound.
        self.bound = Labels(redis, identity)
        self._reported: dict[str, dict[str, str]] = {}
        self._journals: dict[str, str] = {}
        #: Number of queues beside its main one that each agent reads.
        self._lanes: dict[str, int] = {}

    # --- heartbeats ---------------------------------------------------------------------------------------------------

    def labels(self, agent: str) -> Mapping[str, str]:
        """Return the labels that operators bound to an agent."""
        return self.bound.of(agent)

    def reported_labels(self, agent: str) -> dict[str, str]:
        """Return the labels that an agent reported in its last heartbeat; none if it never sent one."""
        return self._reported.get(agent, {})

    async def known_labels(self) -> dict[str, Mapping[str, str]]:
        """Return the bound labels of all known agents, by agent id. Raises redis errors."""
        agents = [item.decode(errors="replace") for item in await self._redis.hkeys(keys.AGENTS)]
        return {agent: self.labels(agent) for agent in agents if is_identifier(agent)}

    async def journal(self, agent: str) -> str:
        """Return the journal id in an agent's last heartbeat; empty if it never sent one."""
        if agent not in self._journals:
            # The agent may have joined a moment ago, with its first message still on the way.
            raw = await self._redis.get(keys.info(agent))
            if raw:
                await self.heard(agent, raw, age_seconds=REST_SECONDS)
        return self._journals.get(agent, "")

    def queue(self, agent: str, requester: str) -> str:
        """Return the queue for a requester's orders to an agent, by the agent's last heartbeat."""
        return keys.requester_queue(agent, requester, self._lanes.get(agent, 0))

    async def discover(self) -> None:
        """Store the heartbeats that were published while no orchestrator was subscribed. Scans all keys, in steps."""
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
                await self.heard(agent, raw, age_seconds=REST_SECONDS)

    async def heard(self, agent: str, raw: bytes, *, age_seconds: float = 0.0) -> None:
        """Store a heartbeat, unless its agent is revoked. The first heartbeat of each run of a worker is audited.

        Args:
            agent: the agent.
            raw: the heartbeat, as the agent wrote it.
            age_seconds: most seconds since it was sent; 0 for one that was sent just now.
        """
        try:
            heartbeat = Heartbeat.model_validate_json(raw)
        except ValidationError as error:
            log.warning("heartbeat.unreadable", agent=agent, error=str(error)[:500])
            return
        if not is_identifier(agent):
            log.warning("heartbeat.unreadable", agent=agent[:64], error="not a valid agent id")
            return
        reason = f"version {heartbeat.version} on {heartbeat.hostname}"
        call = self._heard(
            keys=[keys.AGENTS, keys.ONLINE, keys.AUDIT, keys.REVOKED],
            args={"agent": agent, "run": heartbeat.run, "reason": reason},
            # Without the record of the life, which is large and of use only while the agent is online.
            payloads=[heartbeat.model_copy(update={"life": ""}).model_dump_json()],
        )
        if await self._runner.run(call):
            self._reported[agent], self._journals[agent] = heartbeat.labels, heartbeat.boot
            self._lanes[agent] = heartbeat.queues
            self.observations.heard(agent, heartbeat, age_seconds=age_seconds)
            self.learn_life(heartbeat.life)

    def learn_life(self, record: str) -> None:
        """Learn of a life of Redis that an agent remembers.

        Args:
            record: its signed record; empty for none.
        """
        if self._lives is not None:
            self._lives.number_of(record)

    async def notice_departures(self) -> None:
        """Record an audit event for each agent that has gone offline. Raises redis errors."""
        joined = [item.decode(errors="replace") for item in await self._redis.hkeys(keys.ONLINE)]
        for agent in await self._without_lease(joined):
            call = self._left(keys=[keys.info(agent), keys.ONLINE, keys.AUDIT], args={"agent": agent})
            if await self._runner.run(call):
                LEASE_MISSES.inc()
                log.info("agent.left", agent=agent)

    async def _without_lease(self, agents: Sequence[str]) -> list[str]:
        """Return the agents whose lease has expired. One Redis command reads the leases of many agents."""
        groups = [agents[begin : begin + READ_AT_ONCE] for begin in range(0, len(agents), READ_AT_ONCE)]
        async with self._redis.pipeline(transaction=False) as pipe:
            for group in groups:
                pipe.exists(*map(keys.info, group))
            counts = await pipe.execute()
        gone: list[str] = []
        for group, count in zip(groups, counts, strict=True):
            if count < len(group):
                gone += [agent for agent in group if not await self._redis.exists(keys.info(agent))]
        return gone

    # --- draining -----------------------------------------------------------------------------------------------------

    async def drain(self, agent: str, *, by: str, reason: str) -> None:
        """Stop new executions on an agent. Its queued and running executions continue.

        Raises:
            AgentUnknown: the agent is unknown.
        """
        await self._set_draining(agent, _Draining(by=by, reason=reason).model_dump_json(), by, reason)

    async def resume(self, agent: str, *, by: str) -> None:
        """Allow new executions on an agent again. Raises as `drain` does."""
        await self._set_draining(agent, "", by, "")

    async def _set_draining(self, agent: str, entry: str, by: str, reason: str) -> None:
        call = self._drain(
            keys=[keys.DRAINING, keys.AGENTS, keys.AUDIT],
            args={"agent": agent, "drain": bool(entry), "entry": entry, "by": by, "reason": reason},
        )
        if not await self._runner.run(call, confirmed=True):
            raise AgentUnknown(f"there is no agent {agent[:80]!r}", metadata={"agent": agent[:80]})
        await self.drains.refresh()

    # --- state --------------------------------------------------------------------------------------------------------

    async def all(self) -> dict[str, AgentState]:
        """Return all known agents, by id. Raises redis errors.

        It costs a command for each agent. A part that needs some agents only asks for their `states`.
        """
        return await self.states([agent.decode(errors="replace") for agent in await self._redis.hkeys(keys.AGENTS)])

    async def states(self, agents: Iterable[str]) -> dict[str, AgentState]:
        """Return some agents by id, without those that are not known. Raises redis errors.

        They are read in groups, between which other tasks run: thousands of them take a while to parse.
        """
        states: dict[str, AgentState] = {}
        wanted = list(dict.fromkeys(agents))
        for begin in range(0, len(wanted), READ_AT_ONCE):
            group = wanted[begin : begin + READ_AT_ONCE]
            async with self._redis.pipeline(transaction=False) as pipe:
                pipe.hmget(keys.AGENTS, group)
                for agent in group:
                    pipe.get(keys.info(agent))
                entries, *leases = await pipe.execute(raise_on_error=False)
            if isinstance(entries, Exception):
                raise entries
            for agent, raw, lease in zip(group, entries, leases, strict=True):
                state = None if raw is None else self._state(agent, raw, lease)
                if state is not None:
                    states[agent] = state
        return states

    def _state(self, agent: str, raw: bytes, lease: bytes | Exception | None) -> AgentState | None:
        """Read an agent's entry, updated by its lease; None if the entry was not written by an orchestrator.

        Args:
            agent: the agent.
            raw: the entry.
            lease: its `agent.<id>:info`; None if it has expired. One of a wrong type counts as none.
        """
        if isinstance(lease, Exception):
            if not wrong_type(lease):
                raise lease
            lease = None
        if not is_identifier(agent):
            log.warning("agent.unreadable", agent=agent[:64], error="not a valid agent id")
            return None
        try:
            seen = _Seen.model_validate_json(raw)
        except ValidationError as error:
            # It must not hide the other agents.
            log.warning("agent.unreadable", agent=agent[:64], error=str(error)[:300])
            return None
        current = _heartbeat(lease) if lease else None
        online = current is not None and self.revocations.active(agent) is None
        return AgentState(current or seen.heartbeat, seen.seen_ms, online, self.labels(agent))

    async def describe(self, agents: Iterable[str] | None = None) -> list[AgentInfo]:
        """Return agents for callers, sorted by id. Raises redis errors.

        Args:
            agents: their ids, of which unknown ones are left out; None for all agents.
        """
        states = await (self.all() if agents is None else self.states(agents))
        known = sorted(states)
        # An entry of another type is an error here, as it is in the admission script.
        draining = await self._redis.hgetall(keys.DRAINING)
        lengths = await self.queued(known)
        return [self._describe(agent, states[agent], lengths[agent], draining.get(agent.encode())) for agent in known]

    async def queued(self, agents: Sequence[str]) -> dict[str, int | None]:
        """Return the number of orders on the queues of agents; None if one of them is no list. Raises redis errors."""
        found: dict[str, int | None] = {}
        for begin in range(0, len(agents), QUEUED_AT_ONCE):
            part = agents[begin : begin + QUEUED_AT_ONCE]
            args: JsonObject = {"agents": list(part), "lanes": keys.QUEUE_LANES}
            lengths = await self._runner.run(self._queued(keys=[], args=args))
            found |= {agent: length if length >= 0 else None for agent, length in zip(part, lengths, strict=True)}
        return found

    def _describe(self, agent: str, state: AgentState, queued: int | None, drain_entry: bytes | None) -> AgentInfo:
        """Describe one agent.

        Args:
            agent: its id.
            state: its state.
            queued: number of orders on its queues; None if one of them is no list.
            drain_entry: its entry in `orch:draining`.
        """
        beat = state.heartbeat
        warnings = (*beat.warnings, *self.observations.warnings(agent))
        if queued is None:
            queued, warnings = 0, (*warnings, "its queue in Redis is not a list")
        draining = None if drain_entry is None else _Draining.read(drain_entry)
        revoked = self.revocations.active(agent)
        return AgentInfo(
            id=agent,
            online=state.online,
            last_seen=from_ms(state.seen_ms),
            version=beat.version,
            hostname=beat.hostname,
            labels=dict(self.labels(agent)),
            reported_labels=beat.labels,
            running=beat.running,
            slots=beat.slots,
            queued=queued,
            load=beat.load,
            memory_used=beat.memory_used,
            disk_used=beat.disk_used,
            warnings=warnings,
            isolation=beat.isolation,
            trust=None if beat.trust is None else _trust(beat.trust),
            draining=draining is not None,
            drained_by=draining.by if draining else "",
            drain_reason=draining.reason if draining else "",
            revoked=revoked is not None,
            revoked_by=revoked.by if revoked else "",
            revoke_reason=revoked.reason if revoked else "",
        )


def _heartbeat(raw: bytes) -> Heartbeat | None:
    """Read a heartbeat that an agent wrote; None if it is invalid."""
    try:
        return Heartbeat.model_validate_json(raw)
    except ValidationError:
        return None


def _trust(trust: Trust) -> AgentTrust:
    """Return the identity and trusted roots that an agent reports, for callers."""
    return AgentTrust(
        spiffe_id=trust.spiffe_id, expires=from_ms(trust.expires_ms), root=trust.root, bundle=trust.bundle
    )
