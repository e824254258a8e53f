"""Celery beat with its own scheduler and a lock in Redis: sends the submitter a hint when a schedule is due.

A hint contains the name of a schedule and a scheduled time. The submitter takes everything else from its own file, and
decides by its own record which schedules are due. A hint that is sent twice, late or never therefore does no harm, and
neither does an attacker who can write to beat's names in Redis. Beat stores only its lock, by which one of several
beats is active. `docs/decisions/0025` gives the reasons.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from functools import partial
from typing import Any

import redis
import structlog
from celery import Celery
from celery.beat import ScheduleEntry, Scheduler, Service
from celery.schedules import BaseSchedule, schedstate
from kombu import Queue
from redis.exceptions import LockError, RedisError
from redis.lock import Lock

from tachikoma.redis import celery_broker, keys
from tachikoma.redis.access import RedisAccess
from tachikoma.redis.keys import DUE_TASK
from tachikoma.redis.sentinel import broker_connection_class
from tachikoma.schedules.timing import Timing
from tachikoma.vocabulary.clock import from_ms, to_ms
from tachikoma_orchestrator.schedules.sources import ActiveSchedules, log_reload

__all__ = ["Beat"]

log = structlog.get_logger(__name__)

#: Longest time between two checks of the file, the lock and the schedules, in seconds.
MAX_LOOP_SECONDS = 1
#: Lifetime of the lock: another beat takes over this long after the holder was killed.
LOCK_SECONDS = 5 * MAX_LOOP_SECONDS
#: Beat sends no more hints while the submitter has left this many unread.
MAX_WAITING = 1000


class Rule(BaseSchedule):
    """A rule of scheduled times, in the form that Celery asks for."""

    def __init__(self, timing: Timing, app: Celery) -> None:
        super().__init__(app=app)
        self.timing = timing

    def next_after(self, moment: datetime) -> datetime | None:
        """Return the first scheduled time after a moment, or None if there is none."""
        due = next(self.timing.after(to_ms(moment)), None)
        return None if due is None else from_ms(due)

    def remaining_estimate(self, last_run_at: datetime) -> timedelta:
        """Return the time until the first scheduled time after a moment; a day if there is none."""
        due = self.next_after(last_run_at)
        return timedelta(days=1) if due is None else due - self.now()

    def is_due(self, last_run_at: datetime) -> Any:
        """Return whether a scheduled time has come since a moment, and the seconds until the next."""
        remaining = self.remaining_estimate(last_run_at).total_seconds()
        if remaining > 0:
            return schedstate(False, remaining)
        return schedstate(True, max(self.remaining_estimate(self.now()).total_seconds(), 0.0))


class HintScheduler(Scheduler):
    """Celery's scheduler for the schedules of the active file, while this process holds the lock."""

    def __init__(self, *args: Any, schedules: ActiveSchedules, client: redis.Redis, **options: Any) -> None:
        self._schedules = schedules
        self._client = client
        self._lock: Lock = client.lock(keys.BEAT_LOCK, timeout=LOCK_SECONDS)
        #: Time of the last confirmation of the lock, by the monotonic clock; None while another process may hold it.
        self._confirmed_at: float | None = None
        #: Digest of the schedules that Celery's scheduler has; empty if it has none.
        self._installed = ""
        #: Time of the last tick by the host's clock.
        self._last_tick = 0.0
        #: Called once Redis has answered for the first time.
        self.ready: Callable[[], None] | None = None
        super().__init__(*args, **options)

    def setup_schedule(self) -> None:
        """Leave the schedules to `tick`, which installs them once it has the lock."""

    def tick(self, *args: Any, **options: Any) -> float:
        """Send one hint that is due; return the seconds until the next call. Waits for Redis and never fails."""
        if self._schedules.reload():
            log_reload(self._schedules)
        try:
            holds = self._hold_lock()
        except LockError:
            # The lock expired while this process or Redis was suspended.
            log.warning("beat.lock_lost")
            self._confirmed_at = None
            return 0.0
        except (RedisError, OSError) as error:
            log.warning("beat.redis_unavailable", reason=str(error))
            return MAX_LOOP_SECONDS
        if self.ready is not None:
            self.ready()
            self.ready = None
        if not holds:
            return MAX_LOOP_SECONDS
        self._install()
        return max(float(super().tick(*args, **options)), 0.0)

    def _hold_lock(self) -> bool:
        """Acquire or renew the lock. Returns False if another beat holds it. Raises LockError, redis errors."""
        if self._confirmed_at is None:
            if not self._lock.acquire(blocking=False):
                return False
            log.info("beat.holds_the_lock")
            self._installed = ""
        elif time.monotonic() - self._confirmed_at < MAX_LOOP_SECONDS:
            return True
        else:
            self._lock.reacquire()
        self._confirmed_at = time.monotonic()
        return True

    def _install(self) -> None:
        """Give Celery's scheduler the schedules after a change of the file, of the lock's holder or of the clock."""
        active = self._schedules.current
        clock_went_back, self._last_tick = time.time() < self._last_tick, time.time()
        if self._installed == active.digest and not clock_went_back:
            return
        # A scheduled time of the last seconds may be one for which the previous holder of the lock sent no hint.
        since = self.app.now() - timedelta(seconds=LOCK_SECONDS + MAX_LOOP_SECONDS)
        self.schedule = {
            name: ScheduleEntry(
                name=name, task=DUE_TASK, schedule=Rule(schedule.timing, self.app), last_run_at=since, app=self.app
            )
            for name, schedule in active.schedules.items()
            if schedule.enabled
        }
        # Celery compares schedules only by name and rule.
        self._heap = None
        self._installed = active.digest

    def apply_async(self, entry: Any, producer: Any = None, advance: bool = True, **options: Any) -> Any:
        """Send the hint of an entry, unless the submitter has too many to read."""
        if self._client.llen(keys.BATCH) >= MAX_WAITING:
            log.warning("beat.too_many_hints", waiting=MAX_WAITING)
            return None
        due = entry.schedule.next_after(entry.last_run_at)
        hint = {"schedule": entry.name, "due_ms": 0 if due is None else to_ms(due)}
        return self.send_task(DUE_TASK, kwargs=hint, producer=producer, queue=keys.BATCH, ignore_result=True)

    def close(self) -> None:
        """Release the lock, so that another beat need not wait until it expires."""
        super().close()
        held, self._confirmed_at = self._confirmed_at is not None, None
        try:
            if held:
                self._lock.release()
        except (RedisError, OSError) as error:
            log.warning("beat.lock_not_released", reason=str(error))


