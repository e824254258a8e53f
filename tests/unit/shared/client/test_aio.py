"""The client's connections follow its identity."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest

from authority import Authority
from tachikoma import AsyncClient, Profile, Unauthenticated
from tachikoma.identity.svid import BUNDLE_FILE, FEDERATED_FOLDER

ALICE, PARTNER = "spiffe://tachikoma.local/user/alice", "partner.example"


@pytest.fixture
def profile(authority: Authority, tmp_path: Path) -> Profile:
    authority.write(tmp_path, ALICE)
    # Nobody listens there: what is looked at is which channel a call would go over.
    return Profile(address="127.0.0.1:1", server_name="x", identity=tmp_path)


def look_again(client: AsyncClient) -> grpc.aio.Channel:
    client._identity._checked = float("-inf")  # type: ignore[attr-defined]
    client._stub()
    assert client._channel is not None
    return client._channel


async def test_calls_go_over_one_channel_while_the_identity_stays(profile: Profile) -> None:
    async with AsyncClient(profile) as client:
        assert look_again(client) is look_again(client)
        assert not client._retired


async def test_a_new_identity_has_a_channel_of_its_own_and_the_old_one_is_closed_when_it_is_idle(
    profile: Profile, authority: Authority, tmp_path: Path
) -> None:
    async with AsyncClient(profile) as client:
        old = look_again(client)
        authority.write(tmp_path, ALICE)
        assert look_again(client) is not old
        await asyncio.gather(*client._retired)
        assert not client._retired
        assert old.get_state() is grpc.ChannelConnectivity.SHUTDOWN


async def test_a_client_that_is_closed_leaves_no_channel_behind(
    profile: Profile, authority: Authority, tmp_path: Path
) -> None:
    client = AsyncClient(profile)
    channels = []
    for _ in range(3):
        channels.append(look_again(client))
        authority.write(tmp_path, ALICE)
    await client.close()
    assert all(channel.get_state() is grpc.ChannelConnectivity.SHUTDOWN for channel in channels)


async def test_an_identity_that_was_not_renewed_is_told_as_that(
    profile: Profile, authority: Authority, tmp_path: Path
) -> None:
    end = datetime.now(UTC) + timedelta(seconds=1)
    authority.write(tmp_path, ALICE, end=end)
    async with AsyncClient(profile) as client:
        while datetime.now(UTC) <= end:  # noqa: ASYNC110 (time has to pass)
            await asyncio.sleep(0.01)
        with pytest.raises(Unauthenticated, match=rf"{tmp_path} ended at .* and was not renewed"):
            await client.agents()


async def test_the_orchestrator_may_be_of_another_trust_domain_that_is_federated_with(
    profile: Profile, authority: Authority, tmp_path: Path, new_authority: Any
) -> None:
    partner = new_authority(PARTNER)
    elsewhere = profile.model_copy(update={"trust_domain": PARTNER})
    with pytest.raises(Unauthenticated, match=f"no bundle of trust domain {PARTNER}"):
        AsyncClient(elsewhere)
    (tmp_path / FEDERATED_FOLDER).mkdir()
    (tmp_path / FEDERATED_FOLDER / f"{PARTNER}.pem").write_bytes(partner.pem)
    async with AsyncClient(elsewhere) as client:
        # Nobody of the own trust domain can stand in for it.
        assert client._trusted(client._used).roots == (partner.certificate,)
    async with AsyncClient(profile) as client:
        assert client._trusted(client._used).pem == (tmp_path / BUNDLE_FILE).read_bytes()
