"""The primary that Sentinels name, and the connections that follow it."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator

import pytest
import redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from tachikoma.errors import ConfigurationError
from tachikoma.redis import sentinel as module
from tachikoma.redis.access import RedisAccess, RedisSettings, celery_url, connect
from tachikoma.redis.celery_broker import settings
from tachikoma.redis.sentinel import BrokerFollowingConnection, FollowingConnection, Primary, sentinels_in


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis+sentinel://a/tk", ("tk", (("a", 26379),))),
        ("rediss+sentinel://user:pass@a:1,b,[::1]:3/tk", ("tk", (("a", 1), ("b", 26379), ("::1", 3)))),
    ],
)
def test_a_url_names_sentinels_and_the_primary(url: str, expected: object) -> None:
    assert sentinels_in(url) == expected
    assert celery_url(url) == f"{url.split('+')[0]}://primary-of-tk/0"


@pytest.mark.parametrize("place", ["a", "a/", "/tk", "a,,b/tk", "a:x/tk", "a/tk/other", "a/tk?db=1", ""])
def test_another_url_is_refused(place: str) -> None:
    with pytest.raises(ConfigurationError, match="the URL of"):
        RedisAccess.of(RedisSettings(redis_url=f"redis+sentinel://{place}"), identity=None, user="orchestrator")


class Servers:
    """Answers as a Sentinel does, or as a server does, at ports of its own."""

    def __init__(self) -> None:
        self.answers: dict[int, Callable[[bytes], bytes]] = {}
        self._listening: list[socket.socket] = []
        self.connections: list[socket.socket] = []

    def listen(self, answer: Callable[[bytes], bytes]) -> int:
        listener = socket.create_server(("127.0.0.1", 0))
        self._listening.append(listener)
        threading.Thread(target=self._accept, args=(listener, answer), daemon=True).start()
        return int(listener.getsockname()[1])

    def _accept(self, listener: socket.socket, answer: Callable[[bytes], bytes]) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            self.connections.append(connection)
            threading.Thread(target=self._serve, args=(connection, answer), daemon=True).start()

    @staticmethod
    def _serve(connection: socket.socket, answer: Callable[[bytes], bytes]) -> None:
        try:
            while request := connection.recv(4096):
                connection.sendall(answer(request))
        except OSError:
            return

    def close(self) -> None:
        for open_socket in (*self._listening, *self.connections):
            open_socket.close()


@pytest.fixture
def servers() -> Iterator[Servers]:
    made = Servers()
    yield made
    made.close()


class Sentinel:
    """The answers of one Sentinel."""

    def __init__(self, epoch: int, port: int) -> None:
        self.epoch, self.port = epoch, port

    def __call__(self, request: bytes) -> bytes:
        if b"GET-MASTER-ADDR" in request:
            return self._list("127.0.0.1", str(self.port))
        if b"REPLICAS" in request:
            one = self._list("ip", "127.0.0.2", "port", "7")
            return b"*1\r\n" + one
        return self._list("name", "tk", "config-epoch", str(self.epoch))

    @staticmethod
    def _list(*words: str) -> bytes:
        return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word.encode()) for word in words)


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ASK_SECONDS", 0.02)
    monkeypatch.setattr(module, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(module, "FIRST_ANSWER_SECONDS", 30.0)


def made(*sentinels: int) -> Primary:
    return Primary("tk", tuple(("127.0.0.1", port) for port in sentinels), {"driver_info": None})


def until(condition: Callable[[], object]) -> None:
    deadline = threading.Event()
    for _ in range(3000):
        if condition():
            return
        deadline.wait(0.01)
    pytest.fail("did not come true")


def test_the_highest_epoch_of_any_sentinel_counts(servers: Servers) -> None:
    first, second = Sentinel(4, 1111), Sentinel(5, 2222)
    primary = made(servers.listen(first), servers.listen(second), 1)
    until(lambda: primary.address == ("127.0.0.1", 2222))
    first.epoch, first.port = 6, 3333
    until(lambda: primary.address == ("127.0.0.1", 3333))
    # The second one is separated from the others, and does not know of the sixth epoch.
    primary.learn(5, ("127.0.0.1", 2222))
    assert primary.address == ("127.0.0.1", 3333)
    assert primary.servers() == [("127.0.0.1", 3333), ("127.0.0.2", 7)]
    primary.close()


def test_a_blocking_connection_ends_at_once_when_the_primary_changes(servers: Servers) -> None:
    """Although its server, which hangs, never says a word."""
    hung, well = servers.listen(lambda _: b""), servers.listen(lambda _: b"+PONG\r\n")
    primary = made(servers.listen(Sentinel(1, hung)))
    pool = redis.ConnectionPool(
        connection_class=BrokerFollowingConnection, primary=primary, driver_info=None, protocol=2, socket_timeout=600
    )
    connection = pool.make_connection()
    connection.connect()
    connection.send_command("PING")
    failed: list[Exception] = []

    def read() -> None:
        try:
            connection.read_response()
        except RedisError as error:
            failed.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    primary.learn(2, ("127.0.0.1", well))
    reader.join(60)
    assert isinstance(failed[0], RedisConnectionError)
    assert redis.Redis(connection_pool=pool).ping()
    primary.close()


async def test_an_asyncio_connection_ends_at_once_too(servers: Servers) -> None:
    hung, well = servers.listen(lambda _: b""), servers.listen(lambda _: b"+OK\r\n")
    access = RedisAccess.of(
        RedisSettings(redis_url=f"redis+sentinel://127.0.0.1:{servers.listen(Sentinel(1, hung))}/tk"),
        identity=None, user="orchestrator",
    )  # fmt: skip
    assert access.primary is not None
    connection = FollowingConnection(primary=access.primary, driver_info=None, protocol=2, socket_timeout=600)
    await connection.connect()
    await connection.send_command("PING")
    access.primary.learn(2, ("127.0.0.1", well))
    with pytest.raises(RedisConnectionError):
        await connection.read_response()
    client = connect(access, name="test")
    assert await client.execute_command("GET", "x") == b"OK"
    await client.aclose()
    access.primary.close()


async def test_a_server_that_became_a_replica_is_left(servers: Servers) -> None:
    replica = servers.listen(lambda _: b"-READONLY You can't write against a read only replica.\r\n")
    primary = made(servers.listen(Sentinel(1, replica)))
    connection = FollowingConnection(primary=primary, driver_info=None, protocol=2)
    await connection.connect()
    await connection.send_command("SET", "a", "b")
    with pytest.raises(RedisConnectionError, match="is no longer the primary"):
        await connection.read_response()
    assert not connection.is_connected
    primary.close()


def test_a_connection_that_was_made_to_an_earlier_primary_is_not_used(servers: Servers) -> None:
    primary = made()
    primary.learn(1, ("127.0.0.1", 1))
    connection = BrokerFollowingConnection(primary=primary)
    with pytest.raises(RedisConnectionError, match="the primary of tk changed"):
        primary.connected(connection, ("127.0.0.1", 2))


def test_no_sentinel_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_ANSWER_SECONDS", 0.1)
    primary = made(1)
    with pytest.raises(RedisConnectionError, match=r"no Sentinel has named the primary of tk; asked 127\.0\.0\.1:1"):
        primary.known()
    with pytest.raises(RedisConnectionError):
        primary.servers()
    primary.close()


def test_operations_behind_sentinels_take_three_seconds_at_most() -> None:
    access = RedisAccess.of(RedisSettings(redis_url="redis+sentinel://a/tk"), identity=None, user="beat")
    values = settings(access, client_name="test")
    assert values["broker_transport_options"]["socket_timeout"] == 3
    assert values["broker_transport_options"]["connection_options"]["primary"] is access.primary
