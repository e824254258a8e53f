"""Celery beat with RedBeat: nudges the submitter whenever a schedule is due.

What beat sends is the name of a schedule and a due time, and nothing of what is to run: that the submitter takes from
its own file, and decides by its own record what is due. So a nudge that is sent twice, late or never does no harm, and
neither does whoever can write to beat's names in Redis. Of RedBeat are used its lock, so that one of several beats
works, and its record of when beat was at each schedule; what stands there of tasks and rules is not read.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import redis
import structlog
from celery import Celery, signals
from celery.beat import Service
from celery.schedules import BaseSchedule, schedstate
from kombu import Queue
from redbeat.decoder import RedBeatJSONDecoder
from redbeat.schedulers import (
    LUA_EXTEND_TO_SCRIPT,
    RedBeatScheduler,
    RedBeatSchedulerEntry,
    acquire_distributed_beat_lock,
    get_redis,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import LockError, RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from tachikoma.redis import celery_broker, keys
from tachikoma.redis.access import CONNECT_SECONDS, OPERATION_SECONDS, RedisAccess
from tachikoma.redis.keys import DUE_TASK
from tachikoma.redis.tls import BrokerTlsConnection
from tachikoma.schedules.timing import Timing
from tachikoma.vocabulary.clock import from_ms, to_ms
from tachikoma_orchestrator.schedules.sources import ActiveSchedules

__all__ = ["Beat"]

log = structlog.get_logger(__name__)

#: Longest time between looks at the file, the lock and the schedules.
MAX_LOOP_SECONDS = 1
#: A beat that was killed holds the lock for so long.
LOCK_SECONDS = 5 * MAX_LOOP_SECONDS
#: Where so much waits for the submitter, nobody takes it, and beat puts nothing more there.
MAX_WAITING = 1000


class Rule(BaseSchedule):
    """A rule of due times, as Celery asks for them."""

    def __init__(self, timing: Timing, app: Celery) -> None:
        super().__init__(app=app)
        self.timing = timing

    def next_after(self, time: datetime) -> datetime | None:
        """The next due time; None where there is none any more."""
        due = next(self.timing.after(to_ms(time)), None)
        return None if due is None else from_ms(due)

    def remaining_estimate(self, last_run_at: datetime) -> timedelta:
        due = self.next_after(last_run_at)
        return timedelta(days=1) if due is None else due - self.now()

    def is_due(self, last_run_at: datetime) -> Any:
        remaining = self.remaining_estimate(last_run_at).total_seconds()
        if remaining > 0:
            return schedstate(False, remaining)
        return schedstate(True, max(self.remaining_estimate(self.now()).total_seconds(), 0.0))


class Entry(RedBeatSchedulerEntry):  # type: ignore[misc]
    """A schedule: its rule is the file's, when beat was there last is RedBeat's."""

    @classmethod
    def from_key(cls, key: str, app: Any = None) -> Entry:
        name = key.removeprefix(keys.BEAT)
        schedule = app.tachikoma_schedules.current.schedules.get(name)
        if schedule is None or not schedule.enabled:
            raise KeyError(key)
        now, last = app.now(), _last_run(key, app)
        # Where it was never there, or nobody can read when, one nudge too many does no harm.
        if last is None or last > now + timedelta(seconds=MAX_LOOP_SECONDS):
            last = now - timedelta(seconds=MAX_LOOP_SECONDS)
        last = max(last, now - timedelta(days=1))
        return cls(
            name=name, task=DUE_TASK, schedule=Rule(schedule.timing, app), last_run_at=last, app=app,
            options={"queue": keys.BATCH, "ignore_result": True},
        )  # fmt: skip

    @property
    def due_at(self) -> datetime | None:
        due: datetime | None = self.schedule.next_after(self.last_run_at)
        return due

    def is_due(self) -> Any:
        return self.schedule.is_due(self.last_run_at)


def _last_run(key: str, app: Any) -> datetime | None:
    try:
        last = json.loads(get_redis(app).hget(key, "meta") or "{}", cls=RedBeatJSONDecoder).get("last_run_at")
        return last.astimezone(UTC) if isinstance(last, datetime) else None
    except (RedisConnectionError, RedisTimeoutError):
        raise
    # What stands there may be anything that somebody put there, and RedBeat makes objects of it.
    except Exception:
        return None


class Scheduler(RedBeatScheduler):  # type: ignore[misc]
    """RedBeat's scheduler, which waits where that one would end: for its lock, and for Redis."""

    Entry = Entry
    #: Called once when it has looked for the first time.
    ready: Callable[[], None] | None = None
    lock: Any = None

    def setup_schedule(self) -> None:
        # When it has the lock.
        self._installed = ""

    def tick(self, **kwargs: Any) -> float:
        try:
            interval = self._tick(**kwargs)
        except LockError:
            # It expired while this process, or Redis, stood still.
            log.warning("beat.lock_lost")
            self.lock = None
            return 0.0
        except (RedisError, OSError) as error:
            log.warning("beat.wait", reason=str(error))
            return MAX_LOOP_SECONDS
        if self.ready is not None:
            self.ready()
            self.ready = None
        return interval

    def _tick(self, **kwargs: Any) -> float:
        if self.app.tachikoma_schedules.reload():
            self._say_reloaded()
        if self.lock is None and not self._acquire():
            return MAX_LOOP_SECONDS
        digest = self.app.tachikoma_schedules.current.digest
        if self._installed != digest:
            # Held for as long as that takes.
            self.lock.extend(self.lock_timeout)
            self._install()
            self._installed = digest
        return float(super().tick(**kwargs))

    def _say_reloaded(self) -> None:
        source = self.app.tachikoma_schedules
        if source.error:
            log.error("schedules.kept", reason=source.error, in_force=source.current.digest[:12])
        else:
            log.info("schedules.changed", digest=source.current.digest[:12])

    def _acquire(self) -> bool:
        client = get_redis(self.app)
        lock = client.lock(self.lock_key, timeout=self.lock_timeout)
        # RedBeat's own: to a time from now, not by a time.
        lock.lua_extend = client.register_script(LUA_EXTEND_TO_SCRIPT)
        if not lock.acquire(blocking=False):
            return False
        log.info("beat.holds_the_lock")
        self.lock = lock
        # Somebody else may have put other schedules there.
        self._installed = ""
        return True

    def _install(self) -> None:
        """Put the schedules of the file there, and take the others away."""
        client = get_redis(self.app)
        order = self.app.redbeat_conf.schedule_key
        wanted = {
            Entry.generate_key(self.app, name)
            for name, schedule in self.app.tachikoma_schedules.current.schedules.items()
            if schedule.enabled
        }
        for key in set(client.zrange(order, 0, -1)) - wanted:
            client.zrem(order, key)
            client.delete(key)
        for key in wanted:
            entry = Entry.from_key(key, app=self.app)
            entry.reschedule(entry.last_run_at)

    def apply_async(self, entry: Any, producer: Any = None, advance: bool = True, **kwargs: Any) -> Any:
        if get_redis(self.app).llen(keys.BATCH) >= MAX_WAITING:
            log.warning("beat.nobody_submits", waiting=MAX_WAITING)
            return self.reserve(entry) if advance else entry
        due = entry.due_at
        entry.kwargs = {"schedule": entry.name, "due_ms": to_ms(due) if due is not None else 0}
        return super().apply_async(entry, producer=producer, advance=advance, **kwargs)

    def close(self) -> None:
        """Give the lock back, so that another beat need not wait for its end."""
        try:
            super().close()
        except (RedisError, OSError) as error:
            log.warning("beat.lock_kept", reason=str(error))


