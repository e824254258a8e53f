"""A client that knows several addresses uses the next one: while the first refuses, is silent, or has gone."""

from __future__ import annotations

import asyncio
import random
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from authority import Authority
from dns_server import name_server
from patience import PATIENCE_SECONDS
from tachikoma import AsyncClient, Profile, Unavailable
from tachikoma.client import connection as connection_module
from tachikoma.client.retry import BACKOFF_SECONDS
from tachikoma.exec.v1 import remote_execution_pb2 as pb
from tachikoma.exec.v1.remote_execution_pb2_grpc import RemoteExecutionServicer, add_RemoteExecutionServicer_to_server
from tachikoma.identity.files import BUNDLE_FILE, CERTIFICATE_FILE, KEY_FILE

NAME = "orchestrator.example.org"
#: Two hosts that share a port, as the addresses of one DNS name do.
FIRST, SECOND = "127.0.0.1", "127.0.0.2"
#: A caller knows within this time that nothing accepts connections.
TOLD_SECONDS = 3.0


class Orchestrator(RemoteExecutionServicer):
    """Answers one method, and names itself."""

    def __init__(self, name: str) -> None:
        self._name = name

    async def ListAgents(  # noqa: N802 (gRPC's)
        self, request: pb.ListAgentsRequest, context: Any
    ) -> pb.ListAgentsResponse:
        return pb.ListAgentsResponse(agents=[pb.Agent(id=self._name.replace(".", "-"))])


class World:
    """Two hosts, and the orchestrators on them."""

    def __init__(self, authority: Authority, folder: Path) -> None:
        self._folder = folder
        authority.write(folder / "server", "spiffe://tachikoma.local/service/orchestrator", dns=[NAME])
        authority.write(folder / "user", "spiffe://tachikoma.local/user/alice")
        self._servers: list[grpc.aio.Server] = []
        with free_on_both() as port:
            self.port = port

    async def start(self, host: str) -> grpc.aio.Server:
        identity = self._folder / "server"
        key, certificate = (identity / KEY_FILE).read_bytes(), (identity / CERTIFICATE_FILE).read_bytes()
        bundle = (identity / BUNDLE_FILE).read_bytes()
        server = grpc.aio.server()
        add_RemoteExecutionServicer_to_server(Orchestrator(host), server)
        credentials = grpc.ssl_server_credentials([(key, certificate)], bundle, require_client_auth=True)
        assert server.add_secure_port(f"{host}:{self.port}", credentials) == self.port
        await server.start()
        self._servers.append(server)
        return server

    async def stop(self) -> None:
        for server in self._servers:
            await server.stop(None)

    def client(self, address: str) -> AsyncClient:
        return AsyncClient(Profile(address=address, server_name=NAME, identity=self._folder / "user"))


@contextmanager
def free_on_both() -> Iterator[int]:
    """A port that is free on both hosts, and that no system chooses for others (ip_local_port_range)."""
    while True:
        with ExitStack() as stack:
            port = random.randrange(20_000, 32_000)
            try:
                for host in (FIRST, SECOND):
                    stack.enter_context(socket.create_server((host, port)))
            except OSError:
                continue
            yield port
            return


@pytest.fixture
async def world(authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    for variable in ("grpc_proxy", "https_proxy", "http_proxy"):
        monkeypatch.delenv(variable, raising=False)
    made = World(authority, tmp_path)
    yield made
    await made.stop()


@pytest.fixture(params=["list", "list-of-names", "dns-name"])
def address(request: pytest.FixtureRequest, world: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Both hosts, in each way in which a client may know them."""
    port = world.port
    if request.param == "list":
        yield f"{FIRST}:{port},{SECOND}:{port}"
    elif request.param == "list-of-names":
        hosts = {"a.example.org": FIRST, "b.example.org": SECOND}

        def look_up(host: str, port: int, **_: object) -> list[Any]:
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (hosts[host], port))]

        with monkeypatch.context() as patch:
            patch.setattr("tachikoma.config.channels.socket.getaddrinfo", look_up)
            yield f"a.example.org:{port},b.example.org:{port}"
    else:
        with name_server(FIRST, SECOND) as server:
            yield f"dns://{server}/orchestrators.example.org:{port}"


async def answered_by(client: AsyncClient) -> str:
    """The host of the orchestrator that answers the next call."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            try:
                [agent] = await client.agents()
            except Unavailable:
                # A machine that is busy for more than 10 s.
                continue
            return agent.id.replace("-", ".")


async def test_the_next_address_is_used_while_nothing_listens_at_the_first(world: World, address: str) -> None:
    await world.start(SECOND)
    async with world.client(address) as client:
        assert await answered_by(client) == SECOND


@pytest.mark.slow
async def test_the_next_address_is_used_while_the_first_accepts_and_says_nothing(world: World, address: str) -> None:
    """As a process that was stopped: the kernel still accepts connections for it."""
    await world.start(SECOND)
    with socket.create_server((FIRST, world.port)):
        async with world.client(address) as client:
            assert await answered_by(client) == SECOND


async def test_the_next_address_is_used_when_the_first_has_gone_and_the_reverse(world: World, address: str) -> None:
    first = await world.start(FIRST)
    async with world.client(address) as client:
        assert await answered_by(client) == FIRST
        second = await world.start(SECOND)
        await first.stop(None)
        assert await answered_by(client) == SECOND
        await world.start(FIRST)
        await second.stop(None)
        assert await answered_by(client) == FIRST


async def test_refusals_of_all_are_told_within_three_seconds(world: World, caplog: pytest.LogCaptureFixture) -> None:
    address = f"{FIRST}:{world.port},{SECOND}:{world.port}"
    cause = "nothing accepts connections there; is the orchestrator running?"
    taken = float("inf")
    async with asyncio.timeout(PATIENCE_SECONDS):
        # A machine that is busy gets another attempt.
        while taken > TOLD_SECONDS:
            caplog.clear()
            begun = time.monotonic()
            async with world.client(address) as client:
                with pytest.raises(Unavailable) as caught:
                    await client.agents()
            taken = time.monotonic() - begun
            assert str(caught.value) == f"cannot reach the orchestrator at {address}: {cause}"
            # A test before may have chosen a form for lines of the log.
            [told] = caplog.messages
            assert f"waiting for the orchestrator at {address}: {cause}" in told


def test_the_waits_before_the_third_address_are_less_than_a_second_together() -> None:
    options = dict(connection_module._CHANNEL_OPTIONS)
    delay = options["grpc.happy_eyeballs_connection_attempt_delay_ms"]
    assert BACKOFF_SECONDS[0] * 1000 + options["grpc.initial_reconnect_backoff_ms"] + 2 * delay <= 1000
