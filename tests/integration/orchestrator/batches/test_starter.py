"""The start of targets: limits are waited for, and what is decided is on the record."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from batches import BatchStand
from tachikoma.errors import Unavailable
from tachikoma.redis import keys
from tachikoma.vocabulary.batches import TargetState
from tachikoma.vocabulary.policies import RateLimitConfig
from tachikoma_orchestrator.batches import driver, starter, store
from tachikoma_orchestrator.batches.frozen import Frozen
from tachikoma_orchestrator.batches.store import BatchStore

Make = Callable[..., Awaitable[BatchStand]]


async def test_a_denied_target_leaves_an_event_with_its_batch(make: Make) -> None:
    stand = await make(1)
    batch = await stand.submit(command=("reboot",))
    await stand.step(batch)
    found = (await stand.stand.trail.read(after="", limit=100, exec_id="")).events
    denied = [event for event in found if event.event == "denied"]
    assert [(event.agent_id, event.batch) for event in denied] == [("web-1", batch)]


async def test_a_missing_label_leaves_an_event_too(make: Make) -> None:
    stand = await make(1)
    batch = await stand.submit(command=("true", "{label:none}"))
    await stand.step(batch)
    found = (await stand.stand.trail.read(after="", limit=100, exec_id="")).events
    denied = next(event for event in found if event.event == "denied")
    assert (denied.agent_id, denied.batch) == ("web-1", batch)
    assert "no label 'none'" in denied.reason


@pytest.mark.parametrize("value", ["", "a\0b", "x" * 200_000])
async def test_a_label_that_makes_no_valid_command_denies_its_own_target_only(
    make: Make, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand = await make(2)
    labels = {"web-1": {"program": value}, "web-2": {"program": "true"}}
    monkeypatch.setattr(stand.stand.registry, "labels", labels.get)
    batch = await stand.submit(command=("{label:program}",))
    await stand.step(batch)
    assert await stand.running(batch) == ["web-2"]
    assert (await stand.results(batch))["web-1"].state is TargetState.DENIED


async def test_a_limit_is_waited_for_and_does_not_hold_other_targets(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(starter, "RETRY_SECONDS", (0.0, 0.0))
    stand = await make(2, rate_limit=RateLimitConfig(concurrent_limit=1))
    busy = await stand.stand.admit("true", agent_id="web-1")
    batch = await stand.submit()
    await stand.step(batch)
    assert await stand.running(batch) == ["web-2"]
    order = await stand.end("web-1")
    assert order.jti == busy
    await stand.step(batch)
    assert "web-1" in await stand.running(batch)


def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the starter look at few targets at once, and try delayed ones again at once."""
    monkeypatch.setattr(starter, "RETRY_SECONDS", (0.0, 0.0))
    monkeypatch.setattr(starter, "MAX_LOOKED", 4)
    for module in (starter, store):
        monkeypatch.setattr(module, "PAGE", 3)


async def test_targets_with_full_queues_hold_no_later_ones(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    narrow(monkeypatch)
    stand = await make(12)
    for number in range(1, 11):
        await stand.redis.rpush(keys.queue(f"web-{number}"), *["an order"] * 100)
    batch = await stand.submit(parallel="2")
    for _ in range(6):
        await stand.step(batch)
    assert await stand.running(batch) == ["web-11", "web-12"]
    # The others take their turn when there is room, the one whose queue is free too.
    await stand.redis.delete(keys.queue("web-7"))
    for agent in ("web-11", "web-12"):
        await stand.end(agent)
    for _ in range(5):
        await stand.step(batch)
    assert await stand.running(batch) == ["web-7"]


async def test_targets_with_a_delay_hold_no_later_ones(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    narrow(monkeypatch)
    stand = await make(12)
    batch = await stand.submit(parallel="12")
    signed = await stand.store.signed(batch)
    assert signed is not None
    frozen = Frozen.read(stand.stand.identity.current(), batch, signed)
    monkeypatch.setattr(starter, "RETRY_SECONDS", (60.0, 60.0))
    for number in range(1, 11):
        stand.rooms[0].starter._delay(frozen.exec_id(f"web-{number}"), 60)
    for _ in range(3):
        await stand.step(batch)
    assert await stand.running(batch) == ["web-11", "web-12"]


async def test_a_look_is_bounded(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    narrow(monkeypatch)
    stand = await make(12, rate_limit=RateLimitConfig(concurrent_limit=1))
    await stand.stand.admit("true", agent_id="web-1")
    batch = await stand.submit()
    read, pending = [], BatchStore.pending

    async def counted(self: BatchStore, *values: Any) -> list[str]:
        read.append(await pending(self, *values))
        return read[-1]

    monkeypatch.setattr(BatchStore, "pending", counted)
    await stand.step(batch)
    assert sum(len(page) for page in read) == 6


async def test_a_batch_whose_targets_all_meet_a_limit_waits_before_it_tries_others(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(starter, "CHUNK", 2)
    monkeypatch.setattr(driver, "CHUNK", 2)
    commands = 'allowedCommands: ["/usr/bin/true ..."]\n'
    stand = await make(6)
    stand.stand.change_policy(commands, commands + "    maxTargets: 1\n")
    await stand.stand.admit("true", agent_id="web-6")
    batch = await stand.submit()
    for _ in range(4):
        await stand.step(batch)
    found = (await stand.stand.trail.read(after="", limit=100, exec_id="")).events
    assert [event.agent_id for event in found if event.event == "limited"] == ["web-1", "web-2"]


async def test_a_delayed_target_is_not_tried_at_once(make: Make) -> None:
    stand = await make(1, rate_limit=RateLimitConfig(concurrent_limit=1))
    await stand.stand.admit("true", agent_id="web-1")
    batch = await stand.submit()
    for _ in range(5):
        await stand.step(batch)
    found = (await stand.stand.trail.read(after="", limit=100, exec_id="")).events
    assert [event.event for event in found].count("limited") == 1
    assert (await stand.status(batch)).totals == {TargetState.PENDING: 1}


async def test_nothing_starts_while_requests_cannot_be_recorded(make: Make) -> None:
    stand = await make(1)
    batch = await stand.submit()
    stand.stand.trail.closed_reason = "the sink is full"
    with pytest.raises(Unavailable):
        await stand.step(batch)
    stand.stand.trail.closed_reason = ""
    await stand.step(batch)
    assert await stand.running(batch) == ["web-1"]
