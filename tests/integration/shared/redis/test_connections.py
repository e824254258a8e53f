"""A cancellation reaches every sender to Redis, at whichever moment it comes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from redis import asyncio as redis_asyncio
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from patience import PATIENCE_SECONDS
from tachikoma.redis.commands import Redis
from tachikoma.redis.connections import PlainConnection, Sending, UnixConnection

#: Steps of the event loop in which a command is sent, and some more.
STEPS = range(8)


@pytest.fixture
async def connection(redis: Redis) -> AsyncIterator[Any]:
    """A connection to the Redis of the test, as the clients make it."""
    pool: Any = redis.connection_pool  # type: ignore[attr-defined]
    made = pool.make_connection()
    await made.connect()
    yield made
    await made.disconnect()


def test_every_client_has_connections_that_keep_a_cancellation(redis: Redis) -> None:
    kind = redis.connection_pool.connection_class  # type: ignore[attr-defined]
    assert kind in (PlainConnection, UnixConnection)
    assert kind.send_packed_command is Sending.send_packed_command


@pytest.mark.parametrize("steps", STEPS)
async def test_no_cancellation_is_lost_while_a_command_is_sent(connection: Any, steps: int) -> None:
    async def send_and_wait() -> None:
        await connection.send_command("PING")
        await asyncio.Event().wait()

    task = asyncio.create_task(send_and_wait())
    for _ in range(steps):
        await asyncio.sleep(0)
    task.cancel()
    ended, _ = await asyncio.wait([task], timeout=PATIENCE_SECONDS)
    assert ended, "the cancellation was lost"
    assert task.cancelled()


async def test_a_server_that_takes_nothing_is_bounded_in_time() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        reader._transport.pause_reading()  # type: ignore[attr-defined]
        await done.wait()
        writer.close()

    done = asyncio.Event()
    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    connection = PlainConnection(port=port, socket_timeout=0.2, driver_info=None, protocol=2)
    connection.redis_connect_func = connected
    await connection.connect()
    with pytest.raises(RedisTimeoutError, match="did not take a command in time"):
        await connection.send_packed_command(b"x" * 50_000_000)
    assert not connection.is_connected
    done.set()
    server.close()
    await server.wait_closed()


async def test_a_connection_that_is_closed_meanwhile_says_so(connection: Any) -> None:
    await connection.send_command("PING")
    assert await connection.read_response() == b"PONG"
    checked = connection.check_health

    async def closes() -> None:
        await checked()
        await connection.disconnect(nowait=True)

    connection.check_health = closes
    with pytest.raises(RedisConnectionError, match="closed meanwhile"):
        await connection.send_command("PING")


async def connected(_: redis_asyncio.Connection) -> None:
    """Log in nowhere."""
