"""Redis with replicas, whose primary the Sentinels name: every connection follows it.

Each process asks all Sentinels twice a second, over connections that stay open. The answer with the highest epoch
counts, so a Sentinel that is separated from the others misleads no process that reaches another one. When the primary
changes, every connection to another server is closed at once: a hung or separated server would answer late or never,
and what it accepts is lost. `docs/decisions/0046-sentinel.md` has the reasons.
"""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from contextlib import suppress
from typing import Any, TypeAlias
from urllib.parse import urlsplit
from weakref import WeakSet

import redis.connection
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ReadOnlyError, RedisError, ResponseError

from tachikoma.config.logs import get_logger
from tachikoma.errors import ConfigurationError
from tachikoma.redis.connections import PlainConnection, UnixConnection
from tachikoma.redis.tls import BrokerTlsConnection, Tls, TlsConnection

__all__ = [
    "SCHEMES",
    "Address",
    "Primary",
    "broker_connection_class",
    "connection_class",
    "sentinels_in",
]

log = get_logger(__name__)

#: Host and port of a server.
Address: TypeAlias = tuple[str, int]
#: Schemes of a URL that names Sentinels, and the scheme of the servers that those watch.
SCHEMES = {"redis+sentinel": "redis", "rediss+sentinel": "rediss"}
#: Port of a Sentinel whose URL names none.
SENTINEL_PORT = 26379
#: Pause between two questions to a Sentinel, and the longest time that it may take to answer, in seconds.
ASK_SECONDS, ANSWER_SECONDS = 0.5, 2.0
#: Longest wait for the first answer of any Sentinel, in seconds.
FIRST_ANSWER_SECONDS = 5.0
#: Time for which a connection of Celery tries to reach the primary, in seconds. Its own delays grow to 30 s.
BROKER_SECONDS = 10.0
#: Pause between two looks at a primary that is not known, or not reachable, yet.
POLL_SECONDS = 0.1


def sentinels_in(url: str) -> tuple[str, tuple[Address, ...]]:
    """Return the name of the primary and the addresses of the Sentinels in a URL.

    Raises:
        ConfigurationError: the URL is not `redis+sentinel://host:port,host:port/NAME`.
    """
    parts = urlsplit(url)
    name = parts.path.strip("/")
    found = []
    for place in parts.netloc.rpartition("@")[2].split(","):
        try:
            one = urlsplit(f"//{place}")
            found.append((one.hostname or "", one.port or SENTINEL_PORT))
        except ValueError:
            found.append(("", 0))
    if not name or "/" in name or not all(host for host, _ in found):
        raise ConfigurationError(
            "the URL of Redis must name the Sentinels and the primary as they do: "
            "rediss+sentinel://host:26379,host:26379/NAME"
        )
    return name, tuple(found)


