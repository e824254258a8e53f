"""Decisions about batches name the receipts on which they rest, in their audit events."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from batches import BatchStand
from tachikoma.redis import keys
from tachikoma.vocabulary.audit import AuditCode, ExecAuditLog
from tachikoma.vocabulary.states import ExecState

Make = Callable[..., Awaitable[BatchStand]]


async def decisions(stand: BatchStand, batch_id: str, code: AuditCode) -> list[ExecAuditLog]:
    page = await stand.stand.trail.read(limit=1000)
    return [event for event in page.events if event.batch == batch_id and event.event == code]


async def test_a_wave_names_the_executions_of_the_wave_before(make: Make) -> None:
    stand = await make(5)
    batch = await stand.submit(canary=1, wave="2")
    ids: list[str] = []
    for agents in (("web-1",), ("web-2", "web-3"), ("web-4", "web-5")):
        await stand.step(batch)
        # Each ends in the reverse order of the list.
        orders = {agent: await stand.end(agent) for agent in reversed(agents)}
        ids += [orders[agent].jti for agent in agents]
        await stand.step(batch)
    first, second = await decisions(stand, batch, AuditCode.BATCH_WAVE)
    assert first.reason == f"targets 2 to 3 of 5, after {ids[0]} SUCCEEDED"
    assert second.reason == f"targets 4 to 5 of 5, after {ids[1]} SUCCEEDED, {ids[2]} SUCCEEDED"
    assert first.evidence_sha256 == await stand.receipts(ids[0])
    assert second.evidence_sha256 == await stand.receipts(ids[1], ids[2])


async def test_a_failed_canary_names_its_executions(make: Make) -> None:
    stand = await make(3)
    batch = await stand.submit(canary=2)
    await stand.step(batch)
    first = await stand.end("web-1")
    second = await stand.end("web-2", ExecState.FAILED, exit_code=1)
    await stand.step(batch)
    (stopped,) = await decisions(stand, batch, AuditCode.BATCH_STOPPED)
    named = f"{second.jti} FAILED, {first.jti} SUCCEEDED"
    assert stopped.reason == f"1 of the first 2 targets did not succeed: {named}" == (await stand.status(batch)).reason
    assert stopped.evidence_sha256 == await stand.receipts(first.jti, second.jti)


async def test_the_stop_rule_names_the_first_failures(make: Make) -> None:
    stand = await make(12)
    batch = await stand.submit(stop_after="11")
    await stand.step(batch)
    ids = [(await stand.end(f"web-{number}", ExecState.FAILED, exit_code=1)).jti for number in range(1, 12)]
    (stopped,) = await decisions(stand, batch, AuditCode.BATCH_STOPPED)
    assert stopped.reason.endswith(f"; the last was web-11; failed: {', '.join(ids[:10])}, …")
    assert stopped.evidence_sha256 == (await stand.stand.events(ids[10]))[-1].evidence_sha256


async def test_an_entry_that_was_altered_is_no_ground(make: Make) -> None:
    stand = await make(2)
    batch = await stand.submit()
    await stand.step(batch)
    order = await stand.end("web-2")
    for altered in (b"7", b"{}", b'{"state": "NONE"}', b"\xff"):
        await stand.redis.hset(keys.batch(batch)[3], "web-1", altered)
        assert [end.exec_id for end in await stand.store.ends(batch, ["web-1", "web-2", "web-9"])] == [order.jti]
