"""The registry of agents on a real Redis."""

from __future__ import annotations

import json
from typing import Any

import pytest

from authority import NoIdentity
from tachikoma.client import wire
from tachikoma.redis import keys
from tachikoma.redis.commands import Redis
from tachikoma.streams.heartbeat import Heartbeat
from tachikoma_orchestrator.agents import registry as module
from tachikoma_orchestrator.agents.registry import Registry


def heartbeat(**values: Any) -> bytes:
    """A heartbeat. Not made by the model, which a broken agent does not use either."""
    good = {
        "type": "heartbeat",
        "boot": "b",
        "run": "r",
        "version": "0.1.0",
        "hostname": "web1",
        "labels": {"rack": "r1"},
        "running": 1,
        "slots": 64,
        "load": 0.5,
        "memory_used": 0.25,
        "disk_used": 0.75,
        "warnings": ["commands run without cgroup limits"],
    }
    Heartbeat.model_validate(good)
    return json.dumps({**good, **values}).encode()


async def test_an_agent_is_online_while_its_lease_lasts_and_known_afterwards(redis: Redis) -> None:
    registry = Registry(redis, NoIdentity())
    await redis.set(keys.info("web-1"), heartbeat())
    await redis.lpush(keys.queue("web-1"), "order")
    await redis.lpush(keys.queue_lane("web-1", 7), "order")
    await registry.heard("web-1", heartbeat())
    [agent] = await registry.describe()
    assert (agent.id, agent.online, agent.running, agent.queued) == ("web-1", True, 1, 2)
    assert (agent.hostname, agent.labels, agent.reported_labels, agent.load) == ("web1", {}, {"rack": "r1"}, 0.5)
    await redis.delete(keys.info("web-1"))
    [agent] = await registry.describe()
    assert (agent.id, agent.online, agent.last_seen is not None) == ("web-1", False, True)


async def test_agents_whose_heartbeats_no_orchestrator_heard_are_discovered(redis: Redis) -> None:
    registry = Registry(redis, NoIdentity())
    for name in ("web-1", "web-2"):
        await redis.set(keys.info(name), heartbeat())
    await registry.discover()
    assert [agent.id for agent in await registry.describe()] == ["web-1", "web-2"]


async def test_without_agents_the_list_is_empty(redis: Redis) -> None:
    registry = Registry(redis, NoIdentity())
    await registry.discover()
    assert await registry.describe() == []


async def test_some_agents_are_read_without_the_others(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "READ_AT_ONCE", 2)
    registry = Registry(redis, NoIdentity())
    names = [f"web-{number}" for number in range(5)]
    for name in names:
        await registry.heard(name, heartbeat())
        await redis.set(keys.info(name), heartbeat(running=7))
    await redis.delete(keys.info("web-1"), keys.info("web-2"))
    await redis.hset(keys.info("web-2"), "no", "heartbeat")
    asked = ["web-0", "web-3", "unknown", "web-1", "web-3", "web-2"]
    states = await registry.states(asked)
    assert {name: (state.online, state.heartbeat.running) for name, state in states.items()} == {
        "web-0": (True, 7), "web-3": (True, 7), "web-1": (False, 1), "web-2": (False, 1),
    }  # fmt: skip
    assert [agent.id for agent in await registry.describe(asked)] == ["web-0", "web-1", "web-2", "web-3"]
    assert sorted(await registry.all()) == names


async def test_the_departure_of_each_agent_is_noticed_once(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "READ_AT_ONCE", 2)
    registry = Registry(redis, NoIdentity())
    names = [f"web-{number}" for number in range(5)]
    for name in names:
        await redis.set(keys.info(name), heartbeat())
        await registry.heard(name, heartbeat())
    await redis.delete(keys.info("web-1"), keys.info("web-4"))
    for _ in range(2):
        await registry.notice_departures()
    events = [fields for _, fields in await redis.xrange(keys.AUDIT)]
    left = [fields[b"agent_id"] for fields in events if fields[b"event"] == b"agent_left"]
    assert sorted(left) == [b"web-1", b"web-4"]
    assert set(await redis.hkeys(keys.ONLINE)) == {b"web-0", b"web-2", b"web-3"}


NONSENSE = {
    "nothing": b"",
    "garbage": b"garbage",
    "empty": b"{}",
    "deep": b"[" * 100_000,
    "negative": heartbeat(running=-1),
    "large": heartbeat(running=2**32),
    "very large": heartbeat(slots=10**30),
    "text for a number": heartbeat(load="high"),
    "no number": heartbeat(load=float("nan")),
    "many labels": heartbeat(labels={f"l{n}": "" for n in range(65)}),
    "long name": heartbeat(hostname="\x1b[2J" + "x" * 5_000_000),
    "no text": heartbeat(hostname="\ud800"),
    "long warnings": heartbeat(warnings=["x" * 1000] * 5000),
}


@pytest.mark.parametrize("raw", NONSENSE.values(), ids=NONSENSE)
async def test_an_agent_that_sends_nonsense_does_not_hide_the_others(redis: Redis, raw: bytes) -> None:
    registry = Registry(redis, NoIdentity())
    for name, message in (("evil", raw), ("web-1", heartbeat())):
        await redis.set(keys.info(name), message)
        await registry.heard(name, message)
    described = {agent.id: wire.agent_to_pb(agent) for agent in await registry.describe()}
    assert described["web-1"].online
    # All agents have to fit into one answer.
    assert all(agent.ByteSize() < 64 * 1024 for agent in described.values())


async def test_broken_entries_of_some_agents_hide_no_other_agent(redis: Redis) -> None:
    registry = Registry(redis, NoIdentity())
    for name in ("web-1", "web-2"):
        await redis.set(keys.info(name), heartbeat())
        await registry.heard(name, heartbeat())
    await redis.hset(keys.DRAINING, "web-1", "garbage")
    await redis.set(keys.queue("web-2"), "no list")
    one, two = await registry.describe()
    # Admission refuses it by the same field.
    assert one.draining
    assert "cannot be read" in one.drain_reason
    assert (two.online, two.queued) == (True, 0)
    assert "its queue in Redis is not a list" in two.warnings
    await registry.resume("web-1", by="spiffe://tachikoma.local/user/root")
    assert not (await registry.describe())[0].draining


async def test_orders_of_a_requester_are_on_the_same_queue_if_the_worker_reads_it(redis: Redis) -> None:
    registry = Registry(redis, NoIdentity())
    await registry.heard("web-1", heartbeat(queues=keys.QUEUE_LANES))
    await registry.heard("old-1", heartbeat())
    queues = {registry.queue("web-1", f"spiffe://x/user/{number}") for number in range(200)}
    assert queues == set(keys.queues("web-1")[1:])
    assert registry.queue("web-1", "spiffe://x/user/a") == registry.queue("web-1", "spiffe://x/user/a")
    assert registry.queue("old-1", "spiffe://x/user/a") == keys.queue("old-1")
    assert registry.queue("never-heard", "spiffe://x/user/a") == keys.queue("never-heard")


async def test_a_worker_that_claims_more_queues_gets_no_others(redis: Redis) -> None:
    registry = Registry(redis, NoIdentity())
    await registry.heard("web-1", heartbeat(queues=1_000_000))
    assert {registry.queue("web-1", f"user {number}") for number in range(200)} <= set(keys.queues("web-1"))