class Primary:
    """The current primary of one set of servers. Its methods may be called from any thread."""

    def __init__(self, name: str, sentinels: tuple[Address, ...], options: dict[str, Any]) -> None:
        """Prepare it; the first connection starts the questions.

        Args:
            name: name of the primary, as the Sentinels know it.
            sentinels: addresses of the Sentinels.
            options: options of the connections to them: credentials, and certificates under `tls`.
        """
        #: Its name, as the Sentinels know it.
        self.name = name
        self._sentinels = sentinels
        self._options = options
        self._lock = threading.Lock()
        self._started = False
        self._closed = threading.Event()
        self._epoch = -1
        self._address: Address | None = None
        self._connections: WeakSet[_Following] = WeakSet()

    # --- for connections ----------------------------------------------------------------------------------------------

    @property
    def address(self) -> Address | None:
        """Address of the primary; None before the first answer."""
        with self._lock:
            if not self._started:
                self._started = True
                for sentinel in self._sentinels:
                    name = f"sentinel-{sentinel[0]}"
                    threading.Thread(target=self._follow, args=(sentinel,), name=name, daemon=True).start()
            return self._address

    def known(self) -> Address:
        """Wait for the address of the primary. Raises ConnectionError of Redis if no Sentinel answers."""
        until = time.monotonic() + FIRST_ANSWER_SECONDS
        while (address := self.address) is None:
            if time.monotonic() >= until:
                raise self._unknown()
            time.sleep(POLL_SECONDS)
        return address

    async def known_soon(self) -> Address:
        """Do the same as `known`, without blocking the event loop."""
        until = time.monotonic() + FIRST_ANSWER_SECONDS
        while (address := self.address) is None:
            if time.monotonic() >= until:
                raise self._unknown()
            await asyncio.sleep(POLL_SECONDS)
        return address

    def connected(self, connection: _Following, address: Address) -> None:
        """Close a connection when the primary changes. Raises ConnectionError of Redis if it has changed already."""
        with self._lock:
            if address == self._address:
                self._connections.add(connection)
                return
        connection.abandon()
        raise RedisConnectionError(f"the primary of {self.name} changed while a connection was made")

    def close(self) -> None:
        """End the questions."""
        self._closed.set()

    def servers(self) -> list[Address]:
        """Return the addresses of all servers, the primary first. Raises redis errors if no Sentinel answers."""
        error: Exception = self._unknown()
        for sentinel in self._sentinels:
            try:
                connection = self._connect(sentinel)
                try:
                    connection.send_command("SENTINEL", "REPLICAS", self.name)
                    replicas = [_fields(reply) for reply in connection.read_response()]
                finally:
                    connection.disconnect()
            except (RedisError, OSError) as failed:
                error = failed
                continue
            primary = self.known()
            others = ((fields["ip"], int(fields["port"])) for fields in replicas)
            return [primary, *(address for address in others if address != primary)]
        raise error

    def ask_each(self, *commands: tuple[str, ...]) -> dict[Address, list[Any] | Exception]:
        """Send commands to each Sentinel.

        Returns:
            The reply to each command, which may be an error of Redis; of a Sentinel that does not answer, the error.
        """
        found: dict[Address, list[Any] | Exception] = {}
        for sentinel in self._sentinels:
            try:
                connection = self._connect(sentinel)
                try:
                    found[sentinel] = [_reply(connection, command) for command in commands]
                finally:
                    connection.disconnect()
            except (RedisError, OSError) as error:
                found[sentinel] = error
        return found

    # --- one thread for each Sentinel ---------------------------------------------------------------------------------

    def _follow(self, sentinel: Address) -> None:
        """Ask one Sentinel repeatedly."""
        silent = False
        while not self._closed.is_set():
            try:
                connection = self._connect(sentinel)
                try:
                    while not self._closed.is_set():
                        self._ask(connection)
                        silent = False
                        self._closed.wait(ASK_SECONDS)
                finally:
                    connection.disconnect()
            except (RedisError, OSError, ValueError, KeyError, TypeError) as error:
                if not silent:
                    log.warning("sentinel.silent", sentinel=f"{sentinel[0]}:{sentinel[1]}", error=str(error)[:300])
                silent = True
            self._closed.wait(ASK_SECONDS)

    def _connect(self, sentinel: Address) -> Any:
        """Return a connection to a Sentinel. redis-py types none of its methods."""
        tls: Tls | None = self._options.get("tls")
        kind: Any = redis.connection.Connection if tls is None else BrokerTlsConnection
        connection = kind(
            host=sentinel[0], port=sentinel[1], socket_timeout=ANSWER_SECONDS, socket_connect_timeout=ANSWER_SECONDS,
            protocol=2, decode_responses=True, **self._options,
        )  # fmt: skip
        connection.connect()
        return connection

    def _ask(self, connection: Any) -> None:
        """Ask for the epoch first: an address that is newer than its epoch does no harm, the reverse does."""
        connection.send_command("SENTINEL", "MASTER", self.name)
        epoch = int(_fields(connection.read_response())["config-epoch"])
        connection.send_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.name)
        host, port = connection.read_response()
        self.learn(epoch, (str(host), int(port)))

    def learn(self, epoch: int, address: Address) -> None:
        """Use the answer of a Sentinel, unless a newer one is known, and close connections to other servers."""
        with self._lock:
            if epoch < self._epoch or (epoch == self._epoch and address == self._address):
                return
            changed = self._address not in (None, address)
            self._epoch, self._address = epoch, address
            wrong = [connection for connection in self._connections if connection.peer != address]
            for connection in wrong:
                self._connections.discard(connection)
        if changed:
            log.warning("redis.primary", address=f"{address[0]}:{address[1]}", closed=len(wrong))
        for connection in wrong:
            connection.abandon()

    def _unknown(self) -> RedisConnectionError:
        places = ", ".join(f"{host}:{port}" for host, port in self._sentinels)
        return RedisConnectionError(f"no Sentinel has named the primary of {self.name}; asked {places}")


