"""The agent's lease: renewed whatever the worker is busy with, and given up at once."""

from __future__ import annotations

import asyncio
import platform
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from patience import PATIENCE_SECONDS
from tachikoma.errors import Unavailable
from tachikoma.redis import keys
from tachikoma.redis.access import RedisAccess
from tachikoma.redis.commands import Redis
from tachikoma.streams.heartbeat import LEASE_SECONDS, Contender, Heartbeat
from tachikoma_worker.engine import lease as module
from tachikoma_worker.engine.lease import Lease, LeaseLost, read_lease
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


# --- at rest ----------------------------------------------------------------------------------------------------------


class Resting:
    """An agent that holds no execution, and whose load changes all the time."""

    def __init__(self) -> None:
        self.beats = 0
        self.running = 0

    def __call__(self) -> Heartbeat:
        self.beats += 1
        held = tuple(f"job-{number}" for number in range(self.running))
        values = {"load": float(self.beats), "sent_ms": self.beats, "running": self.running, "executions": held}
        return BEAT.model_copy(update=values)


@pytest.fixture
def restless(monkeypatch: pytest.MonkeyPatch) -> None:
    """Heartbeats follow each other at once, and none is due only because of the time."""
    monkeypatch.setattr(module, "HEARTBEAT_SECONDS", 0.01)
    monkeypatch.setattr(module, "REST_SECONDS", 10**6)
    monkeypatch.setattr(module, "CLOCK_SECONDS", 10**6)


@pytest.mark.usefixtures("restless")
async def test_a_heartbeat_that_says_nothing_new_only_renews_the_lease(
    redis: Redis, settings: WorkerSettings, until: Until
) -> None:
    agent = Resting()
    async with redis.pubsub() as events:
        await events.subscribe(keys.events("web-1"))
        lease = Lease(settings, RedisAccess(settings.redis_url), agent)
        lease.start()
        await until(lambda: agent.beats > 30, "it rests")
        await redis.expire(keys.info("web-1"), 10)
        beats = agent.beats
        await until(lambda: agent.beats > beats + 2, "it is renewed")
        assert await redis.ttl(keys.info("web-1")) > 10
        agent.running = 1
        beats = agent.beats
        await until(lambda: agent.beats > beats + 5, "it runs something")
        await asyncio.to_thread(lease.stop)
        sent = [message async for message in _heartbeats(events)]
    # Two in the beginning, by which clocks are compared; more only if the lease ended because this machine stalled.
    assert 2 <= sum(beat.running == 0 for beat in sent) < 10
    # While it holds an execution, all.
    assert sum(beat.running == 1 for beat in sent) >= 5


async def _heartbeats(events: Any) -> AsyncIterator[Heartbeat]:
    """Yield the heartbeats that were published."""
    while (message := await events.get_message(timeout=1)) is not None:
        if message["type"] == "message":
            yield Heartbeat.model_validate_json(message["data"])


@pytest.mark.usefixtures("restless")
async def test_an_agent_at_rest_notices_that_another_worker_has_its_lease(
    redis: Redis, settings: WorkerSettings, until: Until
) -> None:
    agent = Resting()
    lease = Lease(settings, RedisAccess(settings.redis_url), agent)
    lease.start()
    await until(lambda: agent.beats > 5, "it rests")
    await redis.set(keys.info("web-1"), other(boot="b2", hostname="h2").model_dump_json(), ex=100)
    async with asyncio.timeout(PATIENCE_SECONDS):
        with pytest.raises(LeaseLost, match="a worker on h2 became agent web-1"):
            await lease.watch()