def _client(access: RedisAccess) -> redis.Redis:
    """RedBeat's connections, made like all others."""
    address: dict[str, Any] = {**redis.connection.parse_url(access.url)}  # type: ignore[no-untyped-call]
    if access.tls is not None:
        address["connection_class"] = BrokerTlsConnection
    return redis.Redis(
        connection_pool=redis.ConnectionPool(
            **{**address, **access.connection_options},
            client_name="beat",
            decode_responses=True,
            # Names that are no text are none of ours, and must not end it.
            encoding_errors="backslashreplace",
            socket_timeout=OPERATION_SECONDS,
            socket_connect_timeout=CONNECT_SECONDS,
            protocol=2,
        )
    )


class Beat:
    """One beat; several may run."""

    def __init__(self, schedules: ActiveSchedules, access: RedisAccess) -> None:
        """Wire everything; nothing is sent yet."""
        celery_broker.install()
        app = Celery("tachikoma-beat", set_as_current=True)
        app.conf.update(
            **celery_broker.settings(access, client_name="beat-celery"),
            task_queues=[Queue(keys.BATCH, routing_key=keys.BATCH)],
            task_create_missing_queues=False,
            task_ignore_result=True,
            timezone="UTC",
            beat_max_loop_interval=MAX_LOOP_SECONDS,
            redbeat_redis_url=access.url,
            redbeat_redis_options={},
            redbeat_key_prefix=keys.BEAT,
            redbeat_lock_timeout=LOCK_SECONDS,
            worker_hijack_root_logger=False,
        )
        app.tachikoma_schedules = schedules  # type: ignore[attr-defined]
        app.redbeat_redis = _client(access)  # type: ignore[attr-defined]
        # It would wait for the lock without end, also when a stop is asked for; `Scheduler.tick` asks for it instead.
        signals.beat_init.disconnect(acquire_distributed_beat_lock)
        self._service: Any = Service(app, scheduler_cls=Scheduler, remote_control=False)  # type: ignore[call-arg]

    def run(self, ready: Callable[[], None] | None = None) -> None:
        """Run until SIGTERM or SIGINT.

        Args:
            ready: called once Redis has answered, also where another beat holds the lock.
        """
        self._service.scheduler.ready = ready
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._service.stop())
        self._service.start()
