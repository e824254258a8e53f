"""A watched batch: each target once, the status first and last."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from batches import BatchStand
from tachikoma.config.tasks import cancel_all
from tachikoma.vocabulary.audit import AuditCode
from tachikoma.vocabulary.batches import BatchState, BatchUpdate, TargetState
from tachikoma.vocabulary.states import ExecState

Make = Callable[..., Awaitable[BatchStand]]


@asynccontextmanager
async def watched(stand: BatchStand, batch: str, *, output: bool = False) -> AsyncIterator[AsyncIterator[BatchUpdate]]:
    """Follow a batch with a running subscriber."""
    task = asyncio.create_task(stand.subscribers[0].run())
    updates = stand.rooms[0].watch.follow(batch, output=output, follow=True)
    try:
        yield updates
    finally:
        await updates.aclose()  # type: ignore[attr-defined]
        await cancel_all([task])


async def test_every_end_comes_once_and_the_final_status_last(make: Make) -> None:
    stand = await make(3)
    batch = await stand.submit(parallel="2", stop_after="1")
    async with watched(stand, batch) as updates:
        first = (await anext(updates)).status
        assert first is not None
        assert first.totals == {TargetState.PENDING: 3}
        await stand.step(batch)
        await stand.end("web-1", exit_code=0)
        await stand.end("web-2", ExecState.FAILED, exit_code=3)
        found = [update async for update in updates]
    results = [update.result for update in found if update.result is not None]
    # Ends that came between two looks have no order.
    assert sorted((result.agent_id, result.state, result.exit_code) for result in results) == [
        ("web-1", TargetState.SUCCEEDED, 0),
        ("web-2", TargetState.FAILED, 3),
        ("web-3", TargetState.NOT_STARTED, -1),
    ]
    last = found[-1].status
    assert last is not None
    assert (last.state, last.ended) == (BatchState.STOPPED, True)


async def test_without_following_the_present_state_is_all(make: Make) -> None:
    stand = await make(2)
    batch = await stand.submit(parallel="1")
    await stand.step(batch)
    await stand.end("web-1")
    task = asyncio.create_task(stand.subscribers[0].run())
    found = [update async for update in stand.rooms[0].watch.follow(batch, output=False, follow=False)]
    await cancel_all([task])
    assert [update.result.agent_id for update in found if update.result] == ["web-1"]
    assert found[-1].status is not None


async def test_output_without_a_valid_receipt_is_not_shown(make: Make) -> None:
    stand = await make(1)
    batch = await stand.submit()
    async with watched(stand, batch, output=True) as updates:
        await anext(updates)
        await stand.step(batch)
        await stand.end("web-1")
        found = [update async for update in updates]
    result = next(update.result for update in found if update.result is not None)
    assert result.stdout is None
    assert result.error


async def test_a_cancelled_batch_that_runs_nothing_ends_the_watch(make: Make) -> None:
    stand = await make(1)
    batch = await stand.submit()
    async with watched(stand, batch) as updates:
        await anext(updates)
        await stand.store.halt(batch, BatchState.CANCELLED, AuditCode.BATCH_CANCELLED, "cancelled")
        found = [update async for update in updates]
    assert found[-1].status is not None
    assert found[-1].status.totals == {TargetState.NOT_STARTED: 1}
