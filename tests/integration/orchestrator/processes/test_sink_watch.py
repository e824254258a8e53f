"""The submitter refuses requests while too many audit events wait for a sink."""

from __future__ import annotations

import time

import pytest

from tachikoma.redis import keys
from tachikoma.redis.commands import Redis
from tachikoma_orchestrator.audit.positions import SinkPosition
from tachikoma_orchestrator.audit.trail import AuditTrail
from tachikoma_orchestrator.processes.sink_watch import SINK_SECONDS, SinkWatch


async def store(redis: Redis, name: str, seq: int, age: float = 0) -> None:
    await redis.hset(keys.AUDIT_SINKS, name, SinkPosition("1-0", seq, round(time.time() - age)).to_json())


async def test_the_trail_is_closed_while_a_sink_is_too_far_behind(redis: Redis) -> None:
    trail = AuditTrail(redis)
    watch = SinkWatch(redis, trail, backlog=10)
    await watch.look()
    assert trail.closed_reason == ""
    await redis.set(keys.AUDIT_SEQ, 100)
    await store(redis, "file:a", 100)
    await store(redis, "syslog:b", 89)
    await watch.look()
    assert trail.closed_reason == "11 events of the audit trail wait for syslog:b"
    await store(redis, "syslog:b", 90)
    await watch.look()
    assert trail.closed_reason == ""


async def test_a_sink_that_is_not_in_use_any_more_keeps_nothing_closed(redis: Redis) -> None:
    trail = AuditTrail(redis)
    await redis.set(keys.AUDIT_SEQ, 100)
    await store(redis, "file:gone", 1, age=SINK_SECONDS + 10)
    await redis.hset(keys.AUDIT_SINKS, "altered", "nonsense")
    await SinkWatch(redis, trail, backlog=10).look()
    assert trail.closed_reason == ""


async def test_an_unreadable_number_changes_nothing(redis: Redis) -> None:
    trail = AuditTrail(redis)
    trail.closed_reason = "closed before"
    await redis.set(keys.AUDIT_SEQ, "nonsense")
    with pytest.raises(ValueError, match="nonsense"):
        await SinkWatch(redis, trail, backlog=10).look()
    assert trail.closed_reason == "closed before"
