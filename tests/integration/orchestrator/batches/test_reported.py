"""Batches that were reported as accepted or halted, on a real Redis that goes back to an older state."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from batches import BatchStand
from tachikoma.redis import keys
from tachikoma.vocabulary.audit import AuditCode
from tachikoma.vocabulary.batches import BatchState, TargetState

Make = Callable[..., Awaitable[BatchStand]]


async def halt(stand: BatchStand, batch: str) -> bool:
    return await stand.store.halt(batch, BatchState.CANCELLED, AuditCode.BATCH_CANCELLED, "cancelled", by="alice")


async def forget(stand: BatchStand, batch: str) -> None:
    """Let Redis have the state before a batch."""
    await stand.redis.delete(*keys.batch(batch))
    await stand.redis.execute_command("DEL", keys.BATCHES, keys.BATCHES_OPEN)


async def test_a_lost_batch_is_recorded_again_with_its_deadline_and_starts_its_targets(make: Make) -> None:
    stand = await make(2)
    batch = await stand.submit()
    hash_key = keys.batch(batch)[0]
    before = {name: await stand.redis.hget(hash_key, name) for name in ("signed", "digest", "deadline_ms")}
    await forget(stand, batch)
    await stand.store.reported.write_again(stand.redis)
    assert (await stand.status(batch)).state is BatchState.RUNNING
    assert await stand.redis.hget(hash_key, "signed") == before["signed"]
    # Redis and this process read their clocks one after the other.
    deadline = int(await stand.redis.hget(hash_key, "deadline_ms") or 0)
    assert abs(deadline - int(before["deadline_ms"] or 0)) < 60_000
    await stand.step(batch)
    assert await stand.running(batch) == ["web-1", "web-2"]


async def test_a_batch_that_was_not_lost_stays_as_it_is(make: Make) -> None:
    stand = await make(2)
    batch = await stand.submit()
    await stand.step(batch)
    await stand.end("web-1")
    await stand.store.reported.write_again(stand.redis)
    status = await stand.status(batch)
    assert status.totals == {TargetState.RUNNING: 1, TargetState.SUCCEEDED: 1}
    assert await stand.running(batch) == ["web-2"]


async def test_a_lost_cancel_is_made_again_before_a_target_starts(make: Make) -> None:
    stand = await make(2)
    batch = await stand.submit()
    older = await stand.redis.hgetall(keys.batch(batch)[0])
    assert await halt(stand, batch)
    await stand.redis.delete(keys.batch(batch)[0])
    for name, value in older.items():
        await stand.redis.hset(keys.batch(batch)[0], name, value)
    assert (await stand.status(batch)).state is BatchState.RUNNING
    await stand.store.reported.write_again(stand.redis)
    await stand.step(batch)
    status = await stand.status(batch)
    assert (status.state, status.totals) == (BatchState.CANCELLED, {TargetState.NOT_STARTED: 2})


async def test_a_batch_that_was_lost_and_cancelled_stays_cancelled(make: Make) -> None:
    stand = await make(2)
    batch = await stand.submit()
    assert await halt(stand, batch)
    await forget(stand, batch)
    await stand.store.reported.write_again(stand.redis)
    assert (await stand.status(batch)).state is BatchState.CANCELLED
