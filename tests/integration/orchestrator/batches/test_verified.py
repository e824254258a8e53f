"""Signed batches and approvals, each read and verified once."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest

from batches import BatchStand
from tachikoma.redis import keys
from tachikoma_orchestrator.batches import verified
from tachikoma_orchestrator.batches.verified import VerifiedBatches

Make = Callable[..., Awaitable[BatchStand]]


async def test_a_batch_is_read_once_and_an_altered_one_never(make: Make) -> None:
    stand = await make(1)
    batch = await stand.submit()
    batches = VerifiedBatches(stand.store, stand.stand.identity)
    first = await batches.batch(batch)
    assert first is not None
    assert first.targets == ("web-1",)
    await stand.redis.hset(keys.batch(batch)[0], "signed", "forged")
    assert await batches.batch(batch) is first
    assert await VerifiedBatches(stand.store, stand.stand.identity).batch(batch) is None
    assert await batches.batch("never") is None


async def test_a_batch_without_an_approval_has_none(make: Make) -> None:
    stand = await make(1)
    batches = VerifiedBatches(stand.store, stand.stand.identity)
    frozen = await batches.batch(await stand.submit())
    assert frozen is not None
    assert await batches.approval(frozen) is None
    await stand.redis.hset(keys.batch(frozen.id)[0], "approval", "forged")
    assert await batches.approval(frozen) is None


async def test_as_many_are_kept_as_are_allowed(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verified, "MAX_KEPT", 1)
    stand = await make(1)
    batches = VerifiedBatches(stand.store, stand.stand.identity)
    one, two = await stand.submit(), await stand.submit()
    first = await batches.batch(one)
    await batches.batch(two)
    assert await batches.batch(one) is not first
