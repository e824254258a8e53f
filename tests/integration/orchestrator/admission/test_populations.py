"""Limits of policies over all requesters: a number, or a percentage of the agents that the policy selects."""

from __future__ import annotations

from pathlib import Path

import pytest

from admissions import ALICE, BOSS, OTHER, Stand, peer
from tachikoma.errors import ResourceExhausted
from tachikoma.redis import keys
from tachikoma.redis.commands import Redis
from tachikoma.vocabulary.labels import LabelChange
from tachikoma_orchestrator.admission import populations

FREE = 'allowedCommands: ["/usr/bin/true ..."]\n'
WEB, DB = (f'agents: ["{agents}"]\n    {FREE}' for agents in ("web-*", "role=db"))
OPEN = keys.scope("under:free")[1]


@pytest.fixture
async def stand(redis: Redis, tmp_path: Path) -> Stand:
    made = await Stand.make(redis, tmp_path)
    for number in range(2, 11):
        await made.heard(f"web-{number}")
    return made


async def bind(stand: Stand, *agents: str) -> None:
    for agent in agents:
        await stand.registry.bound.change(agent, LabelChange({"role": "db"}, ()), peer(BOSS))


async def test_requesters_together_cannot_exceed_a_number(stand: Stand) -> None:
    stand.change_policy(FREE, FREE + "    maxTargets: 2\n")
    await stand.admit(by=ALICE)
    await stand.admit(by=BOSS, agent_id="web-2")
    with pytest.raises(ResourceExhausted, match="have not ended"):
        await stand.admit(by=OTHER, agent_id="web-3")
    assert await stand.redis.execute_command("SCARD", OPEN) == 2


@pytest.mark.parametrize(("percent", "most"), [(1, 1), (50, 2), (100, 4)])
async def test_a_percentage_is_of_the_agents_that_the_policy_selects(stand: Stand, percent: int, most: int) -> None:
    stand.change_policy(WEB, f"{DB}    maxTargetsPercent: {percent}\n")
    chosen = [f"web-{number}" for number in range(1, 5)]
    await bind(stand, *chosen)
    for agent in chosen[:most]:
        await stand.admit(agent_id=agent)
    with pytest.raises(ResourceExhausted):
        await stand.admit(by=BOSS, agent_id=chosen[most - 1])


async def test_the_smaller_of_two_limits_counts_and_sizes_are_counted_again(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand.change_policy(WEB, f"{DB}    maxTargetsPercent: 50\n    maxTargets: 3\n")
    await bind(stand, "web-1", "web-2")
    await stand.admit(agent_id="web-1")
    with pytest.raises(ResourceExhausted):
        await stand.admit(agent_id="web-2")
    monkeypatch.setattr(populations, "REFRESH_SECONDS", 0.0)
    await bind(stand, *(f"web-{number}" for number in range(3, 11)))
    for agent in ("web-2", "web-3"):
        await stand.admit(agent_id=agent)
    with pytest.raises(ResourceExhausted):
        await stand.admit(agent_id="web-4")


async def test_sizes_do_not_pile_up(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(populations, "MAX_REMEMBERED", 1)
    stand.change_policy(FREE, FREE + "    maxTargetsPercent: 50\n")
    await stand.admit()
    stand.change_policy(f'agents: ["web-*"]\n    {FREE}', f'agents: ["web-1"]\n    {FREE}')
    with pytest.raises(ResourceExhausted):
        await stand.admit()
    assert len(stand.admitter._populations._sizes) == 1
