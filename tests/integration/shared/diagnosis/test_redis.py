"""Checks of a connection to a real Redis."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tachikoma.diagnosis import redis as diagnosis
from tachikoma.diagnosis.findings import Finding
from tachikoma.diagnosis.redis import _collect, check_redis
from tachikoma.redis.access import RedisAccess, RedisSettings
from tachikoma.redis.commands import Redis
from tachikoma.redis.users import agent_user, rules


def access(url: str, password_file: Path | None = None) -> RedisAccess:
    settings = RedisSettings(redis_url=url, redis_password_file=password_file)
    return RedisAccess.of(settings, identity=None, user=agent_user("web-1"))


@pytest.fixture
def password(tmp_path: Path) -> Path:
    file = tmp_path / "password"
    file.write_text("right\n")
    return file


@pytest_asyncio.fixture
async def user(redis: Redis) -> AsyncIterator[str]:
    name = agent_user("web-1")
    await redis.execute_command("ACL", "SETUSER", name, *rules(name, ()), ">right")
    yield name
    await redis.execute_command("ACL", "DELUSER", name)


async def found(access: RedisAccess, monkeypatch: pytest.MonkeyPatch, *, clock: bool = False) -> list[Finding]:
    # The machine of a test may be slow.
    monkeypatch.setattr(diagnosis, "SLOW_MS", 60_000)
    return await _collect(access, clock=clock)


@pytest.mark.usefixtures("user")
async def test_an_agent_may_do_what_the_check_does(
    redis_url: str, password: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await found(access(redis_url, password), monkeypatch) == []


@pytest.mark.usefixtures("user")
async def test_a_wrong_password_is_found(redis_url: str, password: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    password.write_text("wrong\n")
    (finding,) = await found(access(redis_url, password), monkeypatch)
    assert finding.what.startswith("Redis refuses user or password: ")
    assert "right" not in finding.what


async def test_a_redis_that_does_not_run_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (finding,) = await found(access(f"unix://{tmp_path}/none.sock"), monkeypatch)
    assert finding.what.startswith("no connection to Redis: ")


async def test_a_slow_redis_is_found(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnosis, "SLOW_MS", 0)
    (finding,) = await _collect(access(redis_url), clock=False)
    assert "ms for a short answer" in finding.what


@pytest.mark.parametrize(("shift", "order"), [(90_000, "ahead of"), (-90_000, "behind")])
async def test_a_wrong_clock_is_found(redis_url: str, monkeypatch: pytest.MonkeyPatch, shift: int, order: str) -> None:
    monkeypatch.setattr(diagnosis, "now_ms", lambda: int(time.time() * 1000) + shift)
    (finding,) = await found(access(redis_url), monkeypatch, clock=True)
    assert finding.where == "clock"
    assert f" s {order} that of Redis" in finding.what


def test_wrong_settings_are_found(tmp_path: Path) -> None:
    (finding,) = check_redis(lambda: access("redis://localhost", tmp_path / "missing"))
    assert "missing" in finding.what
    (finding,) = check_redis(lambda: access("http://localhost"))
    assert "scheme" in finding.what
