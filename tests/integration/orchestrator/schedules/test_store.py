"""The records of schedules: written once, settled once, and never read as something that they are not."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from tachikoma.errors import RecordAltered
from tachikoma.redis import keys
from tachikoma.redis.commands import Redis
from tachikoma.vocabulary.audit import AuditCode, ExecAuditLog
from tachikoma.vocabulary.clock import from_ms
from tachikoma.vocabulary.schedules import DueOutcome, ScheduledRun
from tachikoma_orchestrator.audit.trail import AuditTrail
from tachikoma_orchestrator.schedules import store as module
from tachikoma_orchestrator.schedules.planner import Plan, ScheduleState
from tachikoma_orchestrator.schedules.store import RunEntry, ScheduleStore

NAME, AGENT = "job", "agent-1"
SUBJECT = "spiffe://tachikoma.local/schedule/job"
OPERATOR = "spiffe://tachikoma.local/user/root"
DUE_MS = 1_800_000_000_000


@pytest.fixture
def store(redis: Redis) -> ScheduleStore:
    return ScheduleStore(redis, retention=timedelta(hours=1))


def run(due_ms: int = DUE_MS, outcome: DueOutcome = DueOutcome.TAKEN, **values: Any) -> ScheduledRun:
    exec_id = f"exec-{due_ms}" if outcome is DueOutcome.TAKEN else ""
    return ScheduledRun(
        due=from_ms(due_ms), time=from_ms(due_ms), outcome=outcome, id=exec_id, agent_id=AGENT, **values
    )  # fmt: skip


async def record(store: ScheduleStore, *runs: ScheduledRun, code: AuditCode | None = None) -> bool:
    state = await store.state(NAME)
    entries = [RunEntry(str(round(item.due.timestamp() * 1000)), item, code) for item in runs]
    return await store.record(NAME, SUBJECT, state, Plan((), DUE_MS, "every 1000"), entries)


async def events(redis: Redis) -> list[ExecAuditLog]:
    return (await AuditTrail(redis).read(limit=100)).events


async def test_a_schedule_without_a_record_begins_empty(store: ScheduleStore) -> None:
    assert await store.state(NAME) == ScheduleState()
    assert await store.runs(NAME, limit=10) == []
    assert await store.names() == []


async def test_a_taken_run_is_recorded_and_stays_taken_until_it_is_settled(store: ScheduleStore) -> None:
    taken = run()
    assert await record(store, taken)
    state = await store.state(NAME)
    assert (state.version, state.cursor_ms, state.rule, state.last_exec) == (1, DUE_MS, "every 1000", taken.id)
    assert state.taken == {str(DUE_MS): taken}
    assert await store.names() == [NAME]
    settled = await store.settle(NAME, SUBJECT, str(DUE_MS), taken, DueOutcome.RUN)
    assert settled is not None
    assert settled.outcome is DueOutcome.RUN
    assert (await store.state(NAME)).taken == {}
    assert await store.runs(NAME, limit=10) == [settled]
    # Once only.
    assert await store.settle(NAME, SUBJECT, str(DUE_MS), taken, DueOutcome.MISSED) is None


async def test_of_many_that_read_one_state_one_records(store: ScheduleStore) -> None:
    state = await store.state(NAME)
    plan = Plan((), DUE_MS, "")
    done = await asyncio.gather(*[store.record(NAME, SUBJECT, state, plan, ()) for _ in range(10)])
    assert done.count(True) == 1
    assert not await store.record(NAME, SUBJECT, replace(state, version=7), plan, ())


async def test_a_run_that_is_settled_as_not_run_can_never_start(redis: Redis, store: ScheduleStore) -> None:
    taken = run()
    await record(store, taken)
    settled = await store.settle(NAME, SUBJECT, str(DUE_MS), taken, DueOutcome.MISSED, "too late")
    assert settled is not None
    assert (settled.outcome, settled.reason) == (DueOutcome.MISSED, "too late")
    # The agent can claim it no more.
    assert await redis.set(keys.claim(AGENT, taken.id), "agent", nx=True) is None
    [event] = await events(redis)
    assert (event.event, event.id, event.requested_by) == ("schedule_missed", taken.id, SUBJECT)
    assert event.reason == "schedule job, due 2027-01-15T08:00:00.000Z: too late"


async def test_a_run_that_was_requested_meanwhile_is_settled_as_run(redis: Redis, store: ScheduleStore) -> None:
    taken = run()
    await record(store, taken)
    await redis.hset(keys.execution(taken.id), "requested_by", SUBJECT)
    settled = await store.settle(NAME, SUBJECT, str(DUE_MS), taken, DueOutcome.MISSED, "too late")
    assert settled is not None
    assert settled.outcome is DueOutcome.RUN
    assert await events(redis) == []


async def test_several_due_times_are_one_entry_and_one_event(redis: Redis, store: ScheduleStore) -> None:
    many = run(outcome=DueOutcome.MISSED, reason="x", count=5, first=from_ms(DUE_MS - 4000))
    await record(store, many, code=AuditCode.SCHEDULE_MISSED)
    [event] = await events(redis)
    assert event.reason == "schedule job, due 2027-01-15T08:00:00.000Z and 4 times since 2027-01-15T07:59:56Z: x"
    assert await store.runs(NAME, limit=10) == [many]


async def test_the_oldest_runs_are_removed(store: ScheduleStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_RUNS", 3)
    for number in range(6):
        await record(store, run(DUE_MS + number, DueOutcome.SKIPPED))
    found = await store.runs(NAME, limit=10)
    assert [item.due for item in found] == [from_ms(DUE_MS + number) for number in (5, 4, 3)]
    assert len(await store.runs(NAME, limit=2)) == 2


async def test_a_pause_and_its_end_are_recorded_once(redis: Redis, store: ScheduleStore) -> None:
    async def change(code: AuditCode) -> bool:
        return await store.pause(NAME, code, SUBJECT, by=OPERATOR, reason="repairs")

    assert not await change(AuditCode.SCHEDULE_RESUMED)
    assert await change(AuditCode.SCHEDULE_PAUSED)
    assert not await change(AuditCode.SCHEDULE_PAUSED)
    state = await store.state(NAME)
    assert (state.paused, state.paused_by, state.pause_reason) == (True, OPERATOR, "repairs")
    assert await change(AuditCode.SCHEDULE_RESUMED)
    assert not (await store.state(NAME)).paused
    assert [(item.event, item.actor) for item in await events(redis)] == [
        ("schedule_paused", OPERATOR), ("schedule_resumed", OPERATOR)
    ]  # fmt: skip


@pytest.mark.parametrize("fields", [{"version": "x"}, {"cursor_ms": "-1"}, {"rule": "never"}, {"taken:1": "{}"}])
async def test_a_record_that_is_not_ours_is_refused(redis: Redis, store: ScheduleStore, fields: dict[str, str]) -> None:
    for field, value in fields.items():
        await redis.hset(keys.schedule(NAME), field, value)
    with pytest.raises(RecordAltered, match="the record of the schedule job in Redis cannot be read"):
        await store.state(NAME)


async def test_a_record_of_another_type_is_refused(redis: Redis, store: ScheduleStore) -> None:
    await redis.set(keys.schedule(NAME), "x")
    with pytest.raises(RecordAltered, match="the record of the schedule job in Redis cannot be read"):
        await store.state(NAME)


async def test_a_run_that_is_not_ours_is_refused(redis: Redis, store: ScheduleStore) -> None:
    await record(store, run())
    await redis.hset(keys.schedule_runs(NAME), str(DUE_MS), "{}")
    with pytest.raises(RecordAltered, match="the runs of the schedule job in Redis cannot be read"):
        await store.runs(NAME, limit=1)
