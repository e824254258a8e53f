"""The audit trail in Redis: appended, read, closed and trimmed."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest

from tachikoma.redis import keys
from tachikoma.redis.commands import Redis
from tachikoma.vocabulary.audit import AuditCode, ExecAuditLog
from tachikoma_orchestrator.audit import trail as trail_module
from tachikoma_orchestrator.audit.trail import AuditTrail, TrailBounds

#: The name of a sink.
SINK = "recorder"
GARBAGE = [b"", b"\xff", b"[]", b'{"cursor":"1-0","seq":1e999,"at":1}']


async def append(trail: AuditTrail, count: int) -> None:
    for _ in range(count):
        await trail.append(AuditCode.POLICY_CHANGED, reason="x")


async def test_what_a_sink_has_not_taken_is_not_trimmed_unless_by_choice(redis: Redis) -> None:
    trail = AuditTrail(redis)
    await append(trail, 1000)
    now = int((await redis.time())[0]) * 1000 + 3_600_000
    oldest = (await trail.read(after="0-0", limit=500)).events
    kept = {"cursor": oldest[-1].cursor, "seq": 500, "at": now // 1000}
    await redis.hset(keys.AUDIT_SINKS, SINK, json.dumps(kept))
    await trail.trim(now, TrailBounds(timedelta(minutes=1), 100, closed=True))
    left = (await trail.read(after="0-0", limit=2000)).events
    assert left[-1].seq == 1000
    # Redis trims whole nodes of a hundred.
    assert 400 <= left[0].seq <= 501
    # One that was not heard of since has no claim.
    await redis.hset(keys.AUDIT_SINKS, SINK, json.dumps({**kept, "at": 1}))
    await trail.trim(now, TrailBounds(timedelta(minutes=1), 100, closed=True))
    assert len((await trail.read(after="0-0", limit=2000)).events) <= 100
    await append(trail, 300)
    await redis.hset(keys.AUDIT_SINKS, SINK, json.dumps(kept))
    await trail.trim(now, TrailBounds(timedelta(minutes=1), 100, closed=False))
    assert len((await trail.read(after="0-0", limit=2000)).events) <= 200


async def test_a_sink_whose_position_is_garbage_does_not_keep_the_trail_from_being_trimmed(redis: Redis) -> None:
    trail = AuditTrail(redis)
    await append(trail, 1000)
    for number, garbage in enumerate(GARBAGE):
        await redis.hset(keys.AUDIT_SINKS, f"sink-{number}", garbage)
    await trail.trim(0, TrailBounds(timedelta(0), 100, closed=True))
    assert len((await trail.read(after="0-0", limit=2000)).events) <= 200


# --- searches ---------------------------------------------------------------------------------------------------------


class Counting:
    """Redis that counts the entries it returned."""

    def __init__(self, redis: Redis) -> None:
        self.redis = redis
        self.connection_pool = redis.connection_pool
        self.entries = 0

    async def xrange(self, *args: str, count: int) -> list[object]:
        found = await self.redis.xrange(*args, count=count)
        self.entries += len(found)
        return list(found)

    async def xrevrange(self, *args: str, count: int) -> list[object]:
        found = await self.redis.xrevrange(*args, count=count)
        self.entries += len(found)
        return list(found)


async def search(trail: AuditTrail, limit: int, exec_id: str, *, forward: bool) -> list[ExecAuditLog]:
    """Return what all pages of a search contain."""
    found: list[ExecAuditLog] = []
    after, before = ("0-0", "") if forward else ("", "")
    while True:
        page = await trail.read(after=after, before=before, limit=limit, exec_id=exec_id)
        assert len(page.events) <= limit
        found = found + page.events if forward else page.events + found
        if not page.further:
            return found
        after, before = (page.further, "") if forward else ("", page.further)


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trail_module, "BATCH", 10)
    monkeypatch.setattr(trail_module, "MAX_STEPS", 3)


@pytest.mark.parametrize("forward", [True, False])
@pytest.mark.parametrize("limit", [1, 3, 10, 29, 1000])
async def test_the_pages_of_a_search_are_all_events_of_an_execution(
    redis: Redis, small_batches: None, forward: bool, limit: int
) -> None:
    trail = AuditTrail(redis)
    # At both ends of the trail, in a row, at the end of a batch and of a page, and 65 events apart.
    wanted = {0, 1, 9, 10, 29, 30, 31, 96, 119}
    for number in range(120):
        await trail.append(AuditCode.POLICY_CHANGED, id="mine" if number in wanted else f"other-{number}")
    assert [event.seq - 1 for event in await search(trail, limit, "mine", forward=forward)] == sorted(wanted)
    assert await search(trail, limit, "nothing", forward=forward) == []
    assert [event.seq for event in await search(trail, limit, "", forward=forward)] == list(range(1, 121))


@pytest.mark.parametrize("forward", [True, False])
async def test_a_page_of_a_search_reads_a_bounded_number_of_events(
    redis: Redis, small_batches: None, forward: bool
) -> None:
    await append(AuditTrail(redis), 100)
    counting = Counting(redis)
    trail = AuditTrail(counting)  # type: ignore[arg-type]
    page = await trail.read(after="0-0" if forward else "", limit=5, exec_id="nothing")
    assert (page.events, counting.entries) == ([], 30)
    assert page.further
    # Without an id nothing is read in vain.
    counting.entries = 0
    assert len((await trail.read(after="0-0" if forward else "", limit=5)).events) == counting.entries == 5


async def test_an_empty_trail_has_one_page(redis: Redis) -> None:
    trail = AuditTrail(redis)
    for after, before in (("", ""), ("0-0", ""), ("", "5-0")):
        page = await trail.read(after=after, before=before, limit=10, exec_id="x")
        assert (page.events, page.further) == ([], "")
