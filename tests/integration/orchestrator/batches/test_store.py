"""Batches in Redis: what tampering can do to them, and what stays when they have ended."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from batches import BatchStand
from tachikoma.redis import keys
from tachikoma.vocabulary.audit import AuditCode
from tachikoma.vocabulary.batches import BatchState, TargetState
from tachikoma.vocabulary.states import ExecState
from tachikoma_orchestrator.batches.frozen import Frozen

Make = Callable[..., Awaitable[BatchStand]]


async def test_a_batch_that_was_deleted_keeps_no_execution_from_its_final_state(make: Make) -> None:
    stand = await make(1)
    batch = await stand.submit()
    await stand.step(batch)
    await stand.redis.delete(*keys.batch(batch))
    order = await stand.end("web-1")
    record = await stand.stand.ledger.record(order.jti)
    assert record is not None
    assert record.state is ExecState.SUCCEEDED
    assert await stand.store.status(batch) is None
    await stand.step(batch)


async def test_values_of_another_type_keep_no_execution_from_its_final_state(make: Make) -> None:
    stand = await make(1)
    batch = await stand.submit()
    await stand.step(batch)
    _, _, running, ended = keys.batch(batch)
    for name in (running, ended):
        await stand.redis.delete(name)
        await stand.redis.set(name, "x")
    order = await stand.end("web-1")
    record = await stand.stand.ledger.record(order.jti)
    assert record is not None
    assert record.state is ExecState.SUCCEEDED


async def test_a_record_of_another_type_holds_back_its_own_target_only(make: Make) -> None:
    stand = await make(2)
    batch = await stand.submit()
    signed = await stand.store.signed(batch)
    assert signed is not None
    frozen = Frozen.read(stand.stand.identity.current(), batch, signed)
    await stand.redis.set(keys.execution(frozen.exec_id("web-1")), "x")
    await stand.rooms[0].driver.drive_all()
    assert await stand.running(batch) == ["web-2"]


async def test_entries_that_cannot_be_read_hide_no_others(make: Make) -> None:
    stand = await make(2)
    batch = await stand.submit()
    await stand.step(batch)
    await stand.end("web-1")
    for value in ("x", "[]", '{"state": "NONE"}', "{}"):
        await stand.redis.hset(keys.batch(batch)[3], "other", value)
        assert list(await stand.results(batch)) == ["web-1"]


async def test_a_cancelled_batch_counts_what_it_did_not_start(make: Make) -> None:
    stand = await make(3)
    batch = await stand.submit(parallel="1")
    await stand.step(batch)
    halt = (batch, BatchState.CANCELLED, AuditCode.BATCH_CANCELLED, "cancelled")
    assert await stand.store.halt(*halt, by="somebody")
    assert not await stand.store.halt(*halt, by="somebody")
    status = await stand.status(batch)
    assert status.totals == {TargetState.RUNNING: 1, TargetState.NOT_STARTED: 2}
    await stand.end("web-1")
    assert (await stand.status(batch)).end_time is not None


async def test_an_ended_batch_expires_with_its_executions(make: Make) -> None:
    stand = await make(1)
    batch = await stand.submit()
    await stand.step(batch)
    assert await stand.redis.execute_command("TTL", keys.batch(batch)[0]) == -1
    await stand.end("web-1")
    assert 0 < await stand.redis.execute_command("TTL", keys.batch(batch)[0]) <= 3600
    assert await stand.store.open_batches() == []
    assert await stand.store.newest(10) == [batch]


async def test_a_lease_belongs_to_one_driver_for_a_while(make: Make) -> None:
    stand = await make(1)
    assert await stand.store.lead("b", "one", lease_seconds=60)
    assert await stand.store.lead("b", "one", lease_seconds=60)
    assert not await stand.store.lead("b", "two", lease_seconds=60)
