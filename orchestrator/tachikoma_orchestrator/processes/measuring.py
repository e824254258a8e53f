"""Regular measurements beside the calls: agents, queues, open executions, certificates."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence

import structlog
from redis.exceptions import RedisError

from tachikoma.errors import TachikomaError
from tachikoma.identity.svid import SvidSource
from tachikoma.redis import keys
from tachikoma.redis.commands import Redis
from tachikoma.vocabulary.agents import AgentInfo
from tachikoma.vocabulary.clock import seconds_of_ms
from tachikoma.vocabulary.states import ExecState
from tachikoma_orchestrator import metrics
from tachikoma_orchestrator.agents.registry import Registry
from tachikoma_orchestrator.executions.ledger import Ledger
from tachikoma_orchestrator.executions.record import Record
from tachikoma_orchestrator.executions.waiters import Completions
from tachikoma_orchestrator.store.lives import Lives
from tachikoma_orchestrator.store.subscriber import Subscriber

__all__ = ["Measuring"]

log = structlog.get_logger(__name__)

#: Between two measurements, in seconds; Prometheus reads about as often.
INTERVAL_SECONDS = 15.0
#: Largest number of open executions whose records are read for one measurement.
MOST_OPEN = 1000


class Measuring:
    """Sets the gauges of a process now and then. It runs only where metrics are read."""

    def __init__(
        self, redis: Redis, registry: Registry, ledger: Ledger, completions: Completions, identity: SvidSource,
        lives: Lives, followed: Sequence[Subscriber],
    ) -> None:  # fmt: skip
        self._redis = redis
        self._registry = registry
        self._ledger = ledger
        self._completions = completions
        self._identity = identity
        self._lives = lives
        self._followed = followed

    async def run(self) -> None:
        """Measure regularly, until cancelled."""
        while True:
            try:
                await self.measure()
            except (RedisError, OSError, TachikomaError) as error:
                # Gauges keep their last values; `tachikoma_redis_seconds` and the log show that Redis is unavailable.
                log.warning("metrics.not_measured", reason=str(error))
            await asyncio.sleep(INTERVAL_SECONDS)

    async def measure(self) -> None:
        """Set all gauges. Raises redis errors."""
        metrics.LIFE.set(self._lives.number)
        metrics.CERTIFICATE_EXPIRES.labels("own").set(self._identity.current().not_after.timestamp())
        metrics.WAITING_CALLERS.set(len(self._completions.all_awaited()))
        metrics.LISTENING.set(sum(subscriber.channels for subscriber in self._followed))
        _measure_agents(await self._registry.describe())
        total = await self._redis.zcard(keys.OPEN)
        records = await self._ledger.records(await self._ledger.open_executions(offset=0, limit=MOST_OPEN))
        _measure_open(records, total, await self._ledger.now_ms())


def _measure_agents(agents: Sequence[AgentInfo]) -> None:
    states = Counter(map(_state, agents))
    online = [agent for agent in agents if agent.online]
    for state in ("online", "draining", "offline", "revoked"):
        metrics.AGENTS.labels(state).set(states[state])
    metrics.AGENTS.labels("warned").set(sum(bool(agent.warnings) for agent in online))
    metrics.QUEUED.set(sum(agent.queued for agent in agents))
    metrics.QUEUED_LONGEST.set(max((agent.queued for agent in agents), default=0))
    expiries = [agent.trust.expires.timestamp() for agent in online if agent.trust is not None]
    if expiries:
        metrics.CERTIFICATE_EXPIRES.labels("agents").set(min(expiries))


def _state(agent: AgentInfo) -> str:
    if agent.revoked:
        return "revoked"
    if not agent.online:
        return "offline"
    return "draining" if agent.draining else "online"


def _measure_open(records: Sequence[Record], total: int, now_ms: int) -> None:
    states = Counter(record.state for record in records)
    for state in ExecState:
        if not state.terminal:
            metrics.OPEN_EXECUTIONS.labels(state.lower()).set(states[state])
    metrics.OPEN_EXECUTIONS.labels("all").set(total)
    waits = [now_ms - record.admitted_ms for record in records if record.state is ExecState.QUEUED]
    metrics.OLDEST_QUEUED.set(max(0.0, seconds_of_ms(max(waits, default=0))))
