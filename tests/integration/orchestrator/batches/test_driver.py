"""The driver on the real scripts: limits, waves, the stop rule, several drivers, and a model of all of it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from admissions import BOSS, ORCHESTRATOR, peer
from batches import BatchStand
from tachikoma.identity.signed_messages import WorkOrder
from tachikoma.identity.signing import verify
from tachikoma.redis import keys
from tachikoma.vocabulary.audit import AuditCode
from tachikoma.vocabulary.batches import FAILURES, BatchState, HealthGate, StopCause, TargetState
from tachikoma.vocabulary.states import ExecState
from tachikoma_orchestrator.executions.restoration import Restoration
from tachikoma_orchestrator.executions.transitions import FENCE

Make = Callable[..., Awaitable[BatchStand]]


async def events(stand: BatchStand, batch_id: str) -> list[str]:
    """The codes of the events about a batch itself."""
    found = (await stand.stand.trail.read(after="", limit=1000, exec_id="")).events
    return [event.event for event in found if event.batch == batch_id and event.event.startswith("batch_")]


async def test_every_target_is_started_once_within_the_limit(make: Make) -> None:
    stand = await make(5)
    batch = await stand.submit(parallel="2")
    seen = []
    for _ in range(5):
        await stand.step(batch)
        await stand.step(batch)
        running = await stand.running(batch)
        assert 0 < len(running) <= 2
        seen.append(running[0])
        await stand.end(running[0])
    status = await stand.status(batch)
    assert (status.state, status.totals) == (BatchState.DONE, {TargetState.SUCCEEDED: 5})
    assert status.end_time is not None
    assert sorted(seen) == [f"web-{number}" for number in range(1, 6)]
    assert stand.sent == dict.fromkeys(seen, 1)
    assert await events(stand, batch) == ["batch_submitted", "batch_ended"]


async def test_orders_and_events_name_their_batch(make: Make) -> None:
    stand = await make(1)
    batch = await stand.submit()
    await stand.step(batch)
    order = await stand.end("web-1")
    assert order.batch == batch
    found = await stand.stand.events(order.jti)
    assert [(event.event, event.batch) for event in found] == [
        (code, batch) for code in ("admitted", "dispatched", "started", "succeeded")
    ]


async def test_the_stop_rule_is_exact(make: Make) -> None:
    """At most `stopAfter` + `parallel` - 1 targets start, whichever ends first."""
    stand = await make(100)
    batch = await stand.submit(parallel="10", stop_after="3")
    await stand.step(batch)
    assert len(await stand.running(batch)) == 10
    for number in range(3):
        await stand.end((await stand.running(batch))[0], ExecState.FAILED, exit_code=1)
        if number < 2:
            await stand.step(batch)
    await stand.step(batch)
    status = await stand.status(batch)
    assert status.state is BatchState.STOPPED
    assert status.reason.startswith("3 targets failed, and stopAfter is 3; the last was web-")
    assert status.end_time is None
    while running := await stand.running(batch):
        await stand.end(running[0], ExecState.FAILED, exit_code=1)
    assert sum(stand.sent.values()) == 12
    status = await stand.status(batch)
    assert status.totals == {TargetState.FAILED: 12, TargetState.NOT_STARTED: 88}
    assert status.failures == 12
    assert status.end_time is not None
    assert await events(stand, batch) == ["batch_submitted", "batch_stopped", "batch_ended"]


@pytest.mark.parametrize("seed", range(4))
async def test_the_stop_rule_is_exact_with_drivers_at_once(make: Make, seed: int) -> None:
    """Both drivers take their steps while targets end."""
    stand, chance = await make(100, drivers=2), random.Random(seed)
    batch = await stand.submit(parallel="10", stop_after="3")
    while not (await stand.status(batch)).ended:
        running = await stand.running(batch)
        assert len(running) <= 10
        ending = chance.sample(running, min(len(running), chance.randint(0, 4)))
        await asyncio.gather(
            stand.step_at_once([batch, batch]),
            *(stand.end(agent, ExecState.FAILED, exit_code=1) for agent in ending),
        )
    status = await stand.status(batch)
    assert status.state is BatchState.STOPPED
    started = status.totals[TargetState.FAILED]
    assert status.totals == {TargetState.FAILED: started, TargetState.NOT_STARTED: 100 - started}
    assert 10 <= started <= 3 + 10 - 1
    assert (len(stand.sent), set(stand.sent.values())) == (started, {1})
    assert sum([await stand.stand.queued(f"web-{number}") for number in range(1, 101)]) == 0
    assert await events(stand, batch) == ["batch_submitted", "batch_stopped", "batch_ended"]


async def test_drivers_at_once_start_each_target_once_and_each_wave_after_the_one_before(make: Make) -> None:
    stand = await make(30, drivers=2)
    batch = await stand.submit(canary=2, wave="7", parallel="5")
    begun: list[str] = []
    while not (await stand.status(batch)).ended:
        await stand.step_at_once([batch, batch])
        running = await stand.running(batch)
        assert len(running) <= 5
        begun += [agent for agent in running if agent not in begun]
        if running:
            await stand.end(running[0])
    assert stand.sent == {f"web-{number}": 1 for number in range(1, 31)}
    for first, end in ((0, 2), (2, 9), (9, 16), (16, 23), (23, 30)):
        assert set(begun[first:end]) == {f"web-{number}" for number in range(first + 1, end + 1)}
    waves = [code for code in await events(stand, batch) if code == "batch_wave"]
    assert len(waves) == 4


async def test_a_share_of_failures_is_of_the_whole_batch_and_not_of_a_wave(make: Make) -> None:
    """A fifth of 20 targets are four; a fifth of a wave of five would be one."""
    stand = await make(20)
    batch = await stand.submit(wave="5", stop_after="20%")
    failed = 0
    for wave in range(4):
        await stand.step(batch)
        running = await stand.running(batch)
        assert len(running) == 5
        for agent in running:
            # One in each wave, then three at once.
            fails = failed < wave + 1 if wave < 2 else failed < 4
            await stand.end(agent, ExecState.FAILED if fails else ExecState.SUCCEEDED, exit_code=int(fails))
            failed += fails
        await stand.step(batch)
        if failed == 4:
            break
    status = await stand.status(batch)
    assert (status.state, status.failures) == (BatchState.STOPPED, 4)
    assert status.reason.startswith("4 targets failed, and stopAfter is 4; ")
    assert status.totals == {TargetState.SUCCEEDED: 11, TargetState.FAILED: 4, TargetState.NOT_STARTED: 5}


async def test_a_stop_names_the_receipt_that_it_rests_on(make: Make) -> None:
    stand = await make(2)
    batch = await stand.submit(parallel="1", stop_after="50%")
    await stand.step(batch)
    order = await stand.end((await stand.running(batch))[0], ExecState.FAILED, exit_code=2)
    failed = next(event for event in await stand.stand.events(order.jti) if event.event == "failed")
    found = (await stand.stand.trail.read(after="", limit=100, exec_id="")).events
    stopped = next(event for event in found if event.event == "batch_stopped")
    assert stopped.evidence_sha256 == failed.evidence_sha256 != ""


async def test_unreachable_and_denied_targets_are_counted_apart_and_hold_nothing(make: Make) -> None:
    stand = await make(3)
    await stand.redis.delete(keys.info("web-2"))
    batch = await stand.submit(targets=("web-[1-3]", "never-1", "db-1"), stop_after="1")
    await stand.step(batch)
    for agent in await stand.running(batch):
        await stand.end(agent)
    status = await stand.status(batch)
    assert status.state is BatchState.DONE
    assert status.totals == {TargetState.SUCCEEDED: 2, TargetState.UNREACHABLE: 1, TargetState.DENIED: 2}
    results = await stand.results(batch)
    assert (results["web-2"].state, results["web-2"].error) == (TargetState.UNREACHABLE, "OFFLINE")
    assert results["db-1"].state is TargetState.DENIED
    assert results["db-1"].exec_id == ""


@pytest.mark.parametrize(("cause", "agent"), [(StopCause.UNREACHABLE, "web-9"), (StopCause.DENIED, "db-1")])
async def test_such_ends_stop_a_batch_that_says_so(make: Make, cause: StopCause, agent: str) -> None:
    stand = await make(2)
    batch = await stand.submit(targets=("web-[1-2]", agent), parallel="1", stop_after="1", stop_on=(cause,))
    for _ in range(3):
        await stand.step(batch)
        for running in await stand.running(batch):
            await stand.end(running)
    status = await stand.status(batch)
    assert status.state is BatchState.STOPPED
    assert status.totals[TargetState(cause)] == 1


@pytest.mark.parametrize("cause", [StopCause.EXPIRED, StopCause.REJECTED])
async def test_an_execution_that_never_started_stops_a_batch_that_says_so(make: Make, cause: StopCause) -> None:
    stand = await make(2)
    batch = await stand.submit(parallel="1", stop_after="1", stop_on=(cause,))
    other = await stand.submit(parallel="1", stop_after="1")
    for one in (batch, other):
        await stand.step(one)
        order = await stand.take("web-1")
        assert order is not None
        await stand.stand.ledger.settle(
            "web-1", order.jti, [ExecState.QUEUED], ExecState(cause), reason="why", fence=True
        )
    assert (await stand.status(batch)).state is BatchState.STOPPED
    assert (await stand.status(other)).state is BatchState.RUNNING


async def test_a_policy_that_requires_an_approval_since_the_batch_was_submitted_denies_the_target(make: Make) -> None:
    stand = await make(1)
    batch = await stand.submit()
    stand.stand.change_policy("allowInteractive: true", f"requireApproval: true\n    approvers: [{BOSS}]")
    await stand.step(batch)
    result = (await stand.results(batch))["web-1"]
    assert (result.state, result.error) == (
        TargetState.DENIED, "policy requires an approval, which the batch does not have; submit it again",
    )  # fmt: skip
    assert (await stand.status(batch)).state is BatchState.DONE


async def test_variables_are_replaced_before_policy_decides(make: Make) -> None:
    stand = await make(2)
    stand.stand.change_policy('"/usr/bin/true ..."', '"/usr/bin/true web-1 r1", "/usr/bin/true"')
    await stand.bind("web-1", "web-2", rack="r1")
    batch = await stand.submit(command=("true", "{agent}", "{label:rack}"))
    await stand.step(batch)
    order = await stand.end("web-1")
    assert order.request.command == ("true", "web-1", "r1")
    assert (await stand.results(batch))["web-2"].state is TargetState.DENIED
    batch = await stand.submit(command=("true", "{label:site}"))
    await stand.step(batch)
    assert "has no label 'site'" in (await stand.results(batch))["web-1"].error


async def test_a_canary_runs_alone_and_waves_end_before_the_next_begins(make: Make) -> None:
    stand = await make(7)
    batch = await stand.submit(canary=1, wave="3")
    sizes = []
    for _ in range(20):
        await stand.step(batch)
        running = await stand.running(batch)
        if running:
            sizes.append(len(running))
            await stand.step(batch)
            assert await stand.running(batch) == running
        for agent in running:
            await stand.end(agent)
    assert sizes == [1, 3, 3]
    assert (await stand.status(batch)).state is BatchState.DONE
    assert await events(stand, batch) == ["batch_submitted", "batch_wave", "batch_wave", "batch_ended"]


async def test_a_failed_canary_stops_the_batch(make: Make) -> None:
    stand = await make(4)
    batch = await stand.submit(canary=2)
    await stand.step(batch)
    first, second = await stand.running(batch)
    await stand.end(first)
    await stand.end(second, ExecState.TIMED_OUT, exit_code=-1)
    await stand.step(batch)
    status = await stand.status(batch)
    assert status.state is BatchState.STOPPED
    assert status.reason.startswith("1 of the first 2 targets did not succeed: ")
    assert status.end_time is not None
    assert status.totals[TargetState.NOT_STARTED] == 2


async def unreachable(stand: BatchStand) -> None:
    await stand.redis.delete(keys.info("web-1"))


async def denied(stand: BatchStand) -> None:
    stand.stand.change_policy(
        'agents: ["web-*"]\n    allowedCommands: ["/usr/bin/true',
        'agents: ["web-2"]\n    allowedCommands: ["/usr/bin/true',
    )


@pytest.mark.parametrize(("prevent", "state"), [(unreachable, "UNREACHABLE"), (denied, "DENIED")])
async def test_a_canary_that_gets_no_execution_stops_the_batch(
    make: Make, prevent: Callable[[BatchStand], Awaitable[None]], state: str
) -> None:
    stand = await make(2)
    batch = await stand.submit(canary=1)
    await prevent(stand)
    for _ in range(3):
        await stand.step(batch)
    status = await stand.status(batch)
    assert (status.state, status.totals) == (BatchState.STOPPED, {TargetState(state): 1, TargetState.NOT_STARTED: 1})
    assert status.reason == f"1 of the first 1 targets did not succeed: web-1 {state}"
    assert await stand.stand.queued("web-2") == 0
    assert await events(stand, batch) == ["batch_submitted", "batch_stopped", "batch_ended"]


@pytest.mark.parametrize("state", [state for state in ExecState if state.terminal and state is not ExecState.SUCCEEDED])
async def test_a_canary_whose_execution_ends_in_another_state_stops_the_batch(make: Make, state: ExecState) -> None:
    stand = await make(2)
    batch = await stand.submit(canary=1)
    await stand.step(batch)
    order = await stand.take("web-1")
    assert order is not None
    await stand.stand.ledger.settle("web-1", order.jti, [ExecState.QUEUED], state, reason="why", fence=True)
    for _ in range(2):
        await stand.step(batch)
    status = await stand.status(batch)
    assert (status.state, status.totals) == (BatchState.STOPPED, {TargetState(state): 1, TargetState.NOT_STARTED: 1})
    assert status.reason == f"1 of the first 1 targets did not succeed: {order.jti} {state}"
    assert await stand.stand.queued("web-2") == 0


async def test_a_canary_whose_result_cannot_be_read_stops_the_batch(make: Make) -> None:
    stand = await make(3)
    batch = await stand.submit(canary=2)
    await stand.step(batch)
    for agent in ("web-1", "web-2"):
        await stand.end(agent)
    await stand.redis.hset(keys.batch(batch)[3], "web-2", "x")
    await stand.step(batch)
    status = await stand.status(batch)
    assert status.state is BatchState.STOPPED
    assert status.reason.startswith("1 of the first 2 targets did not succeed: ")


async def test_a_pause_separates_waves(make: Make) -> None:
    stand = await make(2)
    batch = await stand.submit(wave="1", pause=600)
    await stand.step(batch)
    await stand.end((await stand.running(batch))[0])
    for _ in range(3):
        await stand.step(batch)
        assert await stand.running(batch) == []
    key = keys.batch(batch)[0]
    await stand.redis.hset(key, "paused_ms:1", "1")
    await stand.step(batch)
    await stand.step(batch)
    assert len(await stand.running(batch)) == 1


async def test_the_deadline_starts_no_more(make: Make) -> None:
    stand = await make(2)
    batch = await stand.submit(parallel="1")
    await stand.step(batch)
    await stand.redis.hset(keys.batch(batch)[0], "deadline_ms", "1")
    await stand.step(batch)
    assert (await stand.status(batch)).state is BatchState.EXPIRED
    await stand.end((await stand.running(batch))[0])
    status = await stand.status(batch)
    assert status.totals == {TargetState.SUCCEEDED: 1, TargetState.NOT_STARTED: 1}
    assert status.end_time is not None


async def test_an_execution_that_ends_without_receipt_counts_too(make: Make) -> None:
    stand = await make(1)
    batch = await stand.submit()
    await stand.step(batch)
    order = await stand.take("web-1")
    assert order is not None
    await stand.stand.ledger.settle(
        "web-1", order.jti, [ExecState.QUEUED], ExecState.EXPIRED, reason="too late", fence=True
    )
    assert FENCE.encode() == await stand.redis.get(keys.claim("web-1", order.jti))
    status = await stand.status(batch)
    assert (status.state, status.totals) == (BatchState.DONE, {TargetState.EXPIRED: 1})
    assert (await stand.results(batch))["web-1"].error == "too late"


async def test_a_full_queue_is_tried_again(make: Make) -> None:
    stand = await make(2)
    for _ in range(100):
        await stand.stand.admit("true", agent_id="web-1")
    batch = await stand.submit()
    await stand.step(batch)
    assert await stand.running(batch) == ["web-2"]
    assert (await stand.status(batch)).totals == {TargetState.PENDING: 1, TargetState.RUNNING: 1}


async def test_a_target_that_redis_added_is_never_started(make: Make) -> None:
    stand = await make(2)
    batch = await stand.submit(targets=("web-1",))
    await stand.redis.zadd(keys.batch(batch)[1], {"web-2": 0})
    for _ in range(3):
        await stand.step(batch)
    assert await stand.running(batch) == ["web-1"]
    assert await stand.stand.queued("web-2") == 0


async def test_a_batch_that_redis_replaced_starts_nothing(make: Make) -> None:
    stand = await make(2, drivers=2)
    batch, other = await stand.submit(), await stand.submit()
    signed = await stand.store.signed(other)
    assert signed is not None
    await stand.redis.hset(keys.batch(batch)[0], "signed", signed)
    await stand.step(batch)
    status = await stand.status(batch)
    assert (status.state, status.reason) == (BatchState.STOPPED, "its signed request cannot be verified")
    assert await stand.running(batch) == []


async def test_one_driver_leads_and_another_takes_over_when_its_lease_ends(make: Make) -> None:
    stand = await make(1, drivers=2)
    batch = await stand.submit()
    first, second = (room.driver for room in stand.rooms)
    await stand.store.lead(batch, "another", lease_seconds=60)
    await first.drive_all()
    assert await stand.running(batch) == []
    await stand.redis.delete(keys.batch_driver(batch))
    await second.drive_all()
    assert await stand.running(batch) == ["web-1"]


class Model:
    """What a batch must do, in its simplest form."""

    def __init__(
        self, total: int, parallel: int, stop_after: int, counted: frozenset[TargetState], *, waits: bool, gated: bool
    ) -> None:
        self.pending, self.running = total, 0
        self.parallel, self.stop_after, self.counted = parallel, stop_after, counted
        self.ended: dict[TargetState, int] = {}
        self.failures = 0
        self.state = BatchState.PENDING_APPROVAL if waits else BatchState.RUNNING
        #: The end of the health gate, which a driver has not seen yet; None if it has not ended.
        self.gate: ExecState | None = None
        self.gate_running = False
        self.released = not gated

    @property
    def open(self) -> bool:
        return self.state in (BatchState.RUNNING, BatchState.PENDING_APPROVAL)

    def step(self) -> None:
        """Take the step of a driver: the gate, or as many targets as there is room for."""
        if self.state is not BatchState.RUNNING:
            return
        if self.released:
            started = min(self.pending, self.parallel - self.running)
            self.pending -= started
            self.running += started
        elif self.gate is ExecState.SUCCEEDED:
            self.released = True
        elif self.gate is not None:
            self.state = BatchState.STOPPED
        else:
            self.gate_running = True

    def end(self, state: TargetState) -> None:
        self.running -= 1
        self.ended[state] = self.ended.get(state, 0) + 1
        self.failures += state in self.counted
        if self.state is BatchState.RUNNING and self.stop_after and self.failures >= self.stop_after:
            self.state = BatchState.STOPPED
        if self.state is BatchState.RUNNING and not (self.pending or self.running):
            self.state = BatchState.DONE

    def halt(self, state: BatchState) -> None:
        self.state = state if self.open else self.state

    @property
    def totals(self) -> dict[TargetState, int]:
        waiting = TargetState.PENDING if self.open else TargetState.NOT_STARTED
        counts = {**self.ended, waiting: self.pending, TargetState.RUNNING: self.running}
        return {state: number for state, number in counts.items() if number}


#: The agent of the health gates, which is no target.
GATE = HealthGate(agent_id="web-99", command=("true", "health"))


async def decided(stand: BatchStand, batch: str, model: Model, pick: random.Random) -> None:
    """Let an approver approve or reject a batch."""
    approvals, approver = stand.rooms[pick.randint(0, 7)].approvals, peer(BOSS)
    if pick.random() < 0.2:
        await approvals.reject(batch, "no", approver)
        model.halt(BatchState.REJECTED)
    else:
        await approvals.approve(batch, (await approvals.describe(batch, approver)).digest, "yes", approver)
        model.state = BatchState.RUNNING


async def ended(stand: BatchStand, batch: str, model: Model, pick: random.Random) -> None:
    """Let one of the running targets end."""
    agent = pick.choice(await stand.running(batch))
    state = pick.choice((ExecState.SUCCEEDED, ExecState.SUCCEEDED, ExecState.FAILED, ExecState.EXPIRED))
    if state is ExecState.EXPIRED:
        order = await stand.take(agent)
        assert order is not None
        await stand.stand.ledger.settle(agent, order.jti, [ExecState.QUEUED], state, reason="too late", fence=True)
    else:
        await stand.end(agent, state, exit_code=int(state is ExecState.FAILED))
    model.end(TargetState(state))


@pytest.mark.parametrize("seed", range(12))
async def test_random_batches_agree_with_a_model(make: Make, seed: int) -> None:
    """Two drivers, one of which is replaced by a new one at random, as after SIGKILL; cancels; ends of every kind.

    Some batches wait for an approval, some have a health gate, some have both.
    """
    pick = random.Random(seed)
    agents, waits, gated = pick.randint(3, 14), seed % 3 == 1, seed % 2 == 1
    stand = await make(agents, drivers=8)
    await stand.stand.heard(GATE.agent_id)
    if waits:
        limit = f"requireApprovalAbove: 2\n    approvers: [{BOSS}]"
        stand.stand.change_policy("allowInteractive: true", f"allowInteractive: true\n    {limit}")
    parallel, stop_after = pick.randint(1, 6), pick.choice((0, 1, 2, 4))
    counted = FAILURES | ({TargetState.EXPIRED} if pick.random() < 0.5 else frozenset())
    batch = await stand.submit(
        targets=(f"web-[1-{agents}]",), parallel=str(parallel), stop_after=str(stop_after) if stop_after else None,
        stop_on=(StopCause.EXPIRED,) if TargetState.EXPIRED in counted else (), gate=GATE if gated else None,
    )  # fmt: skip
    model = Model(agents, parallel, stop_after, counted, waits=waits, gated=gated)
    drivers = [0, 1]
    for _ in range(200):
        if not model.open and not model.running:
            break
        if pick.random() < 0.2:
            drivers[pick.randint(0, 1)] = pick.randint(0, 7)
        if pick.random() < 0.5:
            await stand.step(batch, pick.choice(drivers))
            model.step()
        elif model.state is BatchState.PENDING_APPROVAL:
            await decided(stand, batch, model, pick)
        elif model.gate_running:
            state = pick.choice((ExecState.SUCCEEDED, ExecState.SUCCEEDED, ExecState.FAILED))
            await stand.end(GATE.agent_id, state, exit_code=int(state is ExecState.FAILED), signed=True)
            model.gate, model.gate_running = state, False
        elif model.running:
            await ended(stand, batch, model, pick)
        elif pick.random() < 0.1:
            await stand.store.halt(batch, BatchState.CANCELLED, AuditCode.BATCH_CANCELLED, "", by=str(peer()))
            model.halt(BatchState.CANCELLED)
        status = await stand.status(batch)
        assert (status.state, status.totals, status.failures) == (model.state, model.totals, model.failures)
        assert (status.end_time is not None) == (not model.open and not model.running)
    assert set(stand.sent.values()) <= {1}


async def retyped(stand: BatchStand, key: str) -> None:
    await stand.redis.delete(key)
    await stand.redis.rpush(key, "not what it was")


GARBAGE: dict[str, Callable[[BatchStand, str], Awaitable[object]]] = {
    **{
        f"{field} {value!r}": lambda stand, batch, field=field, value=value: stand.redis.hset(  # type: ignore[misc]
            keys.batch(batch)[0], field, value
        )
        for field in ("state", "parallel", "released", "failures", "deadline_ms")
        for value in (b"x", b"\xff", b"")
    },
    "another type of lease": lambda stand, batch: retyped(stand, keys.batch_driver(batch)),
    "another type of batch": lambda stand, batch: retyped(stand, keys.batch(batch)[0]),
    "another type of pending": lambda stand, batch: retyped(stand, keys.batch(batch)[1]),
    "another type of running": lambda stand, batch: retyped(stand, keys.batch(batch)[2]),
}


@pytest.mark.parametrize("garbage", GARBAGE)
async def test_garbage_in_one_batch_holds_back_no_other(make: Make, garbage: str) -> None:
    stand = await make(1)
    # Batches are driven in the order of their ids.
    broken = await stand.submit(id="a")
    whole = await stand.submit(id="b")
    await GARBAGE[garbage](stand, broken)
    await stand.rooms[0].driver.drive_all()
    assert await stand.running(whole) == ["web-1"]


class LivesOf:
    """A life of Redis that lost data, and whose number agents report as text."""

    valid_from = 2

    def number_of(self, token: str) -> int:
        return int(token)


async def test_a_target_whose_start_redis_lost_is_counted_when_its_record_is_restored(make: Make) -> None:
    stand = await make(2)
    batch = await stand.submit()
    await stand.step(batch)
    token = await stand.stand.token("web-1")
    exec_id = verify(token, WorkOrder, stand.stand.identity.current().bundle, ORCHESTRATOR).jti
    # Back to the state before the start.
    _, pending, running, _ = keys.batch(batch)
    await stand.redis.delete(keys.execution(exec_id))
    await stand.redis.srem(running, "web-1")
    await stand.redis.zadd(pending, {"web-1": 0})
    await stand.redis.hset(keys.orders("web-1"), exec_id, token)
    lives: Any = LivesOf()
    shown = stand.stand.admitter.shown
    await Restoration(stand.redis, stand.stand.identity, lives, shown, no_result).heard("web-1", "2")
    assert await stand.running(batch) == ["web-1", "web-2"]
    record = await stand.stand.ledger.record(exec_id)
    assert record is not None
    restored = (await stand.stand.events(exec_id))[-1]
    assert (restored.event, restored.batch) == ("record_restored", batch)
    await stand.stand.ledger.settle("web-1", exec_id, [ExecState.QUEUED], ExecState.EXPIRED, reason="late", fence=False)
    assert (await stand.results(batch))["web-1"].state is TargetState.EXPIRED


@pytest.mark.parametrize("ended", [True, False])
async def test_a_waiting_target_follows_its_execution_that_was_restored_before_its_batch(
    make: Make, ended: bool
) -> None:
    stand = await make(2)
    batch = await stand.submit()
    await stand.step(batch)
    exec_id = verify(
        await stand.stand.token("web-1"), WorkOrder, stand.stand.identity.current().bundle, ORCHESTRATOR
    ).jti
    _, pending, running, _ = keys.batch(batch)
    # The batch as it was before its start, in which the end of the execution does not count.
    await stand.redis.srem(running, "web-1")
    if ended:
        await stand.stand.ledger.settle(
            "web-1", exec_id, [ExecState.QUEUED], ExecState.CANCELLED, reason="r", by="b", fence=True
        )
    await stand.redis.zadd(pending, {"web-1": 0})
    await stand.step(batch)
    assert await stand.running(batch) == (["web-2"] if ended else ["web-1", "web-2"])
    if ended:
        result = (await stand.results(batch))["web-1"]
        assert (result.state, result.error) == (TargetState.CANCELLED, "r")


async def no_result(agent: str, exec_id: str, raw: bytes) -> bool:
    raise AssertionError(f"{agent} has no result of {exec_id}")
