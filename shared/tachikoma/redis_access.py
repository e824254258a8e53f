"""How both components reach Redis. Not imported by the client, which does not need it."""

from __future__ import annotations

from typing import Any, TypeAlias
from urllib.parse import parse_qs, urlsplit

from redis import asyncio as redis_asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from tachikoma.errors import ConfigurationError

__all__ = ["OPERATION_SECONDS", "Redis", "celery_url", "check_url", "connect", "wrong_type"]

#: An asyncio client made by `connect`. redis-py types its answers for every way of decoding them; here they are bytes.
Redis: TypeAlias = Any

#: Longest time one command may take before the connection counts as broken.
OPERATION_SECONDS = 10.0
#: Longest time to wait for a connection.
CONNECT_SECONDS = 5.0


def check_url(url: str) -> str:
    """Return the URL if it is one of ours.

    Raises:
        ConfigurationError: it is not redis://, rediss:// or unix://.
    """
    scheme = urlsplit(url).scheme
    if scheme not in ("redis", "rediss", "unix"):
        raise ConfigurationError(
            f"{scheme or url!r} is no way to reach Redis; use redis://, rediss:// or unix:///path/to/socket"
        )
    return url


def celery_url(url: str) -> str:
    """The same server as Celery and kombu write it: unix sockets are `redis+socket://` there."""
    parts = urlsplit(check_url(url))
    if parts.scheme != "unix":
        return url
    database = parse_qs(parts.query).get("db", ["0"])[0]
    return f"redis+socket://{parts.path}?virtual_host={database}"


def connect(url: str, *, name: str, max_connections: int = 64) -> Redis:
    """A client whose commands are repeated once on a broken connection.

    So a restart of Redis costs no request. Every command sent through it must bear repetition: the Lua scripts
    compare before they set, claims are compared by token, and appends carry their own number.
    """
    pool = redis_asyncio.BlockingConnectionPool.from_url(
        check_url(url),
        client_name=name,
        max_connections=max_connections,
        timeout=OPERATION_SECONDS,
        socket_timeout=OPERATION_SECONDS,
        socket_connect_timeout=CONNECT_SECONDS,
        health_check_interval=0,
        retry=Retry(NoBackoff(), 1, supported_errors=(RedisConnectionError, RedisTimeoutError)),
        protocol=2,
    )
    return redis_asyncio.Redis.from_pool(pool)


def wrong_type(error: Exception) -> bool:
    """Whether a name holds another kind of value than belongs there; nobody but who means harm puts one there."""
    return isinstance(error, ResponseError) and "WRONGTYPE" in str(error)