def _reply(connection: Any, command: tuple[str, ...]) -> Any:
    """Return the reply to a command, which may be an error."""
    connection.send_command(*command)
    try:
        return connection.read_response()
    except ResponseError as error:
        return error


def _fields(reply: list[str]) -> dict[str, str]:
    """Return the fields of a server in a Sentinel's reply, which is a flat list."""
    return dict(zip(reply[::2], reply[1::2], strict=True))


class _Following:
    """A connection that goes to the primary."""

    #: Address of its server; None before it is connected.
    peer: Address | None = None

    def abandon(self) -> None:
        """End both directions of the connection at once. Its owner reads an end, and connects again."""
        raise NotImplementedError


def _shut(open_socket: Any) -> None:
    """Shut a socket down from any thread."""
    if open_socket is None:
        return
    with suppress(OSError, ValueError):
        # Of the plain class: the method of an SSLSocket first makes it a plain one, which a writer could then use.
        if isinstance(open_socket, socket.socket):
            socket.socket.shutdown(open_socket, socket.SHUT_RDWR)
        else:
            open_socket.shutdown(socket.SHUT_RDWR)


class _Asynchronous(_Following):
    """The part that both kinds of asyncio connections share."""

    primary: Primary
    host: str
    port: int
    _writer: asyncio.StreamWriter | None

    async def _connect(self) -> None:
        self.peer = address = await self.primary.known_soon()
        self.host, self.port = address
        await super()._connect()  # type: ignore[misc]
        self.primary.connected(self, address)

    async def read_response(self, *args: Any, **options: Any) -> Any:
        try:
            return await super().read_response(*args, **options)  # type: ignore[misc]
        except ReadOnlyError as error:
            # The server became a replica. Its primary takes the command.
            await self.disconnect(nowait=True)  # type: ignore[attr-defined]
            raise RedisConnectionError(f"{self.host}:{self.port} is no longer the primary") from error

    def abandon(self) -> None:
        writer = self._writer
        _shut(None if writer is None else writer.get_extra_info("socket"))


class FollowingConnection(_Asynchronous, PlainConnection):
    """A connection of asyncio clients to the primary."""

    def __init__(self, *, primary: Primary, **options: Any) -> None:
        super().__init__(**options)
        self.primary = primary


class FollowingTlsConnection(_Asynchronous, TlsConnection):
    """A TLS connection of asyncio clients to the primary."""

    def __init__(self, *, primary: Primary, **options: Any) -> None:
        super().__init__(**options)
        self.primary = primary


class _Blocking(_Following):
    """The part that both kinds of connections of kombu and beat share."""

    primary: Primary
    host: str
    port: int
    _sock: Any

    def _connect(self) -> Any:
        until = time.monotonic() + BROKER_SECONDS
        while True:
            self.peer = address = self.primary.known()
            self.host, self.port = address
            try:
                # Where `abandon` looks for it; redis-py stores it a moment later.
                self._sock = super()._connect()  # type: ignore[misc]
                self.primary.connected(self, address)
            except (OSError, RedisConnectionError):
                if time.monotonic() >= until:
                    raise
                time.sleep(POLL_SECONDS)
            else:
                return self._sock

    def abandon(self) -> None:
        _shut(self._sock)


class BrokerFollowingConnection(_Blocking, redis.connection.Connection):
    """A connection of kombu to the primary."""

    def __init__(self, *, primary: Primary, **options: Any) -> None:
        super().__init__(**options)  # type: ignore[no-untyped-call]
        self.primary = primary


class BrokerFollowingTlsConnection(_Blocking, BrokerTlsConnection):
    """A TLS connection of kombu to the primary."""

    def __init__(self, *, primary: Primary, **options: Any) -> None:
        super().__init__(**options)
        self.primary = primary


def connection_class(*, unix: bool, tls: bool, follows: bool) -> type[PlainConnection | TlsConnection | UnixConnection]:
    """Return the class of asyncio connections."""
    if follows:
        return FollowingTlsConnection if tls else FollowingConnection
    return UnixConnection if unix else TlsConnection if tls else PlainConnection


def broker_connection_class(*, tls: bool, follows: bool) -> type[redis.connection.Connection] | None:
    """Return the class of blocking connections; None for that of redis-py."""
    if follows:
        return BrokerFollowingTlsConnection if tls else BrokerFollowingConnection
    return BrokerTlsConnection if tls else None
