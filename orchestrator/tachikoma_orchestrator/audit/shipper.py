"""Ships the audit trail from Redis to its sinks, and closes the service if too many events wait for one.

Each orchestrator has a chain of files of its own with all events; the files contain its position. Syslog and standard
output are shared: one orchestrator at a time holds the sink's lock, and the position is in Redis.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from typing import Any, NoReturn, TypeVar

import structlog
from redis.exceptions import LockError, RedisError, ResponseError

from tachikoma.audit.chain import last_number
from tachikoma.config.retry import Backoff
from tachikoma.config.tasks import supervised
from tachikoma.redis import keys
from tachikoma.redis.access import wrong_type
from tachikoma.redis.commands import Lock, Redis
from tachikoma.vocabulary.audit import ExecAuditLog
from tachikoma.vocabulary.clock import ms_of_seconds
from tachikoma_orchestrator.audit.entries import read_entries
from tachikoma_orchestrator.audit.positions import SinkPosition
from tachikoma_orchestrator.audit.sinks.file import FileSink
from tachikoma_orchestrator.audit.sinks.sink import Sink, SinkUnavailable
from tachikoma_orchestrator.audit.trail import AuditTrail
from tachikoma_orchestrator.metrics import AUDIT_CLOSED, AUDIT_WAITING
from tachikoma_orchestrator.store.known import known

__all__ = ["Shipper"]

log = structlog.get_logger(__name__)

#: Events given to a sink at once. Events that gather while a sink works share one disk sync.
BATCH = 500
#: Longest wait for new events, in seconds.
BLOCK_SECONDS = 1.0
#: Time for which further events gather after the first, so that they share one reading, write and disk sync. They are
#: recorded already: the trail in Redis is the record.
GATHER_SECONDS = 0.1
#: Longest time that the last events take to get into the files at a stop.
FLUSH_SECONDS = 2.0
#: First and longest delay before a sink or Redis is tried again.
RETRY_SECONDS = 0.5
MAX_RETRY_SECONDS = 5.0
#: Lifetime of the lock of a shared sink; longer than a sink takes for a batch.
LOCK_SECONDS = 30.0
#: Delay between attempts to get the lock of a shared sink.
TAKE_OVER_SECONDS = 1.0
#: Delay between two measurements of the events that wait.
WATCH_SECONDS = 0.25

T = TypeVar("T")


class Shipper:
    """Ships to one chain of files and any number of shared sinks."""

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
            trail: gets the reason for which requests are refused.
            file: the chain of files, if there is one.
            shared: sinks that get every event from one orchestrator alone.
            backlog: largest number of events that may wait for a sink.
            closed: True to refuse requests beyond that.
        """
        self._redis = redis
        self._trail = trail
        self._file = file
        self._shared = shared
        self._backlog = backlog
        self._closed = closed
        self._measurement = _Trouble("audit.backlog_unknown")

    async def run(self) -> NoReturn:
        """Ship until cancelled. Raises the error of a part that fails."""
        parts: list[Coroutine[Any, Any, None]] = [self._watch(), *[self._ship_shared(sink) for sink in self._shared]]
        if self._file is not None:
            parts.append(self._ship_file(self._file))
        async with supervised(*parts):
            await asyncio.Future()
        raise AssertionError("unreachable")

    # --- the chain of files -------------------------------------------------------------------------------------------

    async def _ship_file(self, sink: FileSink) -> None:
        """Ship to the files until cancelled, then sign for the last events."""
        trouble = _Trouble("audit.file_delayed", sink=sink.name)
        retry = Backoff(RETRY_SECONDS, MAX_RETRY_SECONDS)
        events: list[ExecAuditLog] = []
        try:
            while True:
                try:
                    events = await self._read(sink.cursor, at_once=len(events) == BATCH)
                    problem = await _completed(self._write_file(sink, events))
                except (SinkUnavailable, RedisError, OSError) as error:
                    trouble.report(str(error))
                    await retry.wait()
                else:
                    trouble.report(problem)
                    retry.reset()
        finally:
            with suppress(SinkUnavailable, RedisError, OSError, TimeoutError):
                await _completed(self._flush(sink))
            await _completed(asyncio.to_thread(_sign_and_close, sink))

    async def _flush(self, sink: FileSink) -> None:
        """Write the events that were still gathering when the process was stopped."""
        async with asyncio.timeout(FLUSH_SECONDS):
            events = await self._read(sink.cursor, at_once=True)
        await self._write_file(sink, events)

    async def _write_file(self, sink: FileSink, events: Sequence[ExecAuditLog]) -> str:
        """Write events and a checkpoint that is due; return a problem that does not delay the file, or empty."""
        if events:
            await asyncio.to_thread(sink.send, events)
        await asyncio.to_thread(sink.checkpoint_if_due)
        try:
            await self._store(sink.name, sink.cursor, sink.seq)
        except ResponseError as error:
            if not wrong_type(error):
                raise
            # The file contains the position as well.
            return f"the position in Redis cannot be stored: {error}"
        return ""

    # --- shared sinks -------------------------------------------------------------------------------------------------

    async def _ship_shared(self, sink: Sink) -> None:
        """Ship to a shared sink whenever its lock is free, until cancelled."""
        lock = self._redis.lock(keys.audit_lock(sink.name), timeout=LOCK_SECONDS)
        trouble = _Trouble("audit.sink_handed_over", sink=sink.name)
        try:
            while True:
                try:
                    # After an interruption the lock may still be held.
                    if await lock.acquire(blocking=False) or await lock.owned():
                        trouble.report("")
                        await self._ship_locked(sink, lock)
                except (RedisError, OSError, LockError) as error:
                    trouble.report(str(error))
                await asyncio.sleep(TAKE_OVER_SECONDS)
        finally:
            sink.close()
            with suppress(RedisError, OSError, LockError):
                await lock.release()

    async def _ship_locked(self, sink: Sink, lock: Lock) -> NoReturn:
        """Ship as long as the lock is held. Raises LockError once it is lost, redis errors."""
        trouble = _Trouble("audit.sink_unavailable", sink=sink.name)
        retry = Backoff(RETRY_SECONDS, MAX_RETRY_SECONDS)
        cursor, seq, readable = await self._position(sink.name)
        if not readable:
            # The sink gets events twice; from any later position it could miss some.
            log.error("audit.position_unreadable", sink=sink.name)
        events: list[ExecAuditLog] = []
        while True:
            await lock.reacquire()
            events = await self._read(cursor, at_once=len(events) == BATCH)
            cursor, seq, problem = await _completed(self._deliver(sink, events, cursor, seq))
            trouble.report(problem)
            if problem:
                await retry.wait()
            else:
                retry.reset()

    async def _deliver(
        self, sink: Sink, events: Sequence[ExecAuditLog], cursor: str, seq: int
    ) -> tuple[str, int, str]:  # fmt: skip
        """Give events to a shared sink and store its position.

        Returns:
            The sink's new cursor and number, and the reason if it did not take all events, else empty.
        """
        sent, problem = len(events), ""
        if events:
            try:
                await asyncio.to_thread(sink.send, events)
            except SinkUnavailable as error:
                sent, problem = error.sent, str(error)
        if sent:
            cursor, seq = events[sent - 1].cursor, last_number(events[:sent], seq)
        await self._store(sink.name, cursor, seq)
        return cursor, seq, problem

    # --- Redis --------------------------------------------------------------------------------------------------------

    async def _read(self, cursor: str, *, at_once: bool) -> list[ExecAuditLog]:
        """Read the events after a cursor.

        Args:
            cursor: the last event that was read.
            at_once: False to wait up to `BLOCK_SECONDS` for the first event, and then for others to gather.
        """
        if not at_once:
            if not await self._redis.xread({keys.AUDIT: cursor}, count=1, block=ms_of_seconds(BLOCK_SECONDS)):
                return []
            await asyncio.sleep(GATHER_SECONDS)
        answer = await self._redis.xread({keys.AUDIT: cursor}, count=BATCH)
        events = read_entries(entry for _, entries in answer or () for entry in entries)
        for event in events:
            known(self._redis).note(event.seq, event.cursor)
        return events

    async def _store(self, name: str, cursor: str, seq: int) -> None:
        """Store the position of a sink."""
        await self._redis.hset(keys.AUDIT_SINKS, name, SinkPosition(cursor, seq, round(time.time())).to_json())

    async def _position(self, name: str) -> tuple[str, int, bool]:
        """Read the position of a shared sink: its cursor and number, and False if the position cannot be read."""
        raw = await self._redis.hget(keys.AUDIT_SINKS, name)
        position = None if raw is None else SinkPosition.read(raw)
        return ("0-0", 0, raw is None) if position is None else (position.cursor, position.seq, True)

    # --- the events that wait -----------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        """Measure the waiting events, until cancelled."""
        while True:
            with suppress(RedisError, OSError):
                await self.measure()
            await asyncio.sleep(WATCH_SECONDS)

    async def measure(self) -> None:
        """Count the events that wait for each sink once, and close or open the service. Raises redis errors."""
        reason = problem = ""
        try:
            waiting = await self._waiting()
            slowest = max(waiting, key=lambda name: waiting[name])
            if waiting[slowest] > self._backlog:
                reason = f"{waiting[slowest]} audit events wait for {slowest}, more than the {self._backlog} allowed"
        except (ValueError, ResponseError) as error:
            if isinstance(error, ResponseError) and not wrong_type(error):
                raise
            reason = problem = f"the number of audit events that wait is unknown: {error}"[:200]
        self._measurement.report(problem)
        self._set_closed(reason if self._closed else "")

    def _set_closed(self, reason: str) -> None:
        if bool(reason) != bool(self._trail.closed_reason):
            log.error("audit.closed", reason=reason) if reason else log.info("audit.open")
        self._trail.closed_reason = reason
        AUDIT_CLOSED.set(bool(reason))

    async def _waiting(self) -> dict[str, int]:
        """Count the events that wait for each sink. Raises ValueError if the latest number in Redis is not one."""
        latest = int(await self._redis.get(keys.AUDIT_SEQ) or 0)
        waiting = {sink.name: latest - (await self._position(sink.name))[1] for sink in self._shared}
        if self._file is not None:
            waiting[self._file.name] = latest - self._file.seq
        for name, number in waiting.items():
            AUDIT_WAITING.labels(name).set(number)
        return waiting


class _Trouble:
    """A log event that is written once for each new reason, until the trouble is over."""

    def __init__(self, event: str, **values: str) -> None:
        self._event = event
        self._values = values
        self._reason = ""

    def report(self, reason: str) -> None:
        """Log the reason of a problem if it is new; an empty reason ends the problem."""
        reason = reason[:200]
        if reason and reason != self._reason:
            log.error(self._event, reason=reason, **self._values)
        self._reason = reason


def _sign_and_close(sink: FileSink) -> None:
    with suppress(SinkUnavailable):
        sink.checkpoint()
    sink.close()


async def _completed(work: Coroutine[Any, Any, T]) -> T:
    """Await work to its end even if this task is cancelled meanwhile, and raise the cancellation afterwards.

    A write continues in its thread after its task was cancelled. Until it has ended the sink must not be used or
    closed, and its position must be stored, or the events would be written twice.
    """
    task = asyncio.ensure_future(work)
    cancellation: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancellation = error
    if cancellation is not None:
        with suppress(BaseException):
            task.result()
        raise cancellation
    return task.result()
