"""The Redis commands that Tachikoma uses, as types: what `connect` returns.

redis-py types each answer for every way of decoding it, synchronous and not. Here replies are bytes (RESP2, without
decoding) and every command is awaited, so each has one type. `tests/integration/shared/redis/test_commands.py` runs
each command against a real server and compares its reply with the type that is declared here.

Sources: https://redis.io/docs/latest/commands/ and the methods of the same names in `redis.asyncio.Redis`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, Protocol, TypeAlias, TypedDict, overload

__all__ = ["Connection", "ConnectionPool", "Entry", "Key", "Lock", "Message", "Pipeline", "PubSub", "Redis", "Value"]

#: The name of a key, of a field of a hash, of a channel or of a member of a set.
Key: TypeAlias = str | bytes
#: An argument of a command.
Value: TypeAlias = str | bytes | int | float
#: An entry of a stream: its id, and its fields by name.
Entry: TypeAlias = tuple[bytes, dict[bytes, bytes]]


class Redis(Protocol):
    """An asyncio client of one Redis server.

    Every command raises `redis.exceptions.RedisError`, and `OSError` when the server cannot be reached.
    """

    connection_pool: ConnectionPool

    # Keys and strings.
    async def get(self, name: Key) -> bytes | None: ...

    @overload
    async def set(
        self, name: Key, value: Value, *, ex: int | None = None, nx: bool = False, get: Literal[False] = False
    ) -> bool | None: ...

    @overload
    async def set(
        self, name: Key, value: Value, *, ex: int | None = None, nx: bool = False, get: Literal[True]
    ) -> bytes | None: ...

    async def getex(self, name: Key, *, ex: int) -> bytes | None: ...

    async def delete(self, *names: Key) -> int: ...

    async def exists(self, *names: Key) -> int: ...

    async def expire(self, name: Key, time: int) -> bool: ...

    def scan_iter(self, match: Key | None = None, count: int | None = None) -> AsyncIterator[bytes]: ...

    # Hashes.
    async def hget(self, name: Key, key: Key) -> bytes | None: ...

    async def hgetall(self, name: Key) -> dict[bytes, bytes]: ...

    async def hkeys(self, name: Key) -> list[bytes]: ...

    async def hmget(self, name: Key, keys: Sequence[Key], *args: Key) -> list[bytes | None]: ...

    async def hset(self, name: Key, key: Key, value: Value) -> int: ...

    async def hvals(self, name: Key) -> list[bytes]: ...

    # Sets.
    async def srem(self, name: Key, *values: Value) -> int: ...

    # Sorted sets.
    async def zadd(self, name: Key, mapping: Mapping[str, float], nx: bool = False) -> int: ...

    async def zcard(self, name: Key) -> int: ...

    async def zrange(
        self,
        name: Key,
        start: Value,
        end: Value,
        *,
        byscore: bool = False,
        offset: int | None = None,
        num: int | None = None,
    ) -> list[bytes]: ...

    async def zrem(self, name: Key, *values: Key) -> int: ...

    @overload
    async def zrevrangebyscore(
        self,
        name: Key,
        max: Value,
        min: Value,
        start: int | None = None,
        num: int | None = None,
        withscores: Literal[False] = False,
    ) -> list[bytes]: ...

    @overload
    async def zrevrangebyscore(
        self,
        name: Key,
        max: Value,
        min: Value,
        start: int | None = None,
        num: int | None = None,
        *,
        withscores: Literal[True],
    ) -> list[tuple[bytes, float]]: ...

    # Streams.
    async def xadd(self, name: Key, fields: dict[Key, Value], id: Value = "*") -> bytes: ...

    async def xrange(self, name: Key, min: Value = "-", max: Value = "+", count: int | None = None) -> list[Entry]: ...

    async def xrevrange(
        self, name: Key, max: Value = "+", min: Value = "-", count: int | None = None
    ) -> list[Entry]: ...

    async def xread(
        self, streams: dict[Key, Value], count: int | None = None, block: int | None = None
    ) -> list[tuple[bytes, list[Entry]]]:
        """Read the entries after a position of each stream, as pairs of its name and its entries.

        `block` is the longest wait in milliseconds. The pairs are lists of two items in fact.
        """
        ...

    # Publish and subscribe.
    async def publish(self, channel: Key, message: Value) -> int: ...

    def pubsub(self) -> PubSub: ...

    # The server.
    async def time(self) -> tuple[int, int]:
        """Return the server's clock as seconds since 1970 and microseconds."""
        ...

    async def info(self, section: str | None = None) -> dict[str, Any]: ...

    async def config_get(self, pattern: Key = "*", *args: Key) -> dict[str, str]: ...

    async def acl_cat(self, category: str | None = None) -> list[str]: ...

    async def acl_list(self) -> list[str]: ...

    async def execute_command(self, *args: Value) -> Any:
        """Send any command; the type of the reply depends on it."""
        ...

    # Several commands in one round trip, locks, the end.
    def pipeline(self, transaction: bool = True) -> Pipeline: ...

    def lock(self, name: str, timeout: float | None = None) -> Lock: ...

    async def aclose(self) -> None: ...


