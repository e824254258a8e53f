"""Schedules at work on a real Redis, with real admission: whoever looks, and whoever dies in the middle of it."""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from patience import PATIENCE_SECONDS
from tachikoma.config.tasks import cancel_all
from tachikoma.dev.ca import DevelopmentCA
from tachikoma.errors import AlreadyExists, NotFound, TachikomaError
from tachikoma.identity.file_source import FileSvidSource
from tachikoma.identity.spiffe import SpiffeId, service_id
from tachikoma.policy.watch import PolicyWatch
from tachikoma.redis import keys
from tachikoma.redis.access import connect
from tachikoma.redis.commands import Redis
from tachikoma.schedules.watch import ScheduleWatch
from tachikoma.vocabulary.clock import from_ms, to_ms
from tachikoma.vocabulary.policies import RateLimitConfig
from tachikoma.vocabulary.requests import ExecRequest
from tachikoma.vocabulary.schedules import DueOutcome, ScheduledRun
from tachikoma.vocabulary.states import ExecState
from tachikoma_orchestrator.admission.admit import Admitter
from tachikoma_orchestrator.agents.registry import Registry
from tachikoma_orchestrator.audit.findings import Findings
from tachikoma_orchestrator.audit.trail import AuditTrail
from tachikoma_orchestrator.batches.room import Batches
from tachikoma_orchestrator.caller import Peer
from tachikoma_orchestrator.executions.evidence import Evidence
from tachikoma_orchestrator.executions.ledger import Ledger
from tachikoma_orchestrator.executions.transitions import FENCE
from tachikoma_orchestrator.schedules import runner
from tachikoma_orchestrator.schedules.planner import ScheduleState
from tachikoma_orchestrator.schedules.runner import ScheduleRunner
from tachikoma_orchestrator.schedules.store import MAX_RUNS, ScheduleStore
from tachikoma_orchestrator.store.subscriber import Subscriber

DOMAIN, AGENT, NAME = "tachikoma.local", "agent-1", "job"
OPERATOR = "spiffe://tachikoma.local/user/root"
RETENTION = timedelta(hours=1)
POLICY = """\
policies:
  - name: schedules
    subjects: ["spiffe://tachikoma.local/schedule/*"]
    agents: [agent-1]
    allowedCommands: [/usr/bin/true]
"""
ONE = """\
schedules:
  - {{name: job, every: {every}, agentId: agent-1, request: {{command: [{command}]}}{more}}}
"""


class Crash(BaseException):
    """A process ends here."""


@dataclass
class Clock:
    """A clock that only the test moves."""

    ms: int

    async def now_ms(self) -> int:
        return self.ms


class Stand:
    """A submitter without Celery; several share a Redis and their files."""

    def __init__(self, redis: Redis, folder: Path) -> None:
        self.redis, self.folder = redis, folder
        identity = FileSvidSource(folder / "orchestrator")
        self.trail = AuditTrail(redis, key=b"k" * 32)
        self.ledger = Ledger(redis, self.trail, queue_size=10**6, approvals_size=10, retention=RETENTION, durable=False)
        registry = Registry(redis, identity)
        self.admitter = Admitter(
            self.ledger, self.trail, PolicyWatch(folder / "policy.yaml"), identity, registry,
            rate_limit=RateLimitConfig(), search_path=("/usr/bin",),
        )  # fmt: skip
        self.store = ScheduleStore(redis, retention=RETENTION)
        self.source = ScheduleWatch(folder / "schedules.yaml")
        evidence = Evidence(redis, Findings(redis, self.trail), identity, registry.revocations)
        self.registry = registry
        self.batches = Batches.over(
            redis, self.ledger, self.admitter, registry, identity, evidence, Subscriber(redis), retention=RETENTION
        )
        self.runner = ScheduleRunner(
            self.source, self.store, self.ledger, self.trail, self.admitter, identity, self.batches
        )

    def write(self, every: str = "1s", command: str = "/usr/bin/true", **more: str) -> None:
        """Other schedules, active at once."""
        write(self.folder, every, command, **more)
        assert self.source.reload()
        assert not self.source.error

    async def back(self, milliseconds_: int, name: str = NAME) -> None:
        """Let the schedule have been looked at last so long ago."""
        now = await self.ledger.now_ms()
        await self.redis.hset(keys.schedule(name), "cursor_ms", now - milliseconds_)

    def taken(self, due: int) -> ScheduledRun:
        """A run with the id of its scheduled time, as it is before it is asked for."""
        exec_id = self.runner._run_id(NAME, due)
        return ScheduledRun(
            due=from_ms(due), time=from_ms(0), outcome=DueOutcome.TAKEN, id=exec_id, agent_id=AGENT
        )  # fmt: skip

    def stop_clock(self, clock: Clock) -> None:
        """Read the time from a clock of the test."""
        self.ledger.now_ms = clock.now_ms  # type: ignore[method-assign]

    async def runs(self) -> list[ScheduledRun]:
        """Oldest first."""
        return (await self.runner.runs(NAME, limit=1000))[::-1]

    async def events(self) -> Counter[str]:
        return Counter([entry[1][b"event"].decode() for entry in await self.redis.xrange(keys.AUDIT)])


