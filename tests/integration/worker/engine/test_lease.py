"""The agent's lease: renewed whatever the worker is busy with, and given up at once."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from tachikoma.redis import keys
from tachikoma.redis.access import RedisAccess
from tachikoma.redis.commands import Redis
from tachikoma.streams.heartbeat import LEASE_SECONDS, Heartbeat
from tachikoma_worker.engine import lease as module
from tachikoma_worker.engine.lease import Lease
from tachikoma_worker.settings import WorkerSettings

BEAT = Heartbeat(
    boot="b", run="r", version="1", hostname="h", running=0, slots=1, load=0, memory_used=0, disk_used=0
)  # fmt: skip
Until = Callable[[Callable[[], object], str], Awaitable[None]]


@pytest.fixture
def settings(redis_url: str, tmp_path: Path) -> WorkerSettings:
    return WorkerSettings(agent_id="web-1", redis_url=redis_url, identity=tmp_path, data=tmp_path)


async def test_work_that_never_yields_does_not_keep_it_waiting(
    redis: Redis, settings: WorkerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "HEARTBEAT_SECONDS", 0.01)
    threads: list[int] = []

    def describe() -> Heartbeat:
        threads.append(threading.get_ident())
        return BEAT

    lease = Lease(settings, RedisAccess(settings.redis_url), describe)
    lease.start()
    # This loop and its thread do nothing else meanwhile, as an engine that is stuck in its work.
    spins = 0
    while len(threads) < 20:
        spins += 1
        assert spins < 10**9
    assert threading.get_ident() not in threads
    assert 0 < await redis.ttl(keys.info("web-1")) <= LEASE_SECONDS
    await asyncio.to_thread(lease.stop)
    assert not await redis.exists(keys.info("web-1"))
    lease.stop()


async def test_it_is_taken_up_again_when_redis_has_lost_it(
    redis: Redis, settings: WorkerSettings, monkeypatch: pytest.MonkeyPatch, until: Until
) -> None:
    monkeypatch.setattr(module, "HEARTBEAT_SECONDS", 0.01)
    beats: list[Heartbeat] = []
    lease = Lease(settings, RedisAccess(settings.redis_url), lambda: beats.append(BEAT) or BEAT)  # type: ignore[func-returns-value]
    lease.start()
    try:
        await until(lambda: beats, "it is held")
        await redis.client_kill_filter(_type="normal", skipme=True)
        await redis.flushall()
        held = len(beats)
        await until(lambda: len(beats) > held + 2, "it is held again")
        assert Heartbeat.model_validate_json(await redis.get(keys.info("web-1"))) == BEAT
    finally:
        await asyncio.to_thread(lease.stop)