class Pipeline(Protocol):
    """Commands that are sent together; each method adds one, `execute` sends them."""

    async def __aenter__(self) -> Pipeline: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    async def watch(self, *names: Key) -> bool:
        """Make `execute` raise `WatchError` if one of these keys changes before it."""
        ...

    def multi(self) -> None:
        """Begin the transaction after `watch`: the following commands are collected."""
        ...

    def get(self, name: Key) -> Pipeline: ...

    def set(
        self, name: Key, value: Value, *, ex: int | None = None, nx: bool = False, get: bool = False
    ) -> Pipeline: ...

    def mget(self, *names: Key) -> Pipeline: ...

    def exists(self, *names: Key) -> Pipeline: ...

    def expire(self, name: Key, time: int) -> Pipeline: ...

    def hexists(self, name: Key, key: Key) -> Pipeline: ...

    def hget(self, name: Key, key: Key) -> Pipeline: ...

    def hgetall(self, name: Key) -> Pipeline: ...

    def hmget(self, name: Key, keys: Sequence[Key]) -> Pipeline: ...

    def llen(self, name: Key) -> Pipeline: ...

    def zcard(self, name: Key) -> Pipeline: ...

    def zremrangebyscore(self, name: Key, min: Value, max: Value) -> Pipeline: ...

    def xadd(self, name: Key, fields: dict[Key, Value], id: Value = "*") -> Pipeline: ...

    def xdel(self, name: Key, *ids: Value) -> Pipeline: ...

    def xtrim(
        self, name: Key, maxlen: int | None = None, approximate: bool = True, minid: Value | None = None
    ) -> Pipeline: ...

    def publish(self, channel: Key, message: Value) -> Pipeline: ...

    def script_load(self, script: str) -> Pipeline: ...

    def execute_command(self, *args: Value) -> Pipeline: ...

    async def execute(self, raise_on_error: bool = True) -> list[Any]:
        """Send the commands and return their replies in order; with `raise_on_error=False` an error is a reply too."""
        ...


class Lock(Protocol):
    """A lock that expires unless its holder renews it; `redis.exceptions.LockError` when it was lost."""

    async def acquire(self, blocking: bool | None = None) -> bool: ...

    async def owned(self) -> bool: ...

    def reacquire(self) -> Awaitable[Literal[True]]:
        """Renew the lock for its whole timeout."""
        ...

    async def release(self) -> None: ...


class Message(TypedDict):
    """A message of a subscription, or the confirmation of one."""

    #: `subscribe`, `message`, `pong` and so on.
    type: str
    #: The payload of a message; the number of subscriptions in a confirmation.
    data: Any


class PubSub(Protocol):
    """A subscription on a connection of its own."""

    async def subscribe(self, *channels: Key) -> None: ...

    async def get_message(self, *, timeout: float) -> Message | None: ...

    def ping(self) -> Awaitable[bool]: ...

    async def aclose(self) -> None: ...


class ConnectionPool(Protocol):
    """The connections of a client."""

    def make_connection(self) -> Connection: ...


class Connection(Protocol):
    """One connection, for protocols that the client does not speak by itself."""

    async def connect(self) -> None: ...

    async def send_command(self, *args: Value) -> None: ...

    async def read_response(self, *, timeout: float | None = None, disconnect_on_error: bool = True) -> Any:
        """Read one reply; None if none came within `timeout` seconds."""
        ...

    async def disconnect(self) -> None: ...
