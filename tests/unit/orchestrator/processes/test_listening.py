"""Addresses on which the gRPC servers listen, and those that agents are given."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from pathlib import Path

import grpc
import grpc.aio
import pytest

from authority import Authority
from patience import PATIENCE_SECONDS
from tachikoma.errors import ConfigurationError
from tachikoma.identity.files import CERTIFICATE_FILE, KEY_FILE
from tachikoma.identity.svid import Svid
from tachikoma.vocabulary.addresses import HostPort, HostPorts
from tachikoma_orchestrator.metrics import HANDSHAKES
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
    configured = HostPorts.parse("orch.example:1,other.example:1")
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
                await call(b"", timeout=PATIENCE_SECONDS)
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


# --- handshakes -------------------------------------------------------------------------------------------------------


def begun() -> float:
    """Return how many handshakes were counted."""
    return next(sample.value for sample in HANDSHAKES.collect()[0].samples if sample.name.endswith("_total"))


async def plain_text(address: HostPort, _: Path) -> None:
    _, writer = await asyncio.open_connection(address.host, address.port)
    writer.write(b"GET / HTTP/1.0\r\n\r\n")
    await writer.drain()
    writer.close()


async def nothing_sent(address: HostPort, _: Path) -> None:
    _, writer = await asyncio.open_connection(address.host, address.port)
    writer.close()


async def tls(address: HostPort, identity: Path | None) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    if identity is not None:
        context.load_cert_chain(identity / CERTIFICATE_FILE, identity / KEY_FILE)
    with suppress(OSError):
        reader, writer = await asyncio.open_connection(address.host, address.port, ssl=context)
        # With TLS 1.3 the client learns of its refusal with the first bytes that it reads.
        await reader.read(1)
        writer.close()


async def no_certificate(address: HostPort, _: Path) -> None:
    await tls(address, None)


@pytest.mark.parametrize("connect", [plain_text, nothing_sent, no_certificate, tls])
async def test_a_handshake_that_fails_is_counted(
    authority: Authority, tmp_path: Path, connect: Callable[[HostPort, Path], Awaitable[None]]
) -> None:
    Authority().write(tmp_path, "spiffe://tachikoma.local/user/of-another-authority")
    server = grpc.aio.server()
    address = listen(server, HostPort("127.0.0.1", 0), server_credentials(Source(authority.svid(ORCHESTRATOR))))
    await server.start()
    try:
        before = begun()
        await connect(address, tmp_path)
        async with asyncio.timeout(PATIENCE_SECONDS):
            while begun() == before:  # noqa: ASYNC110 (gRPC counts in a thread of its own)
                await asyncio.sleep(0.01)
        assert begun() == before + 1
    finally:
        await server.stop(None)


async def test_handshakes_of_hosts_that_join_are_not_counted_among_them(authority: Authority, tmp_path: Path) -> None:
    server = grpc.aio.server()
    credentials = server_credentials(Source(authority.svid(ORCHESTRATOR)), clients=False)
    address = listen(server, HostPort("127.0.0.1", 0), credentials)
    await server.start()
    try:
        before = begun()
        async with grpc.aio.secure_channel(str(address), grpc.ssl_channel_credentials(authority.pem)) as channel:
            with pytest.raises(grpc.aio.AioRpcError):
                await channel.unary_unary("/none/None")(b"", timeout=PATIENCE_SECONDS)
        assert begun() == before
    finally:
        await server.stop(None)
