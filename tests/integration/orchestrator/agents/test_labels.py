"""Labels that operators bind, on a real Redis: signed, never older than known, written again, audited."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from admissions import AGENT, ALICE, BOSS, Stand, peer
from tachikoma.errors import AgentUnknown, InvalidRequest
from tachikoma.identity.signed_messages import AgentLabels
from tachikoma.identity.signing import verify
from tachikoma.redis import keys
from tachikoma.redis.commands import Redis
from tachikoma.vocabulary.labels import LabelChange
from tachikoma_orchestrator.agents import labels as module
from tachikoma_orchestrator.agents.labels import Labels

OPERATOR = peer(BOSS)


@pytest.fixture
async def stand(redis: Redis, tmp_path: Path) -> Stand:
    return await Stand.make(redis, tmp_path)


async def change(labels: Labels, *texts: str, agent: str = AGENT) -> None:
    await labels.change(agent, LabelChange.parse(texts), OPERATOR)


async def stored(stand: Stand) -> AgentLabels:
    raw = await stand.redis.hget(keys.LABELS, AGENT)
    assert raw is not None
    svid = stand.identity.current()
    return verify(raw.decode(), AgentLabels, svid.bundle, svid.spiffe_id, kept=True)


async def test_what_an_agent_reports_grants_nothing(stand: Stand) -> None:
    await stand.heard(labels={"role": "db"})
    assert stand.registry.labels(AGENT) == {}
    [agent] = await stand.registry.describe()
    assert (agent.labels, agent.reported_labels) == ({}, {"role": "db"})
    assert await stand.registry.known_labels() == {AGENT: {}}


async def test_a_change_is_used_at_once_here_and_soon_elsewhere_and_is_audited(stand: Stand) -> None:
    labels, other = stand.registry.bound, Labels(stand.redis, stand.identity)
    await change(labels, "role=web", "site=b1")
    await change(labels, "role=db", "site-")
    assert stand.registry.labels(AGENT) == {"role": "db"}
    await other.refresh()
    assert other.of(AGENT) == {"role": "db"}
    events = (await stand.trail.read(after="", limit=100, exec_id="")).events
    found = [(event.agent_id, event.actor, event.reason) for event in events if event.event == "agent_labelled"]
    assert found == [(AGENT, str(BOSS), "role=web site=b1"), (AGENT, str(BOSS), "role=db site-")]
    await change(labels, "role-")
    await other.refresh()
    assert other.of(AGENT) == {}


async def test_changes_of_two_orchestrators_at_once_are_both_kept(stand: Stand) -> None:
    copies = [Labels(stand.redis, stand.identity) for _ in range(4)]
    await asyncio.gather(*(change(copy, f"l{number}=x") for number, copy in enumerate(copies)))
    assert (await stored(stand)).labels == {f"l{number}": "x" for number in range(4)}


async def test_an_agent_that_does_not_exist_and_labels_that_are_not_valid_are_refused(stand: Stand) -> None:
    for agent in ("web-9", "no id"):
        with pytest.raises(AgentUnknown):
            await change(stand.registry.bound, "role=db", agent=agent)
    with pytest.raises(InvalidRequest, match="control characters"):
        await stand.registry.bound.change(AGENT, LabelChange({"role": "a\0b"}, ()), OPERATOR)
    with pytest.raises(InvalidRequest, match="at least one"):
        await stand.registry.bound.change(AGENT, LabelChange({}, ()), OPERATOR)
    assert await stand.redis.hgetall(keys.LABELS) == {}


async def test_the_owner_of_redis_can_neither_forge_nor_move_labels(stand: Stand, tmp_path: Path) -> None:
    labels = stand.registry.bound
    await stand.heard("web-2")
    await change(labels, "role=db", agent="web-2")
    foreign = await Stand.make(stand.redis, tmp_path / "foreign")
    entries = (
        await stand.redis.hget(keys.LABELS, "web-2"),
        foreign.registry.bound.signed(AGENT, {"role": "db"}, OPERATOR).encode(),
        b"\xff", b'{"role": "db"}',
    )  # fmt: skip
    for entry in entries:
        assert entry is not None
        await stand.redis.hset(keys.LABELS, AGENT, entry)
        await stand.redis.zadd(keys.LABELS_CHANGES, {AGENT: 10**9})
        await labels.refresh()
        assert labels.of(AGENT) == {}
    await change(labels, "role=web")
    assert (await stored(stand)).labels == {"role": "web"}


async def test_an_earlier_entry_is_not_taken_back(stand: Stand) -> None:
    labels = stand.registry.bound
    await change(labels, "role=db")
    earlier = await stand.redis.hget(keys.LABELS, AGENT)
    await change(labels, "role=web")
    assert earlier is not None
    await stand.redis.hset(keys.LABELS, AGENT, earlier)
    await labels.refresh()
    assert labels.of(AGENT) == {"role": "web"}
    await change(labels, "site=b1")
    assert (await stored(stand)).labels == {"role": "web", "site": "b1"}


async def test_labels_that_redis_lost_are_written_again(stand: Stand) -> None:
    labels, other = stand.registry.bound, Labels(stand.redis, stand.identity)
    await change(labels, "role=db")
    await other.refresh()
    await stand.redis.delete(keys.LABELS, keys.LABELS_CHANGES)
    await labels.write_again(stand.redis)
    await other.write_again(stand.redis)
    fresh = Labels(stand.redis, stand.identity)
    await fresh.refresh()
    assert fresh.of(AGENT) == {"role": "db"}
    # A Redis that went back gets the later change; one that has a later change keeps it.
    earlier = await stand.redis.hget(keys.LABELS, AGENT)
    await change(labels, "role=web")
    assert earlier is not None
    await stand.redis.hset(keys.LABELS, AGENT, earlier)
    await labels.write_again(stand.redis)
    assert (await stored(stand)).labels == {"role": "web"}
    await other.write_again(stand.redis)
    assert (await stored(stand)).labels == other.of(AGENT) == {"role": "web"}


async def test_old_entries_are_signed_again_and_stay_the_same_change(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = stand.registry.bound
    await change(labels, "role=db")
    before, raw = await stored(stand), await stand.redis.hget(keys.LABELS, AGENT)
    monkeypatch.setattr(module, "SIGN_AGAIN_SECONDS", -10)
    await labels.refresh_if_available()
    after = await stored(stand)
    assert await stand.redis.hget(keys.LABELS, AGENT) != raw
    assert (after.labels, after.at_ms, after.by) == (before.labels, before.at_ms, before.by)
    events = (await stand.trail.read(after="", limit=100, exec_id="")).events
    assert [event.event for event in events].count("agent_labelled") == 1


async def test_policy_and_list_use_bound_labels_only(stand: Stand) -> None:
    stand.change_policy(
        'agents: ["web-*"]\n    allowedCommands: ["/usr/bin/true',
        'agents: ["role=db"]\n    allowedCommands: ["/usr/bin/true',
    )
    await stand.heard(labels={"role": "db"})
    with pytest.raises(Exception, match="careful does not allow"):
        await stand.admit("true", by=ALICE)
    await change(stand.registry.bound, "role=db")
    await stand.admit("true", by=ALICE)
    order = await stand.order()
    assert (order.labels, order.bound) == ({"role": "db"}, {"role": "db"})
