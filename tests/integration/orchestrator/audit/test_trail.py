"""The audit trail in Redis: appended, read, closed and trimmed."""

from __future__ import annotations

import json
from datetime import timedelta

from tachikoma.redis import keys
from tachikoma.redis.commands import Redis
from tachikoma.vocabulary.audit import AuditCode
from tachikoma_orchestrator.audit.trail import AuditTrail

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
    oldest = await trail.read(after="0-0", limit=500)
    kept = {"cursor": oldest[-1].cursor, "seq": 500, "at": now // 1000}
    await redis.hset(keys.AUDIT_SINKS, SINK, json.dumps(kept))
    await trail.trim(now, retention=timedelta(minutes=1), events=100, closed=True)
    left = await trail.read(after="0-0", limit=2000)
    assert left[-1].seq == 1000
    # Redis trims whole nodes of a hundred.
    assert 400 <= left[0].seq <= 501
    # One that was not heard of since has no claim.
    await redis.hset(keys.AUDIT_SINKS, SINK, json.dumps({**kept, "at": 1}))
    await trail.trim(now, retention=timedelta(minutes=1), events=100, closed=True)
    assert len(await trail.read(after="0-0", limit=2000)) <= 100
    await append(trail, 300)
    await redis.hset(keys.AUDIT_SINKS, SINK, json.dumps(kept))
    await trail.trim(now, retention=timedelta(minutes=1), events=100, closed=False)
    assert len(await trail.read(after="0-0", limit=2000)) <= 200


async def test_a_sink_whose_position_is_garbage_does_not_keep_the_trail_from_being_trimmed(redis: Redis) -> None:
    trail = AuditTrail(redis)
    await append(trail, 1000)
    for number, garbage in enumerate(GARBAGE):
        await redis.hset(keys.AUDIT_SINKS, f"sink-{number}", garbage)
    await trail.trim(0, retention=timedelta(0), events=100, closed=True)
    assert len(await trail.read(after="0-0", limit=2000)) <= 200
