"""Two hundred stand-ins on a real Redis, some of them dead, hanging or different; and many batches under one limit.

The stand-ins take real orders from their queues and verify them; their ends are recorded in the ledger.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Collection

import pytest

from admissions import BOSS, peer
from batches import BatchStand
from tachikoma.redis import keys
from tachikoma.targets.answers import grouped
from tachikoma.vocabulary.batches import BatchRequest, BatchState, TargetState
from tachikoma.vocabulary.states import ExecState
from tachikoma_orchestrator.batches import starter

Make = Callable[..., Awaitable[BatchStand]]

DEAD = {f"web-{number}" for number in range(1, 6)}
HANGING = {f"web-{number}" for number in range(6, 9)}
DIFFERENT = {f"web-{number}" for number in range(9, 11)}


async def run_all(stand: BatchStand, batch: str, *, except_for: Collection[str] = ()) -> None:
    """Let everything end that starts, except on some agents."""
    while True:
        await stand.step(batch)
        running = [agent for agent in await stand.running(batch) if agent not in except_for]
        if not running:
            return
        for agent in running:
            if agent in DIFFERENT:
                await stand.end(agent, ExecState.FAILED, exit_code=1, sha256="1" * 64)
            else:
                await stand.end(agent)


async def test_of_two_hundred_the_dead_the_hanging_and_the_different_are_told_apart_and_tried_again(make: Make) -> None:
    stand = await make(200)
    for agent in DEAD:
        await stand.redis.delete(keys.info(agent))
    batch = await stand.submit(parallel="20")
    await run_all(stand, batch, except_for=HANGING)
    # Neither the dead nor the hanging held up the others.
    status = await stand.status(batch)
    assert status.totals == {
        TargetState.SUCCEEDED: 190, TargetState.FAILED: 2, TargetState.RUNNING: 3, TargetState.UNREACHABLE: 5,
    }  # fmt: skip
    for agent in HANGING:
        await stand.end(agent, ExecState.TIMED_OUT, exit_code=137)
    status = await stand.status(batch)
    assert (status.state, sum(status.totals.values())) == (BatchState.DONE, 200)
    results = await stand.results(batch)
    groups = [set(group.agents) for group in grouped(results.values())]
    assert len(groups[0]) == 190
    assert DIFFERENT in groups
    assert set(stand.sent) == {f"web-{number}" for number in range(1, 201)} - DEAD
    assert set(stand.sent.values()) == {1}
    for agent in DEAD:
        await stand.stand.heard(agent)
    stand.sent.clear()
    again = await stand.submit(targets=(), command=(), retry_of=batch, parallel="20")
    await run_all(stand, again)
    assert (await stand.status(again)).total == 10
    assert stand.sent == dict.fromkeys(DEAD | HANGING | DIFFERENT, 1)


async def test_fifty_batches_of_two_requesters_never_exceed_a_limit(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two drivers at once, each of which drives six batches at once."""
    monkeypatch.setattr(starter, "RETRY_SECONDS", (0.0, 0.0))
    stand = await make(3, drivers=2)
    commands = 'allowedCommands: ["/usr/bin/true ..."]\n'
    stand.stand.change_policy(commands, commands + "    maxTargets: 5\n")
    batches = []
    for number in range(50):
        request = BatchRequest(targets=("web-*",), command=("true",), parallel="4")
        by = peer(BOSS) if number % 2 else peer()
        batches.append((await stand.rooms[0].submission.submit(request, by)).id)
    chance, open_key = random.Random(11), keys.scope("under:free")[1]
    most = 0
    for _ in range(60):
        await stand.step_at_once(chance.sample(batches, 6))
        count = await stand.redis.execute_command("SCARD", open_key)
        assert count <= 5
        most = max(most, count)
        for agent in chance.sample(["web-1", "web-2", "web-3"], 2):
            if await stand.redis.execute_command("LLEN", keys.queue(agent)):
                await stand.end(agent)
    assert most == 5
    assert sum(stand.sent.values()) > 20
