"""The start of targets: limits are waited for, and what is decided is on the record."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest

from batches import BatchStand
from tachikoma.errors import Unavailable
from tachikoma.vocabulary.batches import TargetState
from tachikoma.vocabulary.policies import RateLimitConfig
from tachikoma_orchestrator.batches import starter

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
