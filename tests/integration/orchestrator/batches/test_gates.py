"""Health gates on the real scripts: the baseline, the gates between waves, and what their failures leave."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import timedelta

import pytest

from admissions import BOSS, peer
from batches import BatchStand
from tachikoma.identity.signed_messages import WorkOrder
from tachikoma.redis import keys
from tachikoma.vocabulary.batches import BatchState, HealthGate, TargetState
from tachikoma.vocabulary.states import ExecState

Make = Callable[..., Awaitable[BatchStand]]
COMMANDS = 'allowedCommands: ["/usr/bin/true ..."]\n'
GATE = HealthGate(agent_id="web-9", command=("true", "health"))


@pytest.fixture
async def stand(make: Make) -> BatchStand:
    """Four targets, and an agent for the gate."""
    made = await make(4, drivers=2)
    await made.stand.heard("web-9")
    return made


async def submit(stand: BatchStand, **values: object) -> str:
    return await stand.submit(**{"targets": ("web-[1-4]",), "wave": "2", "gate": GATE, **values})


async def gate_ends(
    stand: BatchStand, agent: str, state: ExecState = ExecState.SUCCEEDED, *, exit_code: int = 0
) -> WorkOrder:
    """Let a gate end, with a receipt that its agent signed."""
    return await stand.end(agent, state, exit_code=exit_code, signed=True)


async def wave(stand: BatchStand, batch: str, state: ExecState = ExecState.SUCCEEDED) -> list[str]:
    """Let the targets end that run; return them."""
    running = await stand.running(batch)
    for agent in running:
        await stand.end(agent, state, exit_code=int(state is ExecState.FAILED))
    return running


async def events(stand: BatchStand, batch: str) -> dict[str, list[str]]:
    """The reasons of the events about a batch itself, by code."""
    found: dict[str, list[str]] = {}
    for event in (await stand.stand.trail.read(after="", limit=1000, exec_id="")).events:
        if event.batch == batch and event.event.startswith("batch_"):
            found.setdefault(event.event, []).append(f"{event.reason} {event.evidence_sha256}")
    return found


async def test_a_gate_runs_before_the_first_wave_and_before_each_further_one(stand: BatchStand) -> None:
    batch = await submit(stand)
    started: list[list[str]] = []
    gates, ends = [], []
    for _ in range(2):
        for _ in range(3):
            await stand.step(batch)
            assert await stand.running(batch) == []
        order = await gate_ends(stand, "web-9")
        assert (order.request.command, order.request.timeout) == (("true", "health"), timedelta(minutes=1))
        # It is no target: it neither counts in the totals nor takes room.
        assert order.batch == ""
        gates.append(order.jti)
        await stand.step(batch)
        await stand.step(batch)
        running = await stand.running(batch)
        ends.append([(await stand.end(agent)).jti for agent in running])
        started.append(running)
    assert started == [["web-1", "web-2"], ["web-3", "web-4"]]
    await stand.step(batch)
    status = await stand.status(batch)
    assert (status.state, status.totals) == (BatchState.DONE, {TargetState.SUCCEEDED: 4})
    assert stand.sent["web-9"] == 2
    # The second wave rests on the first one too.
    after = ", ".join(f"{exec_id} SUCCEEDED" for exec_id in ends[0])
    assert (await events(stand, batch))["batch_wave"] == [
        f"the health gate {gates[0]} on web-9 succeeded, before targets 1 to 2 of 4 " + await stand.receipts(gates[0]),
        f"the health gate {gates[1]} on web-9 succeeded, before targets 3 to 4 of 4, after {after} "
        + await stand.receipts(*ends[0], gates[1]),
    ]


async def test_a_baseline_that_fails_starts_nothing(stand: BatchStand) -> None:
    batch = await submit(stand)
    await stand.step(batch)
    order = await gate_ends(stand, "web-9", ExecState.FAILED, exit_code=7)
    await stand.step(batch)
    status = await stand.status(batch)
    assert (status.state, status.totals) == (BatchState.STOPPED, {TargetState.NOT_STARTED: 4})
    assert status.reason == (
        f"the health gate {order.jti} on web-9 ended as FAILED with exit code 7, before targets 1 to 2 of 4"
    )
    (stopped,) = (await events(stand, batch))["batch_stopped"]
    assert stopped.endswith(await stand.receipts(order.jti))


@pytest.mark.parametrize("state", [ExecState.FAILED, ExecState.TIMED_OUT])
async def test_a_gate_that_fails_between_waves_stops_the_batch(stand: BatchStand, state: ExecState) -> None:
    batch = await submit(stand)
    await stand.step(batch)
    await gate_ends(stand, "web-9")
    await stand.step(batch)
    await stand.step(batch)
    await wave(stand, batch)
    await stand.step(batch)
    await gate_ends(stand, "web-9", state, exit_code=1)
    await stand.step(batch)
    status = await stand.status(batch)
    assert (status.state, status.totals) == (
        BatchState.STOPPED, {TargetState.SUCCEEDED: 2, TargetState.NOT_STARTED: 2},
    )  # fmt: skip
    assert f"ended as {state}" in status.reason
    assert "before targets 3 to 4 of 4" in status.reason


async def test_the_gate_comes_after_the_canary_and_the_pause(stand: BatchStand) -> None:
    batch = await submit(stand, wave=None, canary=1, pause=600)
    await stand.step(batch)
    await gate_ends(stand, "web-9")
    await stand.step(batch)
    await stand.step(batch)
    await wave(stand, batch)
    for _ in range(3):
        await stand.step(batch)
    assert await stand.redis.execute_command("LLEN", keys.queue("web-9")) == 0
    await stand.redis.hset(keys.batch(batch)[0], "paused_ms:1", "1")
    await stand.step(batch)
    await gate_ends(stand, "web-9")
    await stand.step(batch)
    await stand.step(batch)
    assert len(await stand.running(batch)) == 3


async def test_a_receipt_that_its_agent_did_not_sign_lets_nothing_start(stand: BatchStand) -> None:
    batch = await submit(stand)
    await stand.step(batch)
    await stand.end("web-9")
    await stand.step(batch)
    status = await stand.status(batch)
    assert (status.state, status.totals) == (BatchState.STOPPED, {TargetState.NOT_STARTED: 4})
    assert "has no result that can be verified" in status.reason


async def test_two_drivers_run_each_gate_once(stand: BatchStand) -> None:
    batch = await submit(stand)
    for number in range(6):
        await stand.step(batch, driver=number % 2)
    assert await stand.redis.execute_command("LLEN", keys.queue("web-9")) == 1


async def test_a_gate_on_one_of_the_targets_is_not_its_part_of_the_batch(stand: BatchStand) -> None:
    batch = await submit(stand, gate=GATE.model_copy(update={"agent_id": "web-1"}), wave=None)
    await stand.step(batch)
    await gate_ends(stand, "web-1")
    assert (await stand.status(batch)).totals == {TargetState.PENDING: 4}
    await stand.step(batch)
    await stand.step(batch)
    assert await wave(stand, batch) == ["web-1", "web-2", "web-3", "web-4"]


@pytest.mark.parametrize(
    ("agent", "command", "reason"),
    [
        ("web-9", ("id",), "is denied: "),
        ("web-9", ("printf", "x"), ""),
        ("web-8", ("true",), "could not start: OFFLINE"),
        ("web-7", ("true",), "could not start: UNKNOWN"),
    ],
)
async def test_a_gate_that_cannot_run_starts_nothing(
    stand: BatchStand, agent: str, command: tuple[str, ...], reason: str
) -> None:
    await stand.stand.heard("web-8")
    await stand.redis.delete(keys.info("web-8"))
    batch = await submit(stand, gate=HealthGate(agent_id=agent, command=command))
    await stand.step(batch)
    status = await stand.status(batch)
    if reason:
        assert status.state is BatchState.STOPPED
        assert reason in status.reason
    else:
        # Policy requires an approval of the gate's command, so of the batch.
        assert [need.policy for need in status.needs] == ["careful"]
        assert status.state is BatchState.PENDING_APPROVAL
    assert await stand.running(batch) == []


@pytest.mark.parametrize("change", [False, True])
async def test_an_approval_contains_the_gate(stand: BatchStand, change: bool) -> None:
    stand.stand.change_policy(COMMANDS, COMMANDS + f"    requireApprovalAbove: 2\n    approvers: [{BOSS}]\n")
    batch = await submit(stand)
    approvals = stand.rooms[0].approvals
    shown = await approvals.describe(batch, peer(BOSS))
    assert shown.request.gate == GATE
    await approvals.approve(batch, shown.digest, "change 4711", peer(BOSS))
    if change:
        stand.stand.change_policy("maxTimeout: 5m", "maxTimeout: 6m")
        await stand.step(batch)
        status = await stand.status(batch)
        assert status.state is BatchState.STOPPED
        assert "is denied: what would run is not what was approved" in status.reason
        return
    for _ in range(2):
        await stand.step(batch)
        assert (await gate_ends(stand, "web-9")).approved_by == str(BOSS)
        await stand.step(batch)
        await stand.step(batch)
        assert len(await wave(stand, batch)) == 2
    assert (await stand.status(batch)).state is BatchState.DONE