def write(folder: Path, every: str, command: str = "/usr/bin/true", **more: str) -> None:
    text = "".join(f", {name}: {value}" for name, value in more.items())
    file = folder / "schedules.yaml"
    # Another file, so that it is seen however quickly it follows.
    new = folder / "new"
    new.write_text(ONE.format(every=every, command=command, more=text))
    new.rename(file)


@pytest.fixture
async def make(redis: Redis, tmp_path: Path) -> Callable[[], Stand]:
    """Stands on one Redis, whose agent is there."""
    DevelopmentCA(tmp_path / "ca", DOMAIN).issue(service_id(DOMAIN, "orchestrator"), tmp_path / "orchestrator")
    (tmp_path / "policy.yaml").write_text(POLICY)
    write(tmp_path, "1s")
    await redis.set(keys.info(AGENT), "{}")
    return lambda: Stand(redis, tmp_path)


@pytest.fixture
async def stand(make: Callable[[], Stand]) -> Stand:
    return make()


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is taken counts as left behind at once."""
    monkeypatch.setattr(runner, "ABANDONED_MS", 0)


# --- looking ----------------------------------------------------------------------------------------------------------


async def test_a_first_look_begins_a_schedule_and_runs_nothing(stand: Stand) -> None:
    stand.stop_clock(Clock(await stand.ledger.now_ms()))
    await stand.runner.advance(NAME)
    assert await stand.runs() == []
    assert (await stand.store.state(NAME)).rule == "every 1000"


async def test_what_is_due_is_an_execution_of_the_schedules_own_identity(stand: Stand) -> None:
    await stand.runner.advance(NAME)
    await stand.back(1500)
    await stand.runner.advance(NAME)
    run = (await stand.runs())[0]
    assert (run.outcome, run.state, run.agent_id) == (DueOutcome.RUN, ExecState.QUEUED, AGENT)
    assert to_ms(run.due) % 1000 == 0
    record = await stand.ledger.record(run.id)
    assert record is not None
    assert record.requested_by == "spiffe://tachikoma.local/schedule/job"
    assert record.client_ip == ""
    assert await stand.redis.llen(keys.queue(AGENT)) == len(await stand.runs())
    assert not (await stand.store.state(NAME)).taken


async def test_a_due_time_has_the_same_id_wherever_it_is_accounted_for(make: Callable[[], Stand]) -> None:
    one, other = make(), make()
    await one.runner.advance(NAME)
    await one.back(3000)
    await one.runner.advance(NAME)
    before = await one.runs()
    # As where a Redis takes over that had not heard of it yet.
    for key in (keys.schedule(NAME), keys.schedule_runs(NAME), keys.schedule_order(NAME)):
        await one.redis.delete(key)
    await other.runner.advance(NAME)
    await other.back(to_ms(before[-1].time) - to_ms(before[0].due) + 5000)
    await other.runner.advance(NAME)
    after = {run.due: run.id for run in await other.runs()}
    assert {run.due: run.id for run in before}.items() <= after.items()
    assert await one.redis.llen(keys.queue(AGENT)) == len(after)


async def test_what_policy_refuses_is_on_the_record_as_refused(stand: Stand) -> None:
    stand.write(command="/usr/bin/id")
    await stand.runner.advance(NAME)
    await stand.back(1100)
    await stand.runner.advance(NAME)
    run = (await stand.runs())[0]
    assert run.outcome is DueOutcome.REFUSED
    assert "does not allow the command" in run.reason
    assert run.state is None
    assert (await stand.events())["denied"] == len(await stand.runs())


async def test_an_agent_that_is_away_is_a_refusal(stand: Stand) -> None:
    await stand.redis.delete(keys.info(AGENT))
    await stand.runner.advance(NAME)
    await stand.back(1100)
    await stand.runner.advance(NAME)
    assert {run.outcome for run in await stand.runs()} == {DueOutcome.REFUSED}


async def test_missed_and_skipped_due_times_leave_events(stand: Stand) -> None:
    stand.write(lateness="1s")
    await stand.runner.advance(NAME)
    await stand.back(5000)
    await stand.runner.advance(NAME)
    found = Counter(run.outcome for run in await stand.runs())
    # 4 or 5 are due, and at least the oldest three are too late; all are if this process was not running for a while.
    assert found[DueOutcome.MISSED] >= 3
    assert (await stand.events())["schedule_missed"] == found[DueOutcome.MISSED]
    await stand.runner.pause(NAME, by=OPERATOR, reason="repairs")
    now = await stand.ledger.now_ms()
    await stand.redis.hset(keys.schedule(NAME), mapping={"paused_ms": now - 3000, "cursor_ms": now - 3000})
    await stand.runner.advance(NAME)
    # The trail has begin and end of a pause, not all that lies between.
    assert (await stand.events())["schedule_skipped"] == 0
    assert [run.outcome for run in await stand.runs()][-3:] == [DueOutcome.SKIPPED] * 3


async def test_a_run_that_has_not_ended_is_named_where_it_holds_up_the_next(stand: Stand) -> None:
    stand.write(every="500ms", overlap="skip")
    await stand.runner.advance(NAME)
    await stand.back(1600)
    await stand.runner.advance(NAME)
    first, *rest = await stand.runs()
    assert first.outcome is DueOutcome.RUN
    assert {run.outcome for run in rest} == {DueOutcome.SKIPPED}
    assert all(first.id in run.reason for run in rest)
    await stand.ledger.settle(AGENT, first.id, [ExecState.QUEUED], ExecState.CANCELLED, reason="", fence=True)
    before = len(await stand.runs())
    while len(await stand.runs()) == before:
        await asyncio.sleep(0.05)
        await stand.runner.advance(NAME)
    assert (await stand.runs())[before].outcome is DueOutcome.RUN


async def test_a_schedule_that_is_taken_out_of_the_file_is_closed(stand: Stand) -> None:
    await stand.runner.advance(NAME)
    await stand.back(1100)
    (stand.folder / "schedules.yaml").write_text("schedules: []\n")
    assert stand.source.reload()
    await stand.runner.advance_all()
    runs = await stand.runs()
    assert {run.outcome for run in runs} == {DueOutcome.SKIPPED}
    assert (await stand.events())["schedule_skipped"] == len(runs)
    assert (await stand.store.state(NAME)).rule == ""
    await stand.back(60_000)
    await stand.runner.advance_all()
    assert await stand.runs() == runs


async def test_only_so_many_runs_are_kept(stand: Stand) -> None:
    stand.write(every="100ms", lateness="1s")
    await stand.runner.advance(NAME)
    for _ in range(MAX_RUNS // 100 + 3):
        await stand.back(20_000)
        # Others than before.
        await stand.redis.hset(keys.schedule(NAME), "version", random.randrange(10**9))
        await stand.runner.advance(NAME)
        # An interval of the schedule.
        await asyncio.sleep(0.1)
    assert await stand.redis.zcard(keys.schedule_order(NAME)) <= MAX_RUNS
    assert await stand.redis.hlen(keys.schedule_runs(NAME)) == await stand.redis.zcard(keys.schedule_order(NAME))


# --- hints ------------------------------------------------------------------------------------------------------------


async def test_a_hint_that_comes_early_is_waited_for(stand: Stand) -> None:
    await stand.runner.advance(NAME)
    due = (await stand.ledger.now_ms() // 1000 + 1) * 1000
    await stand.runner.hint(NAME, due)
    assert due in [to_ms(run.due) for run in await stand.runs()]


@pytest.mark.parametrize("due", [10**18, -1, "now", None, True, 1.5, {}, []])
@pytest.mark.parametrize("name", ["other", "", "job\n", None, 5, ["job"], "x" * 100_000])
async def test_a_hint_for_nothing_does_nothing(stand: Stand, name: object, due: object) -> None:
    await stand.runner.hint(name, due)
    assert await stand.redis.hlen(keys.SCHEDULES) == 0


@pytest.mark.parametrize("due", [10**18, -(10**18), 0, "now", None])
async def test_what_a_hint_says_is_due_counts_for_nothing(stand: Stand, due: object) -> None:
    stand.write(every="1h")
    await stand.runner.advance(NAME)
    await stand.runner.hint(NAME, due)
    assert await stand.runs() == []


# --- crashes ----------------------------------------------------------------------------------------------------------


async def test_a_crash_before_it_is_asked_for_is_made_good(make: Callable[[], Stand], at_once: None) -> None:
    one, other = make(), make()
    await one.runner.advance(NAME)
    await one.back(1100)

    async def crash(*_: Any) -> bool:
        raise Crash

    one.admitter.admit = crash  # type: ignore[method-assign]
    with pytest.raises(Crash):
        await one.runner.advance(NAME)
    (run,) = await one.runs()
    assert run.outcome is DueOutcome.TAKEN
    await other.runner.advance(NAME)
    first = (await one.runs())[0]
    assert (first.id, first.outcome, first.state) == (run.id, DueOutcome.RUN, ExecState.QUEUED)


async def test_a_crash_after_it_is_asked_for_is_made_good(make: Callable[[], Stand], at_once: None) -> None:
    one, other = make(), make()
    await one.runner.advance(NAME)
    await one.back(1100)

    async def crash(*_: Any) -> None:
        raise Crash

    one.store.settle = crash  # type: ignore[method-assign,assignment]
    with pytest.raises(Crash):
        await one.runner.advance(NAME)
    # Its agent is gone by then, so that it would be refused now.
    await one.redis.delete(keys.info(AGENT))
    await other.runner.advance(NAME)
    assert (await one.runs())[0].outcome is DueOutcome.RUN
    assert await one.redis.llen(keys.queue(AGENT)) == 1


async def test_what_is_given_up_can_never_run(make: Callable[[], Stand], at_once: None) -> None:
    one, other = make(), make()
    one.write(lateness="1s")
    assert other.source.reload()
    clock = Clock(await one.ledger.now_ms() // 1000 * 1000 - 100)
    one.stop_clock(clock)
    other.stop_clock(clock)
    await one.runner.advance(NAME)
    # Exactly one time of every second becomes due.
    clock.ms += 200
    stopped, go_on = asyncio.Event(), asyncio.Event()
    admit = one.admitter.admit

    async def slow(request: ExecRequest, peer: Peer) -> bool:
        stopped.set()
        await go_on.wait()
        return await admit(request, peer)

    one.admitter.admit = slow  # type: ignore[method-assign]
    looking = asyncio.create_task(one.runner.advance(NAME))
    await stopped.wait()
    (run,) = await one.runs()
    # It stands still for longer than the run may be late.
    clock.ms = to_ms(run.due) + 1001
    await other.runner.advance(NAME)
    go_on.set()
    await looking
    first = (await one.runs())[0]
    assert (first.id, first.outcome) == (run.id, DueOutcome.MISSED)
    assert await one.redis.get(keys.claim(AGENT, run.id)) == FENCE.encode()
    assert (await one.events())["schedule_missed"] == 1


async def test_a_record_that_cannot_be_made_now_is_waited_for(stand: Stand, at_once: None) -> None:
    await stand.runner.advance(NAME)
    await stand.back(1100)
    stand.trail.closed_reason = "a sink is away"
    await stand.runner.advance(NAME)
    assert {run.outcome for run in await stand.runs()} == {DueOutcome.TAKEN}
    stand.trail.closed_reason = ""
    await stand.runner.advance(NAME)
    assert {run.outcome for run in await stand.runs()} == {DueOutcome.RUN}


async def test_an_id_that_somebody_took_before_is_a_refusal(stand: Stand) -> None:
    await stand.runner.advance(NAME)

    async def squat(request: ExecRequest, peer: Peer) -> bool:
        await Admitter.admit(stand.admitter, request, Peer(SpiffeId.parse(f"spiffe://{DOMAIN}/schedule/other"), ""))
        raise AlreadyExists("used before")

    stand.admitter.admit = squat  # type: ignore[method-assign]
    await stand.back(1100)
    await stand.runner.advance(NAME)
    assert (await stand.runs())[0].outcome is DueOutcome.REFUSED


async def test_many_who_look_and_die_account_for_every_due_time_once(
    make: Callable[[], Stand], at_once: None, redis_url: str
) -> None:
    seed = int(os.environ.get("TACHIKOMA_TEST_SEED") or random.randrange(10**9))
    print(f"TACHIKOMA_TEST_SEED={seed}")
    chance = random.Random(seed)
    stands = [make() for _ in range(4)]
    stands[0].write(every="100ms", lateness="2s")
    for stand in stands[1:]:
        stand.source.reload()
    clients = []
    crashes = 0
    stopping = False
    for stand in stands:
        # Each command may be the last one that was heard of, before or after it was done.
        client = connect(redis_url, name="test")
        clients.append(client)
        execute = client.execute_command

        async def fragile(*command: Any, execute: Any = execute, **options: Any) -> Any:
            if chance.random() < 0.02:
                raise Crash
            answer = await execute(*command, **options)
            if chance.random() < 0.02:
                raise Crash
            return answer

        client.execute_command = fragile
        for part in (stand.store, stand.store._runner, stand.ledger, stand.ledger._runner):
            part._redis = client  # type: ignore[attr-defined]

    async def keep(stand: Stand) -> None:
        nonlocal crashes
        while not stopping:
            try:
                await stand.runner.advance(NAME)
            except Crash:
                crashes += 1
            await asyncio.sleep(chance.random() * 0.1)

    first = Stand(stands[0].redis, stands[0].folder)
    await first.runner.advance(NAME)
    begin = (await first.store.state(NAME)).cursor_ms
    assert begin is not None
    tasks = [asyncio.create_task(keep(stand)) for stand in stands]
    # On a busy machine it takes longer until enough of them have died.
    while await first.ledger.now_ms() < begin + 5000 or crashes < 5:  # noqa: ASYNC110 (nothing announces it)
        await asyncio.sleep(0.1)
    stopping = True
    await asyncio.gather(*tasks)
    for client in clients:
        await client.aclose()
    await first.runner.advance(NAME)
    end = (await first.store.state(NAME)).cursor_ms
    assert end is not None
    runs = await first.runs()
    # The first look records what becomes due while it lasts, so the first scheduled time may be before its end.
    due = [to_ms(run.due) for run in runs]
    assert due[0] <= begin // 100 * 100 + 100
    assert due == list(range(due[0], end + 1, 100))
    assert len(runs) >= 50
    assert crashes >= 5
    print(f"{crashes} crashes, {Counter(run.outcome for run in runs)}")
    assert {run.outcome for run in runs} <= {DueOutcome.RUN, DueOutcome.MISSED}
    queued = await first.redis.llen(keys.queue(AGENT))
    ran = [run for run in runs if run.outcome is DueOutcome.RUN]
    assert len({run.id for run in ran}) == len(ran)
    assert queued >= len(ran)
    # Whatever else was let through was fenced, and never starts.
    fenced = [key async for key in first.redis.scan_iter(match=keys.claim(AGENT, "*"))]
    assert queued - len(ran) <= len(fenced)
    assert not any(keys.claim(AGENT, run.id).encode() in fenced for run in ran)
    assert (await first.events())["dispatched"] == queued


async def test_what_redis_says_was_taken_runs_only_where_it_is_due(stand: Stand, at_once: None) -> None:
    stand.write(every="1h")
    await stand.runner.advance(NAME)
    now = await stand.ledger.now_ms()
    hour = now // 3_600_000 * 3_600_000
    forged = {
        # An id of one's own, at a time that is due; at times that are not; and one that is to come.
        str(hour): ScheduledRun(due=from_ms(hour), time=from_ms(0), outcome=DueOutcome.TAKEN, id="x", agent_id=AGENT),
        str(now): stand.taken(now),
        str(hour + 3_600_000): stand.taken(hour + 3_600_000),
        # One that was run by hand is not asked for again: whoever did can see that it was not.
        f"{hour}-y": stand.taken(hour),
    }
    await stand.redis.hset(keys.schedule(NAME), mapping={f"taken:{key}": run.to_json() for key, run in forged.items()})
    await stand.runner.advance(NAME)
    assert await stand.redis.llen(keys.queue(AGENT)) == 0
    assert not (await stand.store.state(NAME)).taken


# --- operators --------------------------------------------------------------------------------------------------------


async def test_a_run_by_hand_is_asked_for_as_the_schedule_and_says_by_whom(stand: Stand) -> None:
    stand.write(every="1h")
    run = await stand.runner.run_now(NAME, by=OPERATOR)
    assert (run.outcome, run.state, run.requested_by) == (DueOutcome.RUN, ExecState.QUEUED, OPERATOR)
    again = await stand.runner.run_now(NAME, by=OPERATOR)
    assert again.id != run.id
    assert [item.id for item in await stand.runs()] == [run.id, again.id]
    assert (await stand.events())["schedule_run"] == 2
    # And it begins the schedule, as a look does.
    assert (await stand.store.state(NAME)).rule == "every 3600000"


async def test_a_run_by_hand_may_be_refused(stand: Stand) -> None:
    stand.write(every="1h", command="/usr/bin/id")
    run = await stand.runner.run_now(NAME, by=OPERATOR)
    assert run.outcome is DueOutcome.REFUSED
    assert run.state is None


async def test_a_pause_is_told_and_ends(stand: Stand) -> None:
    paused = await stand.runner.pause(NAME, by=OPERATOR, reason="repairs")
    assert (paused.paused, paused.paused_by, paused.pause_reason) == (True, OPERATOR, "repairs")
    await stand.runner.pause(NAME, by="spiffe://tachikoma.local/user/other", reason="again")
    assert (await stand.runner.status(NAME)).paused_by == OPERATOR
    resumed = await stand.runner.resume(NAME, by=OPERATOR)
    assert not resumed.paused
    assert resumed.paused_by == ""
    await stand.runner.resume(NAME, by=OPERATOR)
    events = await stand.events()
    assert (events["schedule_paused"], events["schedule_resumed"]) == (1, 1)


async def test_a_status_tells_when_it_is_due_and_what_came_last(stand: Stand) -> None:
    stand.write(every="1h")
    before = await stand.runner.status(NAME)
    assert before.last is None
    assert before.next_due is not None
    run = await stand.runner.run_now(NAME, by=OPERATOR)
    after = await stand.runner.status(NAME)
    assert after.last is not None
    assert after.last.id == run.id
    due = await stand.runner.next_due(NAME, limit=3)
    assert due[0] == after.next_due
    assert due[2] - due[0] == timedelta(hours=2)
    stand.write(every="1h", enabled="false")
    assert (await stand.runner.status(NAME)).next_due is None
    assert await stand.runner.next_due(NAME, limit=3) == []


async def test_a_listing_is_whole_while_the_file_loses_a_schedule(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["one", "two", "three"]
    entry = "  - {{name: {}, every: 1h, agentId: agent-1, request: {{command: [/usr/bin/true]}}}}\n"
    file = stand.folder / "schedules.yaml"
    file.write_text("schedules:\n" + "".join(map(entry.format, names)))
    assert stand.source.reload()
    state = stand.store.state

    async def state_while_the_file_changes(name: str) -> ScheduleState:
        file.write_text("schedules: []\n")
        stand.source.reload()
        return await state(name)

    monkeypatch.setattr(stand.store, "state", state_while_the_file_changes)
    assert {status.name for status in await stand.runner.statuses()} == set(names)
    assert await stand.runner.statuses() == []


async def test_a_pause_is_reported_although_the_file_loses_the_schedule_meanwhile(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    pause = stand.store.pause

    async def pause_while_the_file_changes(*args: Any, **values: Any) -> bool:
        (stand.folder / "schedules.yaml").write_text("schedules: []\n")
        assert stand.source.reload()
        return await pause(*args, **values)

    monkeypatch.setattr(stand.store, "pause", pause_while_the_file_changes)
    assert (await stand.runner.pause(NAME, by=OPERATOR, reason="repairs")).paused


async def test_a_schedule_that_is_not_there_is_not_found(stand: Stand) -> None:
    calls = (
        stand.runner.status("x"), stand.runner.next_due("x", limit=1), stand.runner.runs("x", limit=1),
        stand.runner.pause("x", by=OPERATOR, reason="y"), stand.runner.run_now("x", by=OPERATOR),
    )  # fmt: skip
    for call in calls:
        with pytest.raises(NotFound, match="there is no schedule 'x'"):
            await call


# --- what Redis says --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["text", "field", "taken", "set"])
async def test_a_schedule_that_somebody_broke_hides_no_other(stand: Stand, damage: str) -> None:
    (stand.folder / "schedules.yaml").write_text(
        ONE.format(every="1s", command="/usr/bin/true", more="")
        + "  - {name: a-broken, every: 1s, agentId: agent-1, request: {command: [/usr/bin/true]}}\n"
    )
    stand.source.reload()
    await stand.runner.advance_all()
    key = keys.schedule("a-broken")
    if damage == "text":
        await stand.redis.set(key, "x")
    elif damage == "set":
        await stand.redis.delete(key)
        await stand.redis.sadd(key, "x")
    else:
        await stand.redis.hset(key, "cursor_ms" if damage == "field" else "taken:1", "x")
    await stand.back(1100)
    await stand.runner.advance_all()
    assert {run.outcome for run in await stand.runs()} == {DueOutcome.RUN}
    with pytest.raises(TachikomaError):
        await stand.runner.status("a-broken")


async def test_a_cursor_from_the_beginning_of_time_is_a_bounded_piece_of_work(stand: Stand) -> None:
    stand.stop_clock(Clock(await stand.ledger.now_ms()))
    await stand.runner.advance(NAME)
    await stand.redis.hset(keys.schedule(NAME), "cursor_ms", 0)
    await stand.runner.advance(NAME)
    runs = await stand.runs()
    assert len(runs) <= 110
    assert runs[0].count > 365 * 24 * 3600
    assert runs[0].outcome is DueOutcome.MISSED


async def test_a_redis_that_is_away_ends_nothing(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = 0

    async def broken() -> None:
        nonlocal looks
        looks += 1
        raise ConnectionError("away")

    monkeypatch.setattr(runner, "CHECK_SECONDS", 0.01)
    monkeypatch.setattr(stand.runner, "advance_all", broken)
    task = asyncio.create_task(stand.runner.run())
    async with asyncio.timeout(PATIENCE_SECONDS):
        while looks < 3:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    await cancel_all([task])


async def test_a_changed_file_is_looked_at_at_once(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "FILE_SECONDS", 0.01)
    # Only the change makes it check again.
    monkeypatch.setattr(runner, "CHECK_SECONDS", 3600)
    tasks = [asyncio.create_task(stand.runner.run()), asyncio.create_task(stand.runner.watch_file())]
    write(stand.folder, "7s")
    async with asyncio.timeout(PATIENCE_SECONDS):
        while (await stand.store.state(NAME)).rule != "every 7000":  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    write(stand.folder, "nonsense")
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not stand.runner.error:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    await cancel_all(tasks)
