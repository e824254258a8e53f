"""Renewal of an agent's identity: when, how often it is tried, and what is said when it cannot be done."""

from __future__ import annotations

import asyncio
import datetime as dt
from pathlib import Path
from typing import Any

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from authority import Authority
from tachikoma.client.membership import renewal as remote
from tachikoma.client.membership.joining import REJOIN
from tachikoma.client.membership.renewal import Renewal, due
from tachikoma.errors import ConfigurationError, PermissionDenied, Unavailable
from tachikoma.identity import renewal as module
from tachikoma.identity.join_token import Joined
from tachikoma.identity.svid import Svid

ID = "spiffe://tachikoma.local/agent/web-1"
JOINED = Joined(address="orch.example:8535", server_name="orch.example")


class Source:
    """An identity that a test replaces."""

    place = "a test"

    def __init__(self, svid: Svid) -> None:
        self.svid = svid

    def current(self) -> Svid:
        return self.svid

    def close(self) -> None:
        """Nothing is held."""


class Planned(Renewal):
    """A renewal whose attempts have planned results."""

    def __init__(self, source: Source, *results: Svid | Exception) -> None:
        super().__init__(Path("/nonexistent"), JOINED, source)
        self.attempts = 0
        self._source = source
        self._results = list(results)

    async def _renew(self, svid: Svid) -> Svid:
        self.attempts += 1
        result = self._results.pop(0)
        if isinstance(result, Exception):
            raise result
        self._source.svid = result
        return result


@pytest.fixture(autouse=True)
def structured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Log lines as `capture_logs` captures them."""
    monkeypatch.setattr(module, "log", structlog.get_logger())


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The delays, which take no time."""
    seen: list[float] = []

    async def sleep(seconds: float) -> None:
        seen.append(seconds)

    monkeypatch.setattr(module.asyncio, "sleep", sleep)
    return seen


def lasting(authority: Authority, seconds: float) -> Svid:
    now = dt.datetime.now(dt.UTC)
    begin, end = now - dt.timedelta(seconds=10), now + dt.timedelta(seconds=seconds)
    return authority.svid(ID, begin=begin, end=end)


@given(part=st.floats(0.01, 0.99))
def test_a_certificate_is_due_when_a_part_of_its_life_is_left(authority: Authority, part: float) -> None:
    svid = authority.svid(ID)
    left = (svid.not_after - dt.datetime.now(dt.UTC)).total_seconds()
    assert due(svid, part).total_seconds() <= left
    # In the order in which they are asked for, since the clock goes on.
    latest, middle, first = due(svid, 0.01), due(svid, part), due(svid, 0.99)
    assert first <= middle <= latest


async def test_attempts_are_repeated_with_growing_delays_until_one_succeeds(
    authority: Authority, waits: list[float]
) -> None:
    old, new = lasting(authority, 3600), lasting(authority, 7200)
    renewal = Planned(Source(old), *[Unavailable("away")] * 8, OSError("disk"), new)
    with capture_logs() as logs:
        await renewal._renew_until_done(old)
    assert renewal.attempts == 10
    assert waits[:9] == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert [entry["event"] for entry in logs] == ["svid.not_renewed"] * 9 + ["svid.renewed"]
    assert {entry["remedy"] for entry in logs[:9]} == {""}


async def test_near_its_end_a_certificate_is_tried_more_often(authority: Authority, waits: list[float]) -> None:
    old = lasting(authority, 8)
    renewal = Planned(Source(old), *[Unavailable("away")] * 4, lasting(authority, 3600))
    await renewal._renew_until_done(old)
    assert all(delay <= 1 for delay in waits[:4])


async def test_a_refusal_names_its_remedy(authority: Authority, waits: list[float]) -> None:
    old = lasting(authority, 3600)
    renewal = Planned(Source(old), PermissionDenied("revoked"), lasting(authority, 7200))
    with capture_logs() as logs:
        await renewal._renew_until_done(old)
    assert logs[0]["remedy"] == REJOIN


async def test_an_identity_that_another_process_replaced_is_not_renewed(
    authority: Authority, waits: list[float]
) -> None:
    renewal = Planned(Source(lasting(authority, 7200)))
    await renewal._renew_until_done(lasting(authority, 3600))
    assert renewal.attempts == 0


async def test_a_certificate_that_ended_is_reported_once(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    rounds: list[float] = []

    async def sleep(seconds: float) -> None:
        rounds.append(seconds)
        if len(rounds) == 5:
            raise asyncio.CancelledError

    monkeypatch.setattr(module.asyncio, "sleep", sleep)
    renewal = Planned(Source(lasting(authority, -1)))
    with capture_logs() as logs, pytest.raises(asyncio.CancelledError):
        await renewal.run()
    [entry] = logs
    assert (entry["event"], entry["remedy"]) == ("svid.ended", REJOIN)
    assert renewal.attempts == 0


def test_only_a_folder_that_joined_is_renewed(tmp_path: Path) -> None:
    assert Renewal.prepare("unix:///run/spire.sock") is None
    assert Renewal.prepare(None) is None
    assert Renewal.prepare(tmp_path) is None
    JOINED.save(tmp_path)
    assert Renewal.prepare(tmp_path) == JOINED


def test_a_damaged_file_of_joining_is_told(tmp_path: Path) -> None:
    JOINED.save(tmp_path)
    [path] = tmp_path.iterdir()
    path.write_text("{")
    with pytest.raises(ConfigurationError, match=str(path)):
        Renewal.prepare(tmp_path)


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Any) -> None:
        raise PermissionError(13, "denied")

    JOINED.save(tmp_path)
    monkeypatch.setattr(remote, "finish_writing", refuse)
    with pytest.raises(ConfigurationError, match="to renew it"):
        Renewal.prepare(tmp_path)
