"""Messages that a submitter has taken, when that submitter ends."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tachikoma.redis import keys
from tachikoma.redis.commands import Redis
from tachikoma_orchestrator.processes.taken_messages import GONE_SECONDS, TakenMessages


def taken(queue: str, name: str) -> bytes:
    """A message as kombu keeps it."""
    message = {"body": name, "properties": {"delivery_info": {"redelivered": False}}}
    return json.dumps([message, "", queue]).encode()


async def keep(redis: Redis, run: str, **messages: bytes) -> None:
    unacked, index, _ = keys.unacked(run)
    for name, raw in messages.items():
        await redis.hset(unacked, name, raw)
        await redis.zadd(index, {name: 1.0})


async def queued(redis: Redis, queue: str) -> list[Any]:
    return [json.loads(raw) for raw in await redis.lrange(queue, 0, -1)]


async def age(redis: Redis, run: str, seconds: float) -> None:
    await redis.zadd(keys.SUBMITTERS, {run: (await redis.time())[0] - seconds})


async def test_messages_of_an_ended_run_go_back_to_their_queues_once(redis: Redis) -> None:
    await keep(redis, "old", a=taken(keys.SUBMIT, "a"), b=taken(keys.BATCH, "b"), c=taken(keys.SUBMIT, "c"))
    await age(redis, "old", GONE_SECONDS + 1)
    one, two = TakenMessages(redis), TakenMessages(redis)
    await one.look()
    await two.look()
    submitted, hints = await queued(redis, keys.SUBMIT), await queued(redis, keys.BATCH)
    assert sorted(item["body"] for item in submitted) == ["a", "c"]
    assert [item["body"] for item in hints] == ["b"]
    # Celery then checks whether the task has succeeded already.
    assert all(item["properties"]["delivery_info"]["redelivered"] is True for item in submitted + hints)
    assert await redis.exists(*keys.unacked("old")) == 0
    # Both runs are alive now.
    assert {run.decode() for run in await redis.zrange(keys.SUBMITTERS, 0, -1)} == {one.run_id, two.run_id}


async def test_messages_of_a_live_run_stay_with_it(redis: Redis) -> None:
    await keep(redis, "live", a=taken(keys.SUBMIT, "a"))
    await age(redis, "live", GONE_SECONDS - 5)
    await TakenMessages(redis).look()
    assert await queued(redis, keys.SUBMIT) == []
    assert await redis.hkeys(keys.unacked("live")[0]) == [b"a"]


async def test_an_unreadable_message_does_not_keep_the_others(redis: Redis) -> None:
    wrong = {"x": b"nonsense", "y": json.dumps([{}, "", keys.SUBMIT]).encode(), "z": taken("elsewhere", "z")}
    await keep(redis, "old", a=taken(keys.SUBMIT, "a"), **wrong)
    await age(redis, "old", GONE_SECONDS + 1)
    await TakenMessages(redis).look()
    assert [item["body"] for item in await queued(redis, keys.SUBMIT)] == ["a"]
    assert await redis.exists("elsewhere") == 0


async def test_a_run_puts_its_own_messages_back_when_it_stops(redis: Redis) -> None:
    run = TakenMessages(redis)
    await run.look()
    await keep(redis, run.run_id, a=taken(keys.SUBMIT, "a"))
    await run.put_back(run.run_id)
    await run.put_back(run.run_id)
    assert [item["body"] for item in await queued(redis, keys.SUBMIT)] == ["a"]
    assert await redis.exists(keys.SUBMITTERS) == 0


#: Commands that make a value of each type that these keys have not.
WRONG = [("SET", "x"), ("SADD", "x"), ("XADD", "*", "x", "x")]


@pytest.mark.parametrize("wrong", [*WRONG, ("RPUSH", "x"), ("ZADD", "1", "x")])
async def test_a_run_whose_messages_are_something_else_hides_no_other_run(redis: Redis, wrong: tuple[str, ...]) -> None:
    command, *values = wrong
    await redis.execute_command(command, keys.unacked("bad")[0], *values)
    await keep(redis, "old", a=taken(keys.SUBMIT, "a"))
    await age(redis, "bad", GONE_SECONDS + 2)
    await age(redis, "old", GONE_SECONDS + 1)
    await TakenMessages(redis).look()
    assert [item["body"] for item in await queued(redis, keys.SUBMIT)] == ["a"]
    assert await redis.exists(*keys.unacked("bad")) == 0


@pytest.mark.parametrize("wrong", [*WRONG, ("HSET", "x", "x"), ("ZADD", "1", "x")])
async def test_messages_stay_with_their_run_while_their_queue_is_something_else(
    redis: Redis, wrong: tuple[str, ...]
) -> None:
    command, *values = wrong
    await redis.execute_command(command, keys.BATCH, *values)
    await keep(redis, "old", a=taken(keys.SUBMIT, "a"), b=taken(keys.BATCH, "b"))
    await age(redis, "old", GONE_SECONDS + 1)
    run = TakenMessages(redis)
    for _ in range(2):
        await run.look()
        assert await queued(redis, keys.SUBMIT) == []
    await redis.delete(keys.BATCH)
    await run.look()
    assert [item["body"] for queue in (keys.SUBMIT, keys.BATCH) for item in await queued(redis, queue)] == ["a", "b"]


@pytest.mark.parametrize("wrong", [*WRONG, ("HSET", "x", "x"), ("RPUSH", "x")])
async def test_runs_report_again_after_their_index_became_something_else(redis: Redis, wrong: tuple[str, ...]) -> None:
    command, *values = wrong
    await redis.execute_command(command, keys.SUBMITTERS, *values)
    one, two = TakenMessages(redis), TakenMessages(redis)
    await one.look()
    await two.look()
    assert {run.decode() for run in await redis.zrange(keys.SUBMITTERS, 0, -1)} == {one.run_id, two.run_id}
