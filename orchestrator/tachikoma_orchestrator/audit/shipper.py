"""Ships the audit trail from Redis to its sinks, and says when too much of it waits.

The chain of files is every orchestrator's own, with all events, and its position stands in the files themselves. Syslog
and standard output are shared: one orchestrator at a time holds the lock, and the position stands in Redis.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress

import structlog
from redis.exceptions import LockError, RedisError, ResponseError

from tachikoma.audit.chain import last_number
from tachikoma.redis import keys
from tachikoma.redis.access import wrong_type
from tachikoma.redis.commands import Lock, Redis
from tachikoma.vocabulary.audit import ExecAuditLog
from tachikoma_orchestrator.audit.entries import read_entries
from tachikoma_orchestrator.audit.positions import SinkPosition
from tachikoma_orchestrator.audit.sinks import FileSink, Sink, SinkAway
from tachikoma_orchestrator.audit.trail import AuditTrail
from tachikoma_orchestrator.metrics import AUDIT_CLOSED, AUDIT_WAITING

__all__ = ["Shipper"]

log = structlog.get_logger(__name__)

#: Events given to a sink at once. What gathers while a sink works goes with one disk sync.
BATCH = 500
#: How long one look waits for events.
BLOCK_SECONDS = 1.0
#: Before a sink that is away is tried again.
RETRY_SECONDS = 1.0
#: Between two checkpoints of a file at the most, while there is something to sign for.
CHECKPOINT_SECONDS = 60.0
#: How long the lock of a shared sink is held without being renewed; longer than a sink takes for a batch.
LOCK_SECONDS = 30.0
#: Between looks at how much waits.
WATCH_SECONDS = 0.25


class Shipper:
    """Ships to one file and any shared sinks."""

    def __init__(
        self,
        redis: Redis,
        trail: AuditTrail,
        file: FileSink | None,
        shared: Sequence[Sink],
        *,
        backlog: int,
        closed: bool,
    ) -> None:
        """Prepare a shipper; there must be a file or a shared sink.

        Args:
            redis: connections of its own; it waits on them.
            trail: told when too much waits.
            file: the chain of files, if there is one.
            shared: sinks of which each gets every event from one orchestrator alone.
            backlog: events that may wait for a sink.
            closed: whether requests are refused beyond that.
        """
        self._redis = redis
        self._trail = trail
        self._file = file
        self._shared = shared
        self._backlog = backlog
        self._closed = closed
        #: Why it cannot be told how much waits, or nothing.
        self._untold = ""

    def start(self) -> list[asyncio.Task[None]]:
        """Ship until the tasks are cancelled, all together, with `cancel_all`."""
        parts = [self._watch(), *[self._ship_shared(sink) for sink in self._shared]]
        if self._file is not None:
            parts.append(self._ship_file(self._file))
        return [asyncio.create_task(part) for part in parts]

    # --- shipping -----------------------------------------------------------------------------------------------------

    async def _read(self, cursor: str) -> list[ExecAuditLog]:
        answer = await self._redis.xread({keys.AUDIT: cursor}, count=BATCH, block=round(BLOCK_SECONDS * 1000))
        return read_entries(entry for _, entries in answer or () for entry in entries)

    async def _keep(self, sink: Sink, cursor: str, seq: int) -> None:
        await self._redis.hset(keys.AUDIT_SINKS, sink.name, SinkPosition(cursor, seq, round(time.time())).to_json())

    async def _send(self, sink: Sink, events: Sequence[ExecAuditLog]) -> int:
        """Give events to a sink; how many it took."""
        try:
            await asyncio.to_thread(sink.send, events)
        except SinkAway as away:
            log.error("audit.sink_away", sink=sink.name, reason=str(away))
            return away.sent
        return len(events)

    async def _ship_file(self, sink: FileSink) -> None:
        signed = time.monotonic()
        told = ""
        try:
            while True:
                said = ""
                try:
                    events = await self._read(sink.cursor)
                    if events and not await self._send(sink, events):
                        await asyncio.sleep(RETRY_SECONDS)
                        continue
                    if not sink.unsigned:
                        signed = time.monotonic()
                    elif time.monotonic() - signed >= CHECKPOINT_SECONDS:
                        await asyncio.to_thread(sink.checkpoint)
                    try:
                        await self._keep(sink, sink.cursor, sink.seq)
                    except ResponseError as error:
                        if not wrong_type(error):
                            raise
                        # It stands in the file as well.
                        said = f"its position cannot be kept: {error}"
                except SinkAway as away:
                    log.error("audit.sink_away", sink=sink.name, reason=str(away))
                    await asyncio.sleep(RETRY_SECONDS)
                except (RedisError, OSError) as error:
                    said = str(error)[:200]
                    await asyncio.sleep(RETRY_SECONDS)
                # Once, until it is well again or something else is wrong.
                if said and said != told:
                    log.warning("audit.redis_away", sink=sink.name, reason=said)
                told = said
        finally:
            # What was written is signed for before the process ends.
            with suppress(SinkAway):
                sink.checkpoint()
            sink.close()

    async def _ship_shared(self, sink: Sink) -> None:
        lock = self._redis.lock(keys.audit_lock(sink.name), timeout=LOCK_SECONDS)
        try:
            while True:
                try:
                    if await lock.acquire(blocking=False):
                        await self._ship_locked(sink, lock)
                except (RedisError, OSError, LockError) as error:
                    log.warning("audit.sink_handed_over", sink=sink.name, reason=str(error)[:200])
                await asyncio.sleep(RETRY_SECONDS)
        finally:
            sink.close()
            with suppress(RedisError, OSError, LockError):
                await lock.release()

    async def _ship_locked(self, sink: Sink, lock: Lock) -> None:
        """Ship while the lock is ours."""
        cursor, seq, readable = await self._position(sink.name)
        if not readable:
            # It gets twice what it had; the other way round it would lose what it had not.
            log.error("audit.position_unreadable", sink=sink.name)
        while True:
            await lock.reacquire()
            events = await self._read(cursor)
            if not events:
                await self._keep(sink, cursor, seq)
                continue
            sent = await self._send(sink, events)
            if sent:
                cursor, seq = events[sent - 1].cursor, last_number(events[:sent], seq)
                await self._keep(sink, cursor, seq)
            if sent < len(events):
                await asyncio.sleep(RETRY_SECONDS)

    async def _position(self, name: str) -> tuple[str, int, bool]:
        """Cursor and number of the last event a shared sink took; and whether what Redis has of it can be read."""
        raw = await self._redis.hget(keys.AUDIT_SINKS, name)
        kept = None if raw is None else SinkPosition.read(raw)
        return ("0-0", 0, raw is None) if kept is None else (kept.cursor, kept.seq, True)

    # --- how much waits -----------------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        while True:
            with suppress(RedisError, OSError):
                await self.look()
            await asyncio.sleep(WATCH_SECONDS)

    async def look(self) -> None:
        """See once how much waits for each sink, and tell the trail."""
        behind = untold = ""
        try:
            waiting = await self._waiting()
            most = max(waiting, key=lambda name: waiting[name])
            if waiting[most] > self._backlog:
                behind = f"{waiting[most]} events of the audit trail wait for {most}, and at most {self._backlog} may"
        except (ValueError, ResponseError) as error:
            if isinstance(error, ResponseError) and not wrong_type(error):
                raise
            behind = untold = f"how much of the audit trail waits cannot be told: {str(error)[:200]}"
        if untold and untold != self._untold:
            log.error("audit.unreadable", reason=untold)
        self._untold = untold
        if not self._closed:
            behind = ""
        if bool(behind) != bool(self._trail.closed_reason):
            log.error("audit.closed", reason=behind) if behind else log.info("audit.open")
        self._trail.closed_reason = behind
        AUDIT_CLOSED.set(bool(behind))

    async def _waiting(self) -> dict[str, int]:
        """Events that wait, by the name of the sink. Raises ValueError where Redis has no number of the latest."""
        latest = int(await self._redis.get(keys.AUDIT_SEQ) or 0)
        waiting = {sink.name: latest - (await self._position(sink.name))[1] for sink in self._shared}
        if self._file is not None:
            waiting[self._file.name] = latest - self._file.seq
        for name, number in waiting.items():
            AUDIT_WAITING.labels(name).set(number)
        return waiting
