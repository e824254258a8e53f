"""The feed: publishes the Celery events of executions and agents, for Flower and any other listener.

One orchestrator at a time follows the audit trail, which has every event once and in order, and makes Celery's events
from the ledger's records, in batches. It publishes everything, `RECENT` executions and all agents, when a listener
connects (`orch:events:wanted`), and whenever events may have been missed: after a new connection to Redis, or when
another orchestrator takes over. An event that is published twice has the same content.

Without a listener nothing is read or published: Redis reports how many listeners received a message.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import NoReturn

import structlog
from redis.exceptions import LockError, RedisError

from tachikoma.config.retry import Backoff
from tachikoma.errors import RecordAltered
from tachikoma.redis import keys
from tachikoma.redis.access import wrong_type
from tachikoma.redis.commands import Lock, Redis
from tachikoma.vocabulary.clock import ms_of_seconds
from tachikoma_orchestrator.agents.registry import Registry
from tachikoma_orchestrator.executions.ledger import Ledger
from tachikoma_orchestrator.flower.celery_events import (
    BEGIN,
    HEARTBEAT_SECONDS,
    STEPS,
    WORKER_CODES,
    Event,
    EventFactory,
    task_events,
    worker_events,
)
from tachikoma_orchestrator.store.subscriber import Subscriber

__all__ = ["RECENT", "Feed"]

log = structlog.get_logger(__name__)

#: Number of the latest executions that a new listener gets.
RECENT = 5000
#: Executions in one message, and entries of the audit trail read at once.
BATCH = 100
#: Time for which events gather before they are published.
GATHER_SECONDS = 0.25
#: Longest wait for new entries of the audit trail.
BLOCK_SECONDS = 1.0
#: Time between two checks for listeners that do not announce themselves, while there is none.
IDLE_SECONDS = 5.0
#: Shortest time between two publications of everything.
REPUBLISH_SECONDS = 2.0
#: Lifetime of the lock without renewal.
LOCK_SECONDS = 6.0
#: Delay between two attempts to get the lock from another orchestrator.
TAKE_OVER_SECONDS = 1.0
#: First and longest delay after a failure.
RETRY_SECONDS = 1.0
MAX_RETRY_SECONDS = 5.0


class Feed:
    """Publishes events while it runs and no other orchestrator does."""

    def __init__(self, redis: Redis, ledger: Ledger, registry: Registry, subscriber: Subscriber) -> None:
        """Prepare a feed, before the subscriber runs.

        Args:
            redis: connections apart from those of requests; the feed waits on them.
            ledger: has the records of executions.
            registry: has the agents.
            subscriber: receives the announcements of listeners.
        """
        self._redis = redis
        self._ledger = ledger
        self._registry = registry
        self._messages = EventFactory()
        #: Set if everything must be published.
        self._wanted = asyncio.Event()
        #: State of each agent as it was last published: True for online.
        self._online: dict[str, bool] = {}
        #: Time of the last publication of everything, and of the agents, by the monotonic clock.
        self._all_published_at = self._agents_published_at = float("-inf")
        #: Time of the last renewal of the lock, by the monotonic clock.
        self._locked_at = float("-inf")
        subscriber.on_pattern(keys.EVENTS_WANTED, self._listener_connected)
        subscriber.on_gap(self._gap)

    async def _listener_connected(self, _channel: str, _message: bytes) -> None:
        self._wanted.set()

    async def _gap(self) -> None:
        # A listener may have connected during the gap.
        self._wanted.set()

    async def run(self) -> NoReturn:
        """Publish until cancelled, whenever the lock is free."""
        # The subscriber must run first, or the announcement of a listener could be missed.
        await self._wanted.wait()
        lock = self._redis.lock(keys.audit_lock("events"), timeout=LOCK_SECONDS)
        retry = Backoff(RETRY_SECONDS, MAX_RETRY_SECONDS)
        try:
            while True:
                try:
                    # After an interruption the lock may still be held.
                    if await lock.acquire(blocking=False) or await lock.owned():
                        retry.reset()
                        await self._publish_changes(lock)
                    await asyncio.sleep(TAKE_OVER_SECONDS)
                except (RedisError, OSError, LockError) as error:
                    log.warning("events.interrupted", reason=str(error)[:200])
                    await retry.wait()
                except Exception:
                    # Events are for display only: a failure must not end the orchestrator.
                    log.exception("events.failed")
                    await retry.wait()
        finally:
            with suppress(RedisError, OSError, LockError):
                await lock.release()

    async def _publish_changes(self, lock: Lock) -> NoReturn:
        """Publish as long as the lock is held. Raises LockError once it is lost, redis errors."""
        self._locked_at = float("-inf")
        #: Place in the trail up to which everything is published; None without a listener.
        cursor: str | None = None
        while True:
            await self._renew(lock)
            if cursor is not None and not self._wanted.is_set():
                cursor = await self._publish_new(cursor)
            elif (early := self._all_published_at + REPUBLISH_SECONDS - time.monotonic()) > 0:
                await asyncio.sleep(early)
            else:
                self._wanted.clear()
                cursor = await self._publish_all(lock)
            if cursor is None:
                with suppress(TimeoutError):
                    async with asyncio.timeout(min(IDLE_SECONDS, LOCK_SECONDS / 3)):
                        await self._wanted.wait()

    async def _renew(self, lock: Lock) -> None:
        if time.monotonic() - self._locked_at > LOCK_SECONDS / 3:
            await lock.reacquire()
            self._locked_at = time.monotonic()

    # --- everything ---------------------------------------------------------------------------------------------------

    async def _publish_all(self, lock: Lock) -> str | None:
        """Publish everything.

        Returns:
            The place in the trail up to which everything is published, or None if there is no listener.
        """
        if not await self._send("worker", [{"type": BEGIN, "hostname": "tachikoma"}]):
            return None
        self._all_published_at = time.monotonic()
        self._online.clear()
        # Read before the records, so that changes meanwhile are published twice and not missed.
        latest = await self._redis.xrevrange(keys.AUDIT, count=1)
        cursor = latest[0][0].decode() if latest else "0-0"
        await self._publish_agents()
        ids = await self._recent()
        for begin in range(0, len(ids), BATCH):
            await self._publish_executions(ids[begin : begin + BATCH])
            await self._renew(lock)
        log.info("events.all_published", executions=len(ids), agents=len(self._online))
        return cursor

    async def _recent(self) -> list[str]:
        """Return the ids of the latest executions, oldest first, after all older ones that have not finished."""
        latest = await self._ledger.newest("", ended=True, before=None, limit=RECENT)
        unfinished = await self._ledger.newest("", ended=False, before=None, limit=RECENT)
        # A dictionary keeps the place of the first of two equal keys.
        return list(dict.fromkeys(exec_id for exec_id, _ in reversed([*latest, *unfinished])))

    # --- changes ------------------------------------------------------------------------------------------------------

    async def _publish_new(self, cursor: str) -> str | None:
        """Publish the changes after a place in the trail.

        Returns:
            The next place, or None if there is no listener any more.
        """
        answer = await self._redis.xread({keys.AUDIT: cursor}, count=BATCH, block=ms_of_seconds(BLOCK_SECONDS))
        entries = [entry for _, found in answer or () for entry in found]
        steps: dict[str, frozenset[str]] = {}
        agents_changed = False
        for at, fields in entries:
            cursor = at.decode()
            code = fields.get(b"event", b"").decode(errors="replace")
            if code in STEPS:
                exec_id = fields.get(b"id", b"").decode(errors="replace")
                steps[exec_id] = steps.get(exec_id, frozenset()) | STEPS[code]
            agents_changed = agents_changed or code in WORKER_CODES
        received = True
        if agents_changed or time.monotonic() - self._agents_published_at >= HEARTBEAT_SECONDS:
            received = await self._publish_agents()
        if steps:
            received = await self._publish_executions(list(steps), steps) and received
        if entries and len(entries) < BATCH:
            await asyncio.sleep(GATHER_SECONDS)
        return cursor if received else None

    async def _publish_agents(self) -> bool:
        """Publish the state of all agents. Returns False if there is no listener."""
        self._agents_published_at = time.monotonic()
        agents = await self._registry.all()
        counts = await self._agent_counts(list(agents))
        events: list[Event] = []
        for agent, state in agents.items():
            queued, processed = counts[agent]
            published = self._online.get(agent)
            news = published is None or (state.online and not published)
            events += worker_events(agent, state, queued=queued, processed=processed, news=news)
            self._online[agent] = state.online
        received = True
        for begin in range(0, len(events), BATCH):
            received = await self._send("worker", events[begin : begin + BATCH]) and received
        return received

    async def _agent_counts(self, agents: Sequence[str]) -> dict[str, tuple[int, int]]:
        """Count the orders on each agent's queues and its executions in the ledger. Raises redis errors."""
        if not agents:
            return {}
        queued = await self._registry.queued(agents)
        async with self._redis.pipeline(transaction=False) as pipe:
            for agent in agents:
                pipe.zcard(keys.agent_index(agent))
            answers = await pipe.execute(raise_on_error=False)
        counts: dict[str, tuple[int, int]] = {}
        for agent, answer in zip(agents, answers, strict=True):
            if isinstance(answer, Exception) and not wrong_type(answer):
                raise answer
            # An attacker may have written another type.
            counts[agent] = queued[agent] or 0, 0 if isinstance(answer, Exception) else answer
        return counts

    async def _publish_executions(self, ids: Sequence[str], steps: Mapping[str, frozenset[str]] | None = None) -> bool:
        """Publish events of executions.

        Args:
            ids: the executions.
            steps: the types of events to publish of each; None for all.

        Returns:
            False if there is no listener.
        """
        events: list[Event] = []
        offline: set[str] = set()
        for record in await self._ledger.records(ids):
            try:
                found = list(task_events(record))
            except (RecordAltered, OverflowError) as error:
                log.error("record.unreadable", id=record.exec_id, reason=str(error)[:300])
                continue
            events += (event for event in found if steps is None or event["type"] in steps[record.exec_id])
            if self._online.get(record.agent) is False:
                offline.add(record.agent)
        # Celery marks a worker online with each event of its tasks, also if the task was lost with its agent.
        now = time.time()
        events += ({"type": "worker-offline", "hostname": keys.node(agent), "timestamp": now} for agent in offline)
        return not events or await self._send("task", events)

    async def _send(self, kind: str, events: Sequence[Event]) -> bool:
        """Publish events in one message. Returns False if there is no listener."""
        message = self._messages.message(kind, events)
        return await self._redis.publish(keys.celery_events(kind), message) > 0
