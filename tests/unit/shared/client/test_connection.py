"""The client's connection follows its identity."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest

from authority import Authority
from tachikoma import AgentOffline, AsyncClient, NotFound, Profile, TachikomaError, Unauthenticated, Unavailable
from tachikoma.client import connection as connection_module
from tachikoma.client.connection import Connection
from tachikoma.client.diagnosis import Trouble
from tachikoma.client.rpc_errors import STATUS_DETAILS, error_to_details
from tachikoma.identity.files import BUNDLE_FILE, FEDERATED_FOLDER

ALICE, PARTNER = "spiffe://tachikoma.local/user/alice", "partner.example"


@pytest.fixture
def profile(authority: Authority, tmp_path: Path) -> Profile:
    authority.write(tmp_path, ALICE)
    # No server listens there; only the channel of a call matters here.
    return Profile(address="127.0.0.1:1", server_name="x", identity=tmp_path)


def channel_of(connection: Connection) -> grpc.aio.Channel:
    """The channel of the next call, with the identity as it is in its folder now."""
    connection._identity._checked = float("-inf")  # type: ignore[attr-defined]
    connection.stub()
    assert connection._channel is not None
    return connection._channel


@pytest.fixture
async def connection(profile: Profile) -> AsyncIterator[Connection]:
    connection = Connection(profile)
    yield connection
    await connection.close()


async def test_calls_go_over_one_channel_while_the_identity_stays(connection: Connection) -> None:
    assert channel_of(connection) is channel_of(connection)
    assert not connection._retired


async def test_a_new_identity_has_a_channel_of_its_own_and_the_old_one_is_closed_when_it_is_idle(
    connection: Connection, authority: Authority, tmp_path: Path
) -> None:
    old = channel_of(connection)
    authority.write(tmp_path, ALICE)
    assert channel_of(connection) is not old
    await asyncio.gather(*connection._retired)
    assert not connection._retired
    assert old.get_state() is grpc.ChannelConnectivity.SHUTDOWN


async def test_a_closed_connection_leaves_no_channel_behind(
    profile: Profile, authority: Authority, tmp_path: Path
) -> None:
    connection = Connection(profile)
    channels = []
    for _ in range(3):
        channels.append(channel_of(connection))
        authority.write(tmp_path, ALICE)
    await connection.close()
    assert all(channel.get_state() is grpc.ChannelConnectivity.SHUTDOWN for channel in channels)


@pytest.mark.slow
async def test_an_identity_that_was_not_renewed_is_reported_as_that(
    profile: Profile, authority: Authority, tmp_path: Path
) -> None:
    end = datetime.now(UTC) + timedelta(seconds=1)
    authority.write(tmp_path, ALICE, end=end)
    async with AsyncClient(profile) as client:
        while datetime.now(UTC) <= end:  # noqa: ASYNC110 (time has to pass)
            await asyncio.sleep(0.01)
        with pytest.raises(Unauthenticated, match=rf"{tmp_path} ended at .* and was not renewed"):
            await client.agents()


def test_an_expired_identity_is_refused_before_any_call(profile: Profile, authority: Authority, tmp_path: Path) -> None:
    authority.write(tmp_path, ALICE, end=datetime.now(UTC) - timedelta(seconds=1))
    with pytest.raises(Unauthenticated, match=rf"your identity in {tmp_path} cannot be used"):
        Connection(profile)


async def test_the_orchestrator_may_be_of_another_trust_domain_that_is_federated_with(
    profile: Profile, authority: Authority, tmp_path: Path, new_authority: Any
) -> None:
    partner = new_authority(PARTNER)
    elsewhere = replace(profile, trust_domain=PARTNER)
    with pytest.raises(Unauthenticated, match=f"no bundle of trust domain {PARTNER}"):
        Connection(elsewhere)
    (tmp_path / FEDERATED_FOLDER).mkdir()
    (tmp_path / FEDERATED_FOLDER / f"{PARTNER}.pem").write_bytes(partner.pem)
    federated, own = Connection(elsewhere), Connection(profile)
    # No root of the client's own trust domain can replace it.
    assert federated._trusted(federated._used).roots == (partner.certificate,)
    assert own._trusted(own._used).pem == (tmp_path / BUNDLE_FILE).read_bytes()
    await federated.close()
    await own.close()


def failure(code: grpc.StatusCode, details: bytes | None = None) -> grpc.aio.AioRpcError:
    trailing = grpc.aio.Metadata(*([] if details is None else [(STATUS_DETAILS, details)]))
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), trailing, details="connection refused")


async def test_a_server_that_does_not_answer_is_reported_with_its_address(connection: Connection) -> None:
    error = connection.error_of(failure(grpc.StatusCode.UNAVAILABLE))
    assert type(error) is Unavailable
    assert str(error).startswith("cannot reach the orchestrator at 127.0.0.1:1: connection refused; is it running")


@pytest.mark.parametrize(
    "sent",
    [
        NotFound("no such execution"),
        AgentOffline("agent 'a' is offline"),
        Unavailable("x", metadata={"a": "b"}),
        Unavailable("Redis is away"),
    ],
)
async def test_an_error_that_the_server_raised_stays_as_it_is(connection: Connection, sent: TachikomaError) -> None:
    error = connection.error_of(failure(grpc.StatusCode[sent.code], error_to_details(sent)))
    assert (type(error), str(error), error.metadata) == (type(sent), str(sent), sent.metadata)


@pytest.mark.parametrize("lasting", [True, False])
async def test_a_connection_that_does_not_come_is_explained_once(
    authority: Authority,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    lasting: bool,
) -> None:
    authority.write(tmp_path, "spiffe://tachikoma.local/user/alice")
    found = Trouble("nothing accepts connections there", lasting=lasting)
    monkeypatch.setattr(connection_module, "diagnose", lambda *_: found)
    monkeypatch.setattr(connection_module, "QUIET_SECONDS", 0.05)
    monkeypatch.setattr(connection_module, "LOUD_SECONDS", 0.05)
    tried = Connection(Profile(address="127.0.0.1:1", server_name="x", identity=tmp_path))
    try:
        with caplog.at_level("WARNING", "tachikoma.client.connection"):
            assert not await tried.ready("5f3a")
            assert not await tried.ready("5f3a")
    finally:
        await tried.close()
    # One that waiting cannot help is the error itself.
    waits = "waiting for the orchestrator at 127.0.0.1:1 for 5f3a: nothing accepts connections there"
    # The form of the line depends on how the process has set up its logs.
    assert [waits in message for message in caplog.messages] == ([] if lasting else [True])


async def test_a_wait_whose_cause_is_not_known_is_told_with_its_proxy(
    profile: Profile, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # Reserved (RFC 6761): nothing is reached under this name.
    monkeypatch.setenv("grpc_proxy", "http://alice:secret@proxy.invalid:3128")
    for name in ("QUIET_SECONDS", "LOUD_SECONDS"):
        monkeypatch.setattr(connection_module, name, 0.05)
    tried = Connection(replace(profile, address="orchestrator.invalid:8534"))
    try:
        with caplog.at_level("WARNING", "tachikoma.client.connection"):
            assert not await tried.ready("5f3a")
            assert not await tried.ready("5f3a")
    finally:
        await tried.close()
    told = (
        "waiting for the orchestrator at orchestrator.invalid:8534 for 5f3a; "
        "the connection uses the proxy proxy.invalid:3128 of the variable grpc_proxy, no_proxy exempts hosts"
    )
    assert [told in message for message in caplog.messages] == [True]
    assert "secret" not in caplog.text


async def test_the_reason_of_an_earlier_failure_is_forgotten_once_there_is_a_connection(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Ready:
        def get_state(self, *, try_to_connect: bool) -> grpc.ChannelConnectivity:
            return grpc.ChannelConnectivity.READY

    connection._trouble = Trouble("nothing accepts connections there")
    monkeypatch.setattr(connection, "_current_channel", Ready)
    assert await connection.ready()
    assert "connection refused; is it running" in str(connection.error_of(failure(grpc.StatusCode.UNAVAILABLE)))


async def test_a_stub_is_made_for_a_channel_and_not_for_a_call(
    connection: Connection, authority: Authority, tmp_path: Path
) -> None:
    first = connection.stub()
    assert connection.stub() is first
    authority.write(tmp_path, ALICE)
    channel_of(connection)
    assert connection.stub() is not first


@pytest.mark.parametrize(
    ("found", "seconds"),
    [
        (None, connection_module.LOUD_SECONDS),
        (Trouble("the host does not answer"), connection_module.LOUD_SECONDS),
        (Trouble("nothing accepts connections there", refused=True), connection_module.REFUSED_SECONDS),
        (Trouble("its certificate has expired", lasting=True), 0),
    ],
)
async def test_the_reason_decides_how_long_a_connection_is_waited_for(
    connection: Connection, monkeypatch: pytest.MonkeyPatch, found: Trouble | None, seconds: float
) -> None:
    waits: list[float] = []

    async def wait(_: object, seconds: float) -> bool:
        waits.append(seconds)
        return False

    monkeypatch.setattr(connection_module, "diagnose", lambda *_: found)
    monkeypatch.setattr(connection_module, "_connected", wait)
    assert not await connection.ready()
    assert waits == [connection_module.QUIET_SECONDS, seconds]
    # One on which nothing listens is known within 3 s.
    assert connection_module.QUIET_SECONDS + connection_module.REFUSED_SECONDS < 3
