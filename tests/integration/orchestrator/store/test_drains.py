"""The drained agents that an orchestrator remembers, on a real Redis that goes back to an older state."""

from __future__ import annotations

import pytest

from tachikoma.redis import keys
from tachikoma.redis.commands import Redis
from tachikoma_orchestrator.store.drains import Drains


@pytest.fixture
async def drains(redis: Redis) -> Drains:
    """A copy that saw one agent drained, and another one drained and resumed."""
    made = Drains(redis)
    await redis.set(keys.LIFE, "a life")
    await redis.hset(keys.DRAINING, "drained", "by alice")
    await redis.hset(keys.DRAINING, "resumed", "by bob")
    await made.refresh()
    await redis.execute_command("HDEL", keys.DRAINING, "resumed")
    await made.refresh()
    return made


async def go_back(redis: Redis) -> None:
    """Let Redis have the state before both changes."""
    await redis.execute_command("DEL", keys.DRAINING)
    await redis.hset(keys.DRAINING, "resumed", "by bob")


async def test_a_lost_drain_and_a_lost_resumption_are_made_again(drains: Drains, redis: Redis) -> None:
    await go_back(redis)
    await drains.write_again(redis)
    assert await redis.hgetall(keys.DRAINING) == {b"drained": b"by alice"}
    await drains.write_again(redis)
    assert await redis.hgetall(keys.DRAINING) == {b"drained": b"by alice"}


async def test_a_change_of_another_orchestrator_that_was_not_seen_stays(drains: Drains, redis: Redis) -> None:
    await redis.hset(keys.DRAINING, "other", "by carol")
    await redis.hset(keys.DRAINING, "resumed", "by carol")
    await drains.write_again(redis)
    assert await redis.hgetall(keys.DRAINING) == {
        b"drained": b"by alice", b"other": b"by carol", b"resumed": b"by carol",
    }  # fmt: skip


async def test_a_redis_without_its_keys_resumes_no_agent(drains: Drains, redis: Redis) -> None:
    await redis.execute_command("FLUSHALL")
    await drains.refresh()
    await drains.write_again(redis)
    assert await redis.hgetall(keys.DRAINING) == {b"drained": b"by alice"}


async def test_a_value_of_another_type_does_not_hold_up_the_life(drains: Drains, redis: Redis) -> None:
    await redis.execute_command("DEL", keys.DRAINING)
    await redis.set(keys.DRAINING, "no hash")
    await drains.write_again(redis)
    assert await redis.get(keys.DRAINING) == b"no hash"
