"""Addresses on which the gRPC servers listen, and those that agents are given."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import grpc
import grpc.aio
import pytest

from authority import Authority
from tachikoma.errors import ConfigurationError
from tachikoma.identity.svid import Svid
from tachikoma.vocabulary.addresses import HostPort
from tachikoma_orchestrator.processes.listening import listen, reachable, server_credentials

ORCHESTRATOR = "spiffe://tachikoma.local/service/orchestrator"


class Source:
    """An identity that a test replaces."""

    def __init__(self, svid: Svid) -> None:
        self.svid = svid

    def current(self) -> Svid:
        return self.svid

    def close(self) -> None:
        pass


@pytest.fixture
def taken() -> Iterator[HostPort]:
    """An address on which something listens already."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield HostPort("127.0.0.1", listener.getsockname()[1])


@pytest.mark.parametrize("listens", ["0.0.0.0:1", "[::]:1"])
def test_agents_are_not_sent_to_all_addresses(listens: str) -> None:
    with pytest.raises(ConfigurationError, match="set TACHIKOMA_X to an address"):
        reachable(None, HostPort.parse(listens), "TACHIKOMA_X")
    configured = HostPort("orch.example", 1)
    assert reachable(configured, HostPort.parse(listens), "TACHIKOMA_X") == configured


def test_agents_use_the_listening_address_by_default() -> None:
    assert reachable(None, HostPort("10.0.0.1", 1), "TACHIKOMA_X") == HostPort("10.0.0.1", 1)


async def test_a_free_port_is_reported(authority: Authority) -> None:
    server = grpc.aio.server()
    try:
        address = listen(server, HostPort("127.0.0.1", 0), server_credentials(Source(authority.svid(ORCHESTRATOR))))
        assert address.host == "127.0.0.1"
        assert address.port > 0
    finally:
        await server.stop(None)


async def test_a_taken_port_is_a_configuration_error(authority: Authority, taken: HostPort) -> None:
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    try:
        with pytest.raises(ConfigurationError, match=f"cannot listen on {taken}: is the port taken"):
            listen(server, taken, server_credentials(Source(authority.svid(ORCHESTRATOR))))
    finally:
        await server.stop(None)


async def test_each_handshake_shows_the_current_identity(authority: Authority) -> None:
    """A renewed certificate is shown without a restart; clients that trust only its issuer can then connect."""
    source = Source(authority.svid(ORCHESTRATOR, dns=("first.example",)))
    server = grpc.aio.server()
    address = listen(server, HostPort("127.0.0.1", 0), server_credentials(source, clients=False))
    await server.start()

    async def connects(name: str) -> bool:
        credentials = grpc.ssl_channel_credentials(authority.pem)
        options = [("grpc.ssl_target_name_override", name)]
        async with grpc.aio.secure_channel(str(address), credentials, options) as channel:
            call = channel.unary_unary("/none/None")
            try:
                await call(b"", timeout=20)
            except grpc.aio.AioRpcError as error:
                # An unknown method is answered after the handshake; a wrong certificate ends it.
                return error.code() is grpc.StatusCode.UNIMPLEMENTED
            return False

    try:
        assert await connects("first.example")
        assert not await connects("second.example")
        source.svid = authority.svid(ORCHESTRATOR, dns=("second.example",))
        assert await connects("second.example")
    finally:
        await server.stop(None)
