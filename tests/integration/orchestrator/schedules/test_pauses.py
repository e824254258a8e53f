"""The pauses of schedules that a process remembers, on a real Redis that goes back to an older state."""

from __future__ import annotations

from datetime import timedelta

from tachikoma.redis import keys
from tachikoma.redis.commands import Redis
from tachikoma.vocabulary.audit import AuditCode
from tachikoma_orchestrator.schedules.store import ScheduleStore

NAME, SUBJECT = "often", "spiffe://tachikoma.local/schedule/often"


async def change(store: ScheduleStore, code: AuditCode) -> None:
    assert await store.pause(NAME, code, SUBJECT, by="alice", reason="x" if code is AuditCode.SCHEDULE_PAUSED else "")
    await store.state(NAME)


async def copied(redis: Redis) -> dict[bytes, bytes]:
    found: dict[bytes, bytes] = await redis.hgetall(keys.schedule(NAME))
    return found


async def go_back(redis: Redis, older: dict[bytes, bytes]) -> None:
    await redis.execute_command("DEL", keys.schedule(NAME))
    for field, value in older.items():
        await redis.hset(keys.schedule(NAME), field, value)


async def test_a_lost_pause_and_a_lost_resumption_are_made_again(redis: Redis) -> None:
    store = ScheduleStore(redis, retention=timedelta(days=1))
    states = []
    for code in (AuditCode.SCHEDULE_PAUSED, AuditCode.SCHEDULE_RESUMED, AuditCode.SCHEDULE_PAUSED):
        older = await copied(redis)
        await change(store, code)
        known = await store.state(NAME)
        await go_back(redis, older)
        await store.pauses.write_again(redis)
        again = await store.state(NAME)
        assert (again.paused_ms, again.resumed_ms) == (known.paused_ms, known.resumed_ms)
        assert (again.paused, again.paused_by, again.pause_reason) == (known.paused, "alice", "x")
        assert again.version > 0
        states.append(again.paused)
    assert states == [True, False, True]


async def test_a_later_change_stays(redis: Redis) -> None:
    store, other = (ScheduleStore(redis, retention=timedelta(days=1)) for _ in range(2))
    await change(store, AuditCode.SCHEDULE_PAUSED)
    await change(other, AuditCode.SCHEDULE_RESUMED)
    before = await copied(redis)
    await store.pauses.write_again(redis)
    assert await copied(redis) == before


async def test_a_record_that_cannot_be_read_holds_up_no_other(redis: Redis) -> None:
    store = ScheduleStore(redis, retention=timedelta(days=1))
    await change(store, AuditCode.SCHEDULE_PAUSED)
    for name in ("altered", "of another type"):
        store.pauses.note(name, await store.state(NAME))
    await redis.execute_command("DEL", keys.schedule(NAME))
    await redis.hset(keys.schedule("altered"), "version", "x")
    await redis.set(keys.schedule("of another type"), "text")
    store.pauses._known = dict(sorted(store.pauses._known.items()))
    await store.pauses.write_again(redis)
    assert (await store.state(NAME)).paused
