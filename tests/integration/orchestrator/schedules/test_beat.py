"""Beat's scheduler: one of several sends hints, whatever happens to the lock, the file, the clock and Redis."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import redis as redis_py
from celery import Celery

from patience import PATIENCE_SECONDS
from tachikoma.redis import keys
from tachikoma.schedules.file import Schedule, ScheduledRequest, ScheduleSet
from tachikoma.schedules.timing import Every
from tachikoma_orchestrator.schedules import beat
from tachikoma_orchestrator.schedules.beat import LOCK_SECONDS, MAX_LOOP_SECONDS, MAX_WAITING, HintScheduler, Rule


class Active:
    """Schedules that a test changes."""

    def __init__(self, *schedules: Schedule) -> None:
        self.since = datetime.now(UTC)
        self.error = ""
        self.change(*schedules)
        self._changed = False

    def change(self, *schedules: Schedule) -> None:
        self.current = ScheduleSet({it.name: it for it in schedules}, repr(schedules))
        self._changed = True

    def reload(self) -> bool:
        changed, self._changed = self._changed, False
        return changed


def schedule(name: str, milliseconds: int = 100, **values: Any) -> Schedule:
    every = timedelta(milliseconds=milliseconds)
    return Schedule(name=name, every=every, agent_id="a", request=ScheduledRequest(command=("true",)), **values)


@pytest.fixture
def client(redis_url: str) -> Iterator[redis_py.Redis]:
    with redis_py.Redis.from_url(redis_url) as connected:
        connected.flushall()
        yield connected


Make = Callable[[Active], HintScheduler]


@pytest.fixture
def make(client: redis_py.Redis) -> Make:
    """Make schedulers whose hints are in their `sent`."""

    def made(active: Active) -> HintScheduler:
        app = Celery("test-beat", set_as_current=False, broker="memory://")
        app.conf.update(timezone="UTC", beat_max_loop_interval=MAX_LOOP_SECONDS)
        scheduler = HintScheduler(app, schedules=active, client=client)
        scheduler.sent = []  # type: ignore[attr-defined]

        def send_task(name: str, *, kwargs: dict[str, Any], queue: str, **_: Any) -> None:
            assert (name, queue) == (keys.DUE_TASK, keys.BATCH)
            scheduler.sent.append((kwargs["schedule"], kwargs["due_ms"]))  # type: ignore[attr-defined]

        scheduler.send_task = send_task  # type: ignore[method-assign]
        return scheduler

    return made


def run(scheduler: HintScheduler, hints: int = 1) -> list[tuple[str, int]]:
    """Let a scheduler work until it has sent so many more hints; return these."""
    before = len(scheduler.sent)  # type: ignore[attr-defined]
    deadline = time.monotonic() + PATIENCE_SECONDS
    while len(scheduler.sent) < before + hints:  # type: ignore[attr-defined]
        assert time.monotonic() < deadline
        time.sleep(min(scheduler.tick(), 0.05))
    found: list[tuple[str, int]] = scheduler.sent[before:]  # type: ignore[attr-defined]
    return found


def test_hints_name_a_schedule_and_a_due_time(make: Make) -> None:
    found = run(make(Active(schedule("a"), schedule("off", enabled=False))), 5)
    assert {name for name, _ in found} == {"a"}
    assert all(due % 100 == 0 for _, due in found)
    dues = [due for _, due in found]
    assert dues == sorted(set(dues))


def test_one_of_several_sends_and_the_next_takes_over(make: Make, client: redis_py.Redis) -> None:
    active = Active(schedule("a"))
    one, two = make(active), make(active)
    run(one)
    assert two.tick() == MAX_LOOP_SECONDS
    assert two.sent == []  # type: ignore[attr-defined]
    assert 0 < client.pttl(keys.BEAT_LOCK) <= LOCK_SECONDS * 1000
    one.close()
    assert not client.exists(keys.BEAT_LOCK)
    run(two)
    assert one.tick() == MAX_LOOP_SECONDS


def test_the_lock_is_renewed_while_it_is_held(
    make: Make, client: redis_py.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduler = make(Active(schedule("a")))
    run(scheduler)
    client.pexpire(keys.BEAT_LOCK, 500)
    monkeypatch.setattr(beat, "MAX_LOOP_SECONDS", 0)
    scheduler.tick()
    assert client.pttl(keys.BEAT_LOCK) > 1000


def test_a_lock_that_expired_is_acquired_again(
    make: Make, client: redis_py.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(beat, "MAX_LOOP_SECONDS", 0)
    scheduler = make(Active(schedule("a")))
    run(scheduler)
    client.delete(keys.BEAT_LOCK)
    assert scheduler.tick() == 0
    run(scheduler)
    assert client.exists(keys.BEAT_LOCK)
    # Another process has it: nothing more is sent.
    client.set(keys.BEAT_LOCK, "other")
    scheduler.tick()
    before = list(scheduler.sent)  # type: ignore[attr-defined]
    assert [scheduler.tick() for _ in range(3)] == [0, 0, 0]
    assert scheduler.sent == before  # type: ignore[attr-defined]
    # And its lock is not released.
    scheduler.close()
    assert client.get(keys.BEAT_LOCK) == b"other"


def test_a_due_time_of_the_last_seconds_gets_a_hint_from_the_next_holder(make: Make) -> None:
    """One that came while no beat held the lock."""
    minute = schedule("a", 3000)
    [(name, due)] = run(make(Active(minute)))
    assert name == "a"
    assert time.time() * 1000 - due < (LOCK_SECONDS + MAX_LOOP_SECONDS + 5) * 1000


def test_a_changed_file_counts_at_once(make: Make) -> None:
    active = Active(schedule("a"))
    scheduler = make(active)
    run(scheduler)
    active.change(schedule("b"), schedule("c"))
    assert {name for name, _ in run(scheduler, 6)} == {"b", "c"}
    active.change()
    scheduler.tick()
    before = list(scheduler.sent)  # type: ignore[attr-defined]
    assert scheduler.tick() == MAX_LOOP_SECONDS
    assert scheduler.sent == before  # type: ignore[attr-defined]


def test_a_submitter_that_reads_nothing_gets_no_more_hints(make: Make, client: redis_py.Redis) -> None:
    scheduler = make(Active(schedule("a")))
    run(scheduler)
    client.lpush(keys.BATCH, *["x"] * MAX_WAITING)
    before = list(scheduler.sent)  # type: ignore[attr-defined]
    end = time.monotonic() + 0.5
    while time.monotonic() < end:
        time.sleep(min(scheduler.tick(), 0.05))
    assert scheduler.sent == before  # type: ignore[attr-defined]
    client.delete(keys.BATCH)
    run(scheduler)


def test_a_clock_that_is_set_back_stops_nothing(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler = make(Active(schedule("a")))
    run(scheduler, 2)
    back = timedelta(hours=1)
    real_now, real_time = scheduler.app.now, time.time
    monkeypatch.setattr(scheduler.app, "now", lambda: real_now() - back)
    monkeypatch.setattr(time, "time", lambda: real_time() - back.total_seconds())
    found = run(scheduler, 2)
    assert all(due < (time.time() + 1) * 1000 for _, due in found)


def test_a_redis_that_is_unavailable_is_waited_for(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler = make(Active(schedule("a")))
    ready: list[bool] = []
    scheduler.ready = lambda: ready.append(True)

    def broken(**_: Any) -> bool:
        raise redis_py.ConnectionError("unavailable")

    with monkeypatch.context() as patch:
        patch.setattr(scheduler._lock, "acquire", broken)
        assert scheduler.tick() == MAX_LOOP_SECONDS
    assert not ready
    run(scheduler, 3)
    assert ready == [True]


def test_a_rule_without_a_next_due_time_is_not_due() -> None:
    class Never(Every):
        def after(self, ms: int) -> Iterator[int]:
            return iter(())

    rule = Rule(Never(1000), Celery("test-rule", set_as_current=False))
    assert rule.next_after(datetime.now(UTC)) is None
    due, seconds = rule.is_due(datetime.now(UTC))
    assert not due
    assert seconds == 24 * 3600