def _client(access: RedisAccess) -> redis.Redis:
    """Return a client for the lock, with the same access as all other connections."""
    address: dict[str, Any] = {}
    if access.primary is None:
        address = {**redis.connection.parse_url(access.url)}  # type: ignore[no-untyped-call]
    if kind := broker_connection_class(tls=access.tls is not None, follows=access.primary is not None):
        address["connection_class"] = kind
    return redis.Redis(
        connection_pool=redis.ConnectionPool(
            **{**address, **access.connection_options},
            client_name="beat",
            socket_timeout=access.operation_seconds,
            socket_connect_timeout=access.connect_seconds,
            protocol=2,
        )
    )


class Beat:
    """A beat process; several may run."""

    def __init__(self, schedules: ActiveSchedules, access: RedisAccess) -> None:
        """Prepare a beat; nothing is sent yet.

        Args:
            schedules: the active schedules.
            access: Redis, as the user `beat`.
        """
        celery_broker.install()
        app = Celery("tachikoma-beat", set_as_current=True)
        app.conf.update(
            **celery_broker.settings(access, client_name="beat-celery"),
            task_queues=[Queue(keys.BATCH, routing_key=keys.BATCH)],
            task_create_missing_queues=False,
            task_ignore_result=True,
            timezone="UTC",
            beat_max_loop_interval=MAX_LOOP_SECONDS,
            worker_hijack_root_logger=False,
        )
        scheduler = partial(HintScheduler, schedules=schedules, client=_client(access))
        # The stubs of Celery lack `remote_control`, and know only names of schedulers.
        self._service: Any = Service(app, scheduler_cls=scheduler, remote_control=False)  # type: ignore[call-arg,arg-type]

    def run(self, ready: Callable[[], None] | None = None) -> None:
        """Run until SIGTERM or SIGINT.

        Args:
            ready: called once Redis has answered, also if another beat holds the lock.
        """
        self._service.scheduler.ready = ready
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._service.stop())
        self._service.start()
