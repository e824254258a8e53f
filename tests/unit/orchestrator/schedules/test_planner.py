"""Accounting: every scheduled time once, whoever looks, whenever."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tachikoma.errors import RecordAltered
from tachikoma.schedules.file import Schedule, ScheduledRequest
from tachikoma.schedules.timing import Every
from tachikoma.vocabulary.clock import from_ms, to_ms
from tachikoma.vocabulary.schedules import DueOutcome, Missed, Overlap, ScheduledRun
from tachikoma_orchestrator.schedules.planner import LOOKBACK_MS, MAX_SINGLE, Plan, PlannedRun, ScheduleState, plan

SECOND = 1000
START = 1_800_000_000_000
TAKEN, MISSED, SKIPPED = DueOutcome.TAKEN, DueOutcome.MISSED, DueOutcome.SKIPPED


def schedule(seconds: float = 10, **values: Any) -> Schedule:
    values = {"every": timedelta(seconds=seconds), **values}
    return Schedule(name="a", agent_id="agent-1", request=ScheduledRequest(command=("true",)), **values)


def state(of: Schedule, **values: Any) -> ScheduleState:
    return replace(ScheduleState(version=1, cursor_ms=START, rule=of.timing.text), **values)


class World:
    """A schedule over time: what `plan` says is done, as `ScheduleRunner` does it."""

    def __init__(self, first: Schedule | None) -> None:
        self.schedule = first
        self.state = ScheduleState()
        self.entries: list[PlannedRun] = []
        self.running = ""

    def look(self, now_ms: int) -> list[PlannedRun]:
        found: list[PlannedRun] = []
        for _ in range(1000):
            overlap = self.schedule is not None and self.schedule.overlap is Overlap.SKIP
            step = plan(self.schedule, self.state, now_ms, self.running if overlap else "")
            if step is None:
                break
            found += step.entries
            self.state = replace(self.state, cursor_ms=step.cursor_ms, rule=step.rule)
            if step.runs:
                self.running = f"run-{step.entries[-1].due_ms}"
        else:
            pytest.fail("it never comes to an end")
        self.entries += found
        return found


def outcomes(entries: list[PlannedRun]) -> list[tuple[int, DueOutcome]]:
    """Seconds since the start, and what became of it."""
    return [((entry.due_ms - START) // SECOND, entry.outcome) for entry in entries]


def test_a_schedule_begins_when_somebody_first_sees_it() -> None:
    world = World(schedule())
    assert world.look(START + 5 * SECOND) == []
    assert outcomes(world.look(START + 10 * SECOND)) == [(10, TAKEN)]
    assert world.look(START + 10 * SECOND) == []


def test_each_of_several_in_time_runs() -> None:
    world = World(schedule())
    world.look(START)
    assert outcomes(world.look(START + 35 * SECOND)) == [(10, TAKEN), (20, TAKEN), (30, TAKEN)]


def test_what_is_too_late_is_missed_and_the_rest_runs() -> None:
    world = World(schedule(lateness=15))
    world.look(START)
    assert outcomes(world.look(START + 35 * SECOND)) == [(10, MISSED), (20, TAKEN), (30, TAKEN)]
    assert "no submitter was running" in world.entries[0].reason


def test_of_several_that_are_late_the_last_runs_where_the_schedule_says_so() -> None:
    world = World(schedule(lateness=1, missed=Missed.RUN_ONCE))
    world.look(START)
    assert outcomes(world.look(START + 35 * SECOND)) == [(10, MISSED), (20, MISSED), (30, TAKEN)]


def test_nothing_late_runs_beside_one_that_is_due_now() -> None:
    world = World(schedule(lateness=6, missed=Missed.RUN_ONCE))
    world.look(START)
    assert outcomes(world.look(START + 35 * SECOND)) == [(10, MISSED), (20, MISSED), (30, TAKEN)]


def test_a_run_that_has_not_ended_holds_up_the_next_where_the_schedule_says_so() -> None:
    world = World(schedule(overlap=Overlap.SKIP))
    world.look(START)
    assert outcomes(world.look(START + 25 * SECOND)) == [(10, TAKEN), (20, SKIPPED)]
    assert f"run-{START + 10 * SECOND}" in world.entries[-1].reason
    world.running = ""
    assert outcomes(world.look(START + 30 * SECOND)) == [(30, TAKEN)]


def test_what_is_due_in_a_pause_is_skipped_and_not_missed() -> None:
    world = World(schedule(lateness=1))
    world.look(START)
    world.state = replace(world.state, paused_ms=START + 15 * SECOND, pause_reason="repairs")
    assert outcomes(world.look(START + 25 * SECOND)) == [(10, MISSED), (20, SKIPPED)]
    assert world.entries[-1].reason == "the schedule was paused: repairs"
    world.state = replace(world.state, resumed_ms=START + 35 * SECOND)
    assert outcomes(world.look(START + 40 * SECOND)) == [(30, SKIPPED), (40, TAKEN)]


def test_a_changed_rule_counts_from_when_it_is_seen() -> None:
    world = World(schedule(3600))
    world.look(START)
    world.schedule = schedule(1)
    # The hour has not come, and no second of it was ever due.
    assert world.look(START + 1800 * SECOND) == []
    assert outcomes(world.look(START + 1801 * SECOND)) == [(1801, TAKEN)]


def test_what_was_due_by_the_old_rule_is_accounted_for_and_runs_only_if_it_is_due_by_the_new() -> None:
    world = World(schedule(10))
    world.look(START)
    world.schedule = schedule(20)
    found = outcomes(world.look(START + 45 * SECOND))
    runs = 20 if (START // SECOND + 20) % 20 == 0 else 10
    assert found == [(at, TAKEN if (at - runs) % 20 == 0 else SKIPPED) for at in (10, 20, 30, 40)]
    assert "the schedule as it is now is not due" in next(e.reason for e in world.entries if e.outcome is SKIPPED)


def test_a_rule_that_somebody_put_into_redis_makes_nothing_run() -> None:
    one = schedule(3600)
    found = plan(one, state(one, rule="every 100"), START + 5 * SECOND)
    assert found is not None
    assert {entry.outcome for entry in found.entries} == {SKIPPED}
    assert found.rule == one.timing.text


@pytest.mark.parametrize(("then", "why"), [(None, "removed"), (schedule(enabled=False), "disabled")])
def test_what_was_due_before_it_was_taken_away_is_skipped(then: Schedule | None, why: str) -> None:
    world = World(schedule())
    world.look(START)
    world.schedule = then
    (entry,) = world.look(START + 15 * SECOND)
    assert entry.outcome is SKIPPED
    assert why in entry.reason
    # And nothing more, until it is there again: from then on.
    assert world.look(START + 500 * SECOND) == []
    world.schedule = schedule()
    assert world.look(START + 505 * SECOND) == []
    assert outcomes(world.look(START + 510 * SECOND)) == [(510, TAKEN)]


def test_a_year_away_is_one_entry_and_the_newest() -> None:
    world = World(schedule(1, missed=Missed.RUN_ONCE))
    world.look(START)
    now = START + 365 * 24 * 3600 * SECOND
    entries = world.look(now + 500)
    assert len(entries) == MAX_SINGLE + 1
    assert entries[0].count == 365 * 24 * 3600 - MAX_SINGLE
    assert entries[0].first_ms == START + SECOND
    assert entries[0].due_ms == entries[1].due_ms - SECOND
    assert sum(entry.count for entry in entries) == 365 * 24 * 3600
    assert [entry.outcome for entry in entries].count(TAKEN) == 60


def test_more_in_time_than_run_at_once_is_missed() -> None:
    world = World(schedule(1, lateness=3600))
    world.look(START)
    first, *rest = world.look(START + 1000 * SECOND)
    assert (first.outcome, first.count) == (MISSED, 1000 - MAX_SINGLE)
    assert {entry.outcome for entry in rest} == {TAKEN}


def test_more_than_a_year_back_is_let_go() -> None:
    one = schedule(3600)
    found = plan(one, state(one, cursor_ms=0), START + SECOND)
    assert found is not None
    assert found.entries[0].first_ms is not None
    assert found.entries[0].first_ms > START - LOOKBACK_MS


def test_a_clock_that_went_back_makes_nothing_due_again() -> None:
    world = World(schedule())
    world.look(START)
    world.look(START + 10 * SECOND)
    assert world.look(START + 5 * SECOND) == []
    assert world.look(START + 11 * SECOND) == []


EVENTS = st.lists(
    st.tuples(
        st.integers(1, 40_000),
        st.sampled_from(["look", "look", "look", "pause", "resume", "off", "on", "faster", "slower", "ended"]),
    ),
    max_size=40,
)


@given(
    EVENTS,
    st.sampled_from(list(Missed)),
    st.sampled_from(list(Overlap)),
    st.integers(1, 60),
    st.sampled_from([0.7, 1, 5, 10]),
)
def test_every_due_time_is_on_the_record_once_whatever_happens(
    events: list[tuple[int, str]], missed: Missed, overlap: Overlap, lateness: int, period: float
) -> None:
    def made(seconds: float, **values: Any) -> Schedule:
        return schedule(seconds, missed=missed, overlap=overlap, lateness=lateness, **values)

    rules = {"on": made(period), "off": made(period, enabled=False), "faster": made(0.5), "slower": made(20)}
    world = World(rules["on"])
    now = START
    world.look(now)
    #: Which rule held from when to when.
    spans: list[tuple[int, int, Schedule]] = []
    since = now
    for step, what in events:
        now += step
        assert world.schedule is not None
        if what in rules:
            # Seen at once, as the file's change is.
            spans.append((since, now, world.schedule))
            since = now
            world.schedule = rules[what]
            world.look(now)
        elif what == "pause":
            world.look(now)
            if not world.state.paused:
                world.state = replace(world.state, paused_ms=now, resumed_ms=None, pause_reason="x")
        elif what == "resume":
            world.look(now)
            if world.state.paused:
                world.state = replace(world.state, resumed_ms=now)
        elif what == "ended":
            world.running = ""
        else:
            world.look(now)
    assert world.schedule is not None
    spans.append((since, now, world.schedule))
    world.look(now)
    wanted = [
        due for begin, end, rule in spans if rule.enabled for due in rule.timing.between(begin, end, 10**6)[0]
    ]  # fmt: skip
    assert sum(entry.count for entry in world.entries) == len(wanted)
    single = [entry.due_ms for entry in world.entries if entry.count == 1]
    assert len(single) == len(set(single))
    assert set(single) <= set(wanted)
    assert [entry.due_ms for entry in world.entries] == sorted(entry.due_ms for entry in world.entries)


@given(st.integers(1, 10**6), st.integers(1, 3600), st.booleans())
def test_nothing_runs_later_than_allowed_but_the_last_of_what_was_missed(away: int, lateness: int, once: bool) -> None:
    one = schedule(10, lateness=lateness, missed=Missed.RUN_ONCE if once else Missed.SKIP)
    world = World(one)
    world.look(START)
    now = START + away * SECOND
    entries = world.look(now)
    runs = [entry for entry in entries if entry.outcome is TAKEN]
    late = [entry for entry in runs if now - entry.due_ms > lateness * SECOND]
    assert len(late) <= (1 if once else 0)
    if late:
        assert runs == late == entries[-1:]
    if once and entries:
        assert entries[-1].outcome is TAKEN


# --- what Redis says --------------------------------------------------------------------------------------------------


def test_a_state_is_read_back() -> None:
    run = ScheduledRun(due=from_ms(START), time=from_ms(START), outcome=TAKEN, id="x", agent_id="agent-1")
    fields = {
        b"version": b"7", b"cursor_ms": b"1800000000000", b"rule": b"every 1000", b"paused_ms": b"5",
        b"paused_by": b"me", b"pause_reason": b"why", b"last_exec": b"x", b"taken:1": run.to_json().encode(),
    }  # fmt: skip
    found = ScheduleState.parse("a", fields)
    assert found == ScheduleState(
        version=7, cursor_ms=START, rule="every 1000", paused_ms=5, paused_by="me", pause_reason="why",
        last_exec="x", taken={"1": run},
    )  # fmt: skip
    assert found.paused
    assert found.paused_at(5)
    assert not found.paused_at(4)


@pytest.mark.parametrize(
    "fields",
    [
        {b"version": b"x"},
        {b"cursor_ms": b"-1"},
        {b"cursor_ms": b"9" * 30},
        {b"cursor_ms": b"9" * 5000},
        {b"rule": b"every 0"},
        {b"rule": b"cron UTC * * * *"},
        {b"paused_ms": b"soon"},
        {b"taken:1": b"{"},
        {b"taken:1": b"{}"},
        {b"\xff": b""},
    ],
)
def test_a_state_that_is_none_of_ours_is_told_apart(fields: dict[bytes, bytes]) -> None:
    with pytest.raises(RecordAltered, match="the record of the schedule a in Redis cannot be read"):
        ScheduleState.parse("a", fields)


def test_times_are_exact() -> None:
    for value in (0, 1, START + 1, 253_402_300_799_999):
        assert to_ms(from_ms(value)) == value
    assert from_ms(1500) == datetime(1970, 1, 1, 0, 0, 1, 500_000, tzinfo=UTC)
    assert Every(1500).text == "every 1500"
    assert not Plan((), 0, "").runs