@pytest.mark.usefixtures("restless")
async def test_an_agent_at_rest_whose_clock_is_set_says_so(
    redis: Redis, settings: WorkerSettings, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = Resting()
    lease = Lease(settings, RedisAccess(settings.redis_url), agent)
    lease.start()
    try:
        await until(lambda: agent.beats > 5, "it rests")
        stored = await redis.get(keys.info("web-1"))
        # Any difference counts as a change of its clock from here on.
        monkeypatch.setattr(module, "CLOCK_SECONDS", -1)
        beats = agent.beats
        await until(lambda: agent.beats > beats + 2, "it sends again")
        assert await redis.get(keys.info("web-1")) != stored
    finally:
        await asyncio.to_thread(lease.stop)


# --- two workers with one identity ------------------------------------------------------------------------------------


def other(**values: str) -> Heartbeat:
    """A heartbeat of another worker."""
    return BEAT.model_copy(update=values)


@pytest.mark.parametrize(
    "newcomer",
    [
        {"boot": "b2", "run": "r2"},
        {"boot": "b2", "run": "r2", "hostname": "h2"},
        {"boot": "b2", "run": "r"},
        # A copy of the data folder on another host.
        {"boot": "b", "run": "r2", "hostname": "h2"},
    ],
)
async def test_a_newcomer_waits_reports_itself_and_gets_the_lease_when_it_ends(
    redis: Redis, settings: WorkerSettings, monkeypatch: pytest.MonkeyPatch, until: Until, newcomer: dict[str, str]
) -> None:
    monkeypatch.setattr(module, "HEARTBEAT_SECONDS", 0.01)
    monkeypatch.setattr(module, "CONTEND_SECONDS", (0.01, 0.01))
    notices: list[Contender] = []
    async with redis.pubsub() as events:
        await events.subscribe(keys.events("web-1"))
        access = RedisAccess(settings.redis_url)
        holder, second = Lease(settings, access, lambda: BEAT), Lease(settings, access, lambda: other(**newcomer))
        holder.start()
        await until(holder.held.is_set, "it is held")
        second.start()
        while not notices:
            message = await events.get_message(timeout=PATIENCE_SECONDS)
            if message is not None and message["type"] == "message" and b"contender" in message["data"]:
                notices.append(Contender.model_validate_json(message["data"]))
    assert notices[0].hostname == other(**newcomer).hostname
    assert notices[0].holder == "h"
    assert not second.held.is_set()
    assert Heartbeat.model_validate_json(await redis.get(keys.info("web-1")) or b"") == BEAT
    await asyncio.to_thread(holder.stop)
    await until(second.held.is_set, "the newcomer holds it")
    await asyncio.to_thread(second.stop)
    assert not await redis.exists(keys.info("web-1"))


async def test_a_newcomer_that_stops_leaves_the_lease_of_the_holder(
    redis: Redis, settings: WorkerSettings, monkeypatch: pytest.MonkeyPatch, until: Until
) -> None:
    await redis.set(keys.info("web-1"), BEAT.model_dump_json(), ex=100)
    second = Lease(settings, RedisAccess(settings.redis_url), lambda: other(boot="b2"))
    second.start()
    await until(lambda: second._other, "it waits")
    await asyncio.to_thread(second.stop)
    assert await redis.ttl(keys.info("web-1")) > LEASE_SECONDS


async def test_a_restart_of_the_same_worker_gets_the_lease_at_once(
    redis: Redis, settings: WorkerSettings, until: Until
) -> None:
    # Of a worker that was killed.
    await redis.set(keys.info("web-1"), BEAT.model_dump_json(), ex=100)
    again = Lease(settings, RedisAccess(settings.redis_url), lambda: other(run="r2"))
    again.start()
    await until(again.held.is_set, "it is held")
    await asyncio.to_thread(again.stop)


@pytest.mark.parametrize("raw", [b"", b"garbage", b"[]"])
async def test_a_lease_that_no_worker_wrote_keeps_none_from_it(
    redis: Redis, settings: WorkerSettings, until: Until, raw: bytes
) -> None:
    await redis.set(keys.info("web-1"), raw)
    lease = Lease(settings, RedisAccess(settings.redis_url), lambda: BEAT)
    lease.start()
    await until(lease.held.is_set, "it is held")
    await asyncio.to_thread(lease.stop)


async def test_a_worker_that_was_silent_for_too_long_ends_when_another_one_has_its_lease(
    redis: Redis, settings: WorkerSettings, monkeypatch: pytest.MonkeyPatch, until: Until
) -> None:
    monkeypatch.setattr(module, "HEARTBEAT_SECONDS", 0.01)
    lease = Lease(settings, RedisAccess(settings.redis_url), lambda: BEAT)
    lease.start()
    await until(lease.held.is_set, "it is held")
    theirs = other(boot="b2", hostname="h2").model_dump_json()
    await redis.set(keys.info("web-1"), theirs, ex=100)
    with pytest.raises(LeaseLost, match="a worker on h2 became agent web-1"):
        await asyncio.wait_for(lease.watch(), PATIENCE_SECONDS)
    assert await redis.get(keys.info("web-1")) == theirs.encode()
    lease.stop()


class NoIdentity:
    """An identity that a Redis without TLS does not need."""

    def close(self) -> None:
        pass


@pytest.mark.parametrize("raw", [b"", b"no JSON", b"[]", b"{}", b"\xff"])
async def test_a_lease_that_cannot_be_read_is_reported_in_words(
    redis: Redis, settings: WorkerSettings, monkeypatch: pytest.MonkeyPatch, raw: bytes
) -> None:
    monkeypatch.setattr(module, "open_identity", lambda _: NoIdentity())
    await redis.set(keys.info("web-1"), raw)
    with pytest.raises(Unavailable, match="the lease of agent web-1 is unreadable"):
        await read_lease(settings)


async def test_a_lease_of_another_host_is_not_that_of_this_one(
    redis: Redis, settings: WorkerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "open_identity", lambda _: NoIdentity())
    with pytest.raises(Unavailable, match="web-1 is offline"):
        await read_lease(settings)
    await redis.set(keys.info("web-1"), BEAT.model_dump_json())
    with pytest.raises(Unavailable, match="on the host h"):
        await read_lease(settings)
    await redis.set(keys.info("web-1"), BEAT.model_copy(update={"hostname": platform.node()}).model_dump_json())
    assert (await read_lease(settings)).slots == 1
