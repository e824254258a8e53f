"""The feed: tells Flower, and whoever else listens to Celery's events, what happens.

One orchestrator at a time follows the audit trail, which has everything once and in order, and says from the ledger's
records, in batches, what it finds there. It tells everything anew, `RECENT` executions and all agents, when somebody
begins to listen (they say so on `orch:events:wanted`), and after everything by which something may have been missed: a
new connection to Redis, another orchestrator. What is told twice is told in the same words.

While nobody listens, nothing is read and nothing told; what Redis answers to a message is who heard it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress

import structlog
from redis.exceptions import LockError, RedisError

from tachikoma.errors import RecordAltered
from tachikoma.redis import keys
from tachikoma.redis.access import wrong_type
from tachikoma.redis.commands import Lock, Redis
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

#: Executions that are told to whoever begins to listen: the latest.
RECENT = 5000
#: Executions that become one message, and entries of the audit trail that are read at once.
BATCH = 100
#: How long what happens is gathered before it is told.
GATHER_SECONDS = 0.25
#: How long one look at the audit trail waits for something new.
BLOCK_SECONDS = 1.0
#: Between looks for listeners that do not say when they begin, while there are none.
IDLE_SECONDS = 5.0
#: Shortest time between two times that everything is told.
ANEW_SECONDS = 2.0
#: How long an orchestrator is the one that tells, without saying so again; and between attempts of the others.
LOCK_SECONDS = 6.0
RETRY_SECONDS = 1.0


class Feed:
    """Tells what happens, as long as it runs."""

    def __init__(self, redis: Redis, ledger: Ledger, registry: Registry, subscriber: Subscriber) -> None:
        """Prepare a feed, before the subscriber runs.

        Args:
            redis: connections that are not a request's; it waits on them.
            ledger: whose records it tells.
            registry: whose agents it tells.
            subscriber: hears that somebody begins to listen.
        """
        self._redis = redis
        self._ledger = ledger
        self._registry = registry
        self._messages = EventFactory()
        self._wanted = asyncio.Event()
        #: Whether each agent is online, as listeners were told last.
        self._online: dict[str, bool] = {}
        #: When everything, and when the agents were told last, by the monotonic clock.
        self._told_at = self._agents_at = float("-inf")
        #: When this was last confirmed to be the orchestrator that tells.
        self._locked_at = float("-inf")
        subscriber.on_pattern(keys.EVENTS_WANTED, self._somebody)
        subscriber.on_gap(self._gap)

    async def _somebody(self, _channel: str, _message: bytes) -> None:
        self._wanted.set()

    async def _gap(self) -> None:
        # Somebody may have begun to listen meanwhile, and was not heard.
        self._wanted.set()

    async def run(self) -> None:
        """Tell for ever, while no other orchestrator does."""
        # Not before it would hear of whoever begins to listen next.
        await self._wanted.wait()
        lock = self._redis.lock(keys.audit_lock("events"), timeout=LOCK_SECONDS)
        try:
            while True:
                try:
                    # It may be ours still, after an interruption.
                    if await lock.acquire(blocking=False) or await lock.owned():
                        await self._tell(lock)
                except (RedisError, OSError, LockError) as error:
                    log.warning("events.interrupted", reason=str(error)[:200])
                except Exception:
                    # What only shows must not end what works.
                    log.exception("events.failed")
                await asyncio.sleep(RETRY_SECONDS)
        finally:
            with suppress(RedisError, OSError, LockError):
                await lock.release()

    async def _tell(self, lock: Lock) -> None:
        """Tell while the lock is ours."""
        self._locked_at = float("-inf")
        cursor = None
        while True:
            await self._keep(lock)
            if cursor is not None and not self._wanted.is_set():
                cursor = await self._tell_new(cursor)
            elif (early := self._told_at + ANEW_SECONDS - time.monotonic()) > 0:
                await asyncio.sleep(early)
            else:
                self._wanted.clear()
                cursor = await self._tell_all(lock)
            if cursor is None:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._wanted.wait(), min(IDLE_SECONDS, LOCK_SECONDS / 3))

    async def _keep(self, lock: Lock) -> None:
        if time.monotonic() - self._locked_at > LOCK_SECONDS / 3:
            await lock.reacquire()
            self._locked_at = time.monotonic()

    # --- what is told -------------------------------------------------------------------------------------------------

    async def _publish(self, kind: str, events: Sequence[Event]) -> bool:
        """Whether anybody heard them."""
        message = self._messages.message(kind, events)
        return await self._redis.publish(keys.celery_events(kind), message) > 0

    async def _tell_all(self, lock: Lock) -> str | None:
        """Tell everything anew. The place in the trail up to which it is told, or None where nobody listens."""
        if not await self._publish("worker", [{"type": BEGIN, "hostname": "tachikoma"}]):
            return None
        self._told_at = time.monotonic()
        self._online.clear()
        # First, so that what happens while records are read is told twice rather than not at all.
        latest = await self._redis.xrevrange(keys.AUDIT, count=1)
        cursor = latest[0][0].decode() if latest else "0-0"
        await self._tell_agents()
        ids = await self._recent()
        for begin in range(0, len(ids), BATCH):
            await self._tell_executions(ids[begin : begin + BATCH])
            await self._keep(lock)
        log.info("events.told_anew", executions=len(ids), agents=len(self._online))
        return cursor

    async def _recent(self) -> list[str]:
        """The latest executions, oldest first; before them any that have not ended, however old."""
        latest = await self._ledger.newest("", ended=True, before=None, limit=RECENT)
        still_open = await self._ledger.newest("", ended=False, before=None, limit=RECENT)
        # Later entries move to the end of a dictionary only when they are not in it.
        return list(dict.fromkeys(exec_id for exec_id, _ in reversed([*latest, *still_open])))

    async def _tell_new(self, cursor: str) -> str | None:
        """Tell what is new after a place in the trail. The next place, or None where nobody listens any more."""
        answer = await self._redis.xread({keys.AUDIT: cursor}, count=BATCH, block=round(BLOCK_SECONDS * 1000))
        steps: dict[str, frozenset[str]] = {}
        agents_changed = False
        entries = [entry for _, found in answer or () for entry in found]
        for at, fields in entries:
            cursor = at.decode()
            code = fields.get(b"event", b"").decode(errors="replace")
            if code in STEPS:
                exec_id = fields.get(b"id", b"").decode(errors="replace")
                steps[exec_id] = steps.get(exec_id, frozenset()) | STEPS[code]
            elif code in WORKER_CODES:
                agents_changed = True
        heard = True
        if agents_changed or time.monotonic() - self._agents_at >= HEARTBEAT_SECONDS:
            heard = await self._tell_agents()
        if steps:
            heard = await self._tell_executions(list(steps), steps) and heard
        if entries and len(entries) < BATCH:
            await asyncio.sleep(GATHER_SECONDS)
        return cursor if heard else None

    async def _tell_agents(self) -> bool:
        """Tell how all agents are. Whether somebody heard it, or there was nothing to tell."""
        self._agents_at = time.monotonic()
        agents = await self._registry.all()
        async with self._redis.pipeline(transaction=False) as pipe:
            for agent in agents:
                pipe.llen(keys.queue(agent))
                pipe.zcard(keys.agent_index(agent))
            counts = await pipe.execute(raise_on_error=False) if agents else []
        events: list[Event] = []
        for (agent, state), queued, processed in zip(agents.items(), counts[::2], counts[1::2], strict=True):
            for count in (queued, processed):
                if isinstance(count, Exception) and not wrong_type(count):
                    raise count
            known = self._online.get(agent)
            events += worker_events(
                agent,
                state,
                # A key that holds something else was put there by somebody who means harm.
                queued=0 if isinstance(queued, Exception) else queued,
                processed=0 if isinstance(processed, Exception) else processed,
                news=known is None or (state.online and not known),
            )
            self._online[agent] = state.online
        heard = True
        for begin in range(0, len(events), BATCH):
            heard = await self._publish("worker", events[begin : begin + BATCH]) and heard
        return heard

    async def _tell_executions(self, ids: Sequence[str], steps: Mapping[str, frozenset[str]] | None = None) -> bool:
        """Tell what happened to executions: everything, or of each only these steps. Whether somebody heard it."""
        events: list[Event] = []
        away: set[str] = set()
        for record in await self._ledger.records(ids):
            try:
                told = list(task_events(record))
            except (RecordAltered, OverflowError) as error:
                log.error("record.unreadable", id=record.exec_id, reason=str(error)[:300])
                continue
            events += (event for event in told if steps is None or event["type"] in steps[record.exec_id])
            if self._online.get(record.agent) is False:
                away.add(record.agent)
        # Celery takes a worker for online of whose task it hears; of one that is lost with its agent, too.
        now = time.time()
        events += ({"type": "worker-offline", "hostname": keys.node(agent), "timestamp": now} for agent in away)
        return not events or await self._publish("task", events)
