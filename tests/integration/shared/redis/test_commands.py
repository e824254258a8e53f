"""The declared types of Redis replies, compared with the replies of a real server."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, get_overloads, get_type_hints

import pytest
from pydantic import TypeAdapter
from redis.asyncio.client import Pipeline as ClientPipeline
from redis.asyncio.lock import Lock as ClientLock
from redis.exceptions import LockError, ResponseError, WatchError

from patience import PATIENCE_SECONDS
from tachikoma.redis import commands
from tachikoma.redis.commands import Pipeline, Redis

#: Commands with their arguments, in an order in which each finds what it needs. The last item names an overload.
CALLS: list[tuple[str, tuple[object, ...], dict[str, Any], int]] = [
    ("set", ("text", b"x"), {"ex": 60}, 0),
    ("set", ("text", "y"), {"ex": 60, "nx": True}, 0),
    ("set", ("text", 1), {"ex": 60, "nx": True, "get": True}, 1),
    ("set", ("other", 1.5), {"nx": True, "get": True}, 1),
    ("get", ("text",), {}, 0),
    ("get", ("missing",), {}, 0),
    ("getex", ("text",), {"ex": 60}, 0),
    ("expire", ("text", 60), {}, 0),
    ("exists", ("text", "missing"), {}, 0),
    ("delete", ("text", "missing"), {}, 0),
    ("hset", ("hash", "field", "value"), {}, 0),
    ("hget", ("hash", "field"), {}, 0),
    ("hget", ("hash", "missing"), {}, 0),
    ("hgetall", ("hash",), {}, 0),
    ("hkeys", ("hash",), {}, 0),
    ("hmget", ("hash", ["field", "missing"]), {}, 0),
    ("hmget", ("hash", "field", "missing"), {}, 0),
    ("hvals", ("hash",), {}, 0),
    ("srem", ("missing", "a"), {}, 0),
    ("zadd", ("sorted", {"a": 1, "b": 2.5}), {}, 0),
    ("zadd", ("sorted", {"a": 1}), {"nx": True}, 0),
    ("zcard", ("sorted",), {}, 0),
    ("zrange", ("sorted", 0, -1), {}, 0),
    ("zrange", ("sorted", 0, 9), {"byscore": True}, 0),
    ("zrevrangebyscore", ("sorted", "+inf", "-inf"), {"start": 0, "num": 1}, 0),
    ("zrevrangebyscore", ("sorted", "+inf", "-inf"), {"withscores": True}, 1),
    ("zrem", ("sorted", "a"), {}, 0),
    ("xadd", ("stream", {"field": b"value"}), {}, 0),
    ("execute_command", ("XADD", "stream", "*", "field", "value"), {}, 0),
    ("xrange", ("stream",), {"count": 10}, 0),
    ("xrange", ("missing",), {}, 0),
    ("xrevrange", ("stream",), {"count": 1}, 0),
    ("xread", ({"stream": "0-0"},), {"count": 10, "block": 10}, 0),
    ("xread", ({"stream": "$"},), {"block": 1}, 0),
    ("publish", ("channel", "message"), {}, 0),
    ("time", (), {}, 0),
    ("info", (), {}, 0),
    ("config_get", ("maxmemory", "appendonly"), {}, 0),
    ("acl_cat", (), {}, 0),
    ("acl_cat", ("read",), {}, 0),
    ("acl_list", (), {}, 0),
]

#: What adds commands to a pipeline, with the type of each reply.
PIPELINED: list[tuple[str, tuple[object, ...], dict[str, Any], object]] = [
    ("set", ("text", "x"), {"ex": 60}, True),
    ("set", ("text", "y"), {"nx": True}, None),
    ("get", ("text",), {}, b"x"),
    ("mget", ("text", "missing"), {}, [b"x", None]),
    ("exists", ("text",), {}, 1),
    ("expire", ("text", 60), {}, True),
    ("hexists", ("hash", "field"), {}, False),
    ("hget", ("hash", "field"), {}, None),
    ("hgetall", ("hash",), {}, {}),
    ("hmget", ("hash", ["field"]), {}, [None]),
    ("llen", ("list",), {}, 0),
    ("zcard", ("sorted",), {}, 0),
    ("zremrangebyscore", ("sorted", "-inf", 7), {}, 0),
    ("xadd", ("stream", {"field": b"value"}), {"id": "1-0"}, b"1-0"),
    ("xdel", ("stream", "1-0"), {}, 1),
    ("xtrim", ("stream",), {"maxlen": 5}, 0),
    ("xtrim", ("stream",), {"minid": "5-0", "approximate": True}, 0),
    ("publish", ("channel", b"message"), {}, 0),
    ("script_load", ("return 1",), {}, "e0e1f9fabfc9d4800c877a703b823ac0578ff8db"),
    ("execute_command", ("STRLEN", "text"), {}, 1),
]


def commands_of(protocol: type) -> set[str]:
    return {name for name, value in vars(protocol).items() if callable(value) and not name.startswith("_")}


def declarations(name: str) -> Sequence[Callable[..., object]]:
    """The overloads of a command, or the command if it has none."""

    def overloaded() -> None: ...

    # Overloads without an implementation are found by module and qualified name only.
    overloaded.__module__, overloaded.__qualname__ = Redis.__module__, f"{Redis.__qualname__}.{name}"
    return get_overloads(overloaded) or [getattr(Redis, name)]


async def test_each_reply_has_the_type_that_is_declared(redis: Redis) -> None:
    for name, arguments, options, overload in CALLS:
        reply = await getattr(redis, name)(*arguments, **options)
        if name == "xread":
            # redis-py returns each pair as a list, for which there is no exact type.
            reply = [tuple(pair) for pair in reply]
        expected = get_type_hints(declarations(name)[overload], vars(commands))["return"]
        try:
            TypeAdapter(expected).validate_python(reply, strict=True)
        except ValueError as error:
            pytest.fail(f"{name}{arguments}: {reply!r} is not {expected}: {error}")


def test_each_command_is_compared() -> None:
    otherwise = {"aclose", "lock", "pipeline", "pubsub", "scan_iter"}
    assert commands_of(Redis) == {name for name, *_ in CALLS} | otherwise
    assert commands_of(Pipeline) == {name for name, *_ in PIPELINED} | {"execute", "multi", "watch"}


@pytest.mark.parametrize("changed", [False, True])
async def test_a_transaction_that_watches_a_key_is_made_only_if_it_did_not_change(redis: Redis, changed: bool) -> None:
    await redis.set("watched", "x")
    async with redis.pipeline(transaction=True) as pipe:
        assert await pipe.watch("watched") is True
        if changed:
            await redis.set("watched", "y")
        pipe.multi()
        pipe.set("watched", "z")
        if changed:
            with pytest.raises(WatchError):
                await pipe.execute()
        else:
            assert await pipe.execute() == [True]
    assert await redis.get("watched") == (b"y" if changed else b"z")


async def test_a_pipeline_returns_its_replies_in_order(redis: Redis) -> None:
    async with redis.pipeline(transaction=False) as pipe:
        assert isinstance(pipe, ClientPipeline)
        for name, arguments, options, _ in PIPELINED:
            assert getattr(pipe, name)(*arguments, **options) is pipe
        replies = await pipe.execute()
    assert replies == [reply for *_, reply in PIPELINED]


async def test_an_error_is_a_reply_of_a_pipeline_or_raised(redis: Redis) -> None:
    await redis.set("text", "x")
    async with redis.pipeline(transaction=False) as pipe:
        pipe.llen("text")
        (reply,) = await pipe.execute(raise_on_error=False)
        assert isinstance(reply, ResponseError)
        pipe.llen("text")
        with pytest.raises(ResponseError, match="WRONGTYPE"):
            await pipe.execute()


async def test_keys_are_scanned_as_bytes(redis: Redis) -> None:
    await redis.set("agent:1", "x")
    await redis.set("other", "x")
    assert [key async for key in redis.scan_iter(match="agent:*", count=10)] == [b"agent:1"]


async def test_a_lock_is_acquired_renewed_and_lost(redis: Redis) -> None:
    lock = redis.lock("lock", timeout=60)
    assert isinstance(lock, ClientLock)
    assert await lock.acquire(blocking=False) is True
    assert await redis.lock("lock", timeout=60).acquire(blocking=False) is False
    assert await lock.owned() is True
    assert await lock.reacquire() is True
    await redis.delete("lock")
    assert await lock.owned() is False
    with pytest.raises(LockError):
        await lock.reacquire()
    with pytest.raises(LockError):
        await lock.release()


async def test_a_subscription_receives_messages_as_bytes(redis: Redis, subscriptions: Redis) -> None:
    pubsub = subscriptions.pubsub()
    try:
        await pubsub.subscribe("channel")
        confirmed = await pubsub.get_message(timeout=PATIENCE_SECONDS)
        await redis.publish("channel", "payload")
        received = await pubsub.get_message(timeout=PATIENCE_SECONDS)
        await pubsub.ping()
        answered = await pubsub.get_message(timeout=PATIENCE_SECONDS)
    finally:
        await pubsub.aclose()
    assert [message and (message["type"], message["data"]) for message in (confirmed, received, answered)] == [
        ("subscribe", 1),
        ("message", b"payload"),
        ("pong", b""),
    ]


async def test_a_connection_speaks_for_itself(redis: Redis) -> None:
    connection = redis.connection_pool.make_connection()
    await connection.connect()
    try:
        await connection.send_command("SET", "text", b"x")
        assert await connection.read_response(timeout=PATIENCE_SECONDS) == b"OK"
        assert await connection.read_response(timeout=0.01, disconnect_on_error=False) is None
    finally:
        await connection.disconnect()
