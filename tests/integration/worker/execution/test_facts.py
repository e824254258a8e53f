"""The facts of a command, from real orders and the settings of an agent."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from local_agent import REQUESTER, LocalAgent
from tachikoma.vocabulary.isolation import Isolation
from tachikoma_worker.confinement.prepare import prepare
from tachikoma_worker.execution.facts import facts_of
from tachikoma_worker.output.records import Facts


def made(agent: LocalAgent, **fields: Any) -> Facts:
    context = agent.context
    order = agent.order("/bin/true", **fields)
    prepared = prepare(order, context.settings, context.spawner.uid, context.cgroups, context.enclosures)
    try:
        return facts_of(context, prepared, "ab")
    finally:
        prepared.discard()


def test_facts_name_the_order_and_its_requester(agent: LocalAgent) -> None:
    before = time.monotonic_ns()
    facts = made(agent, order={"reply": 17})
    assert (facts.host, facts.order_sha256, facts.requested_by) == (agent.context.host, "ab", REQUESTER)
    assert (facts.reply, facts.executable, facts.session) == (17, "/bin/true", None)
    assert before <= facts.began_ns <= time.monotonic_ns()


@pytest.mark.parametrize(("asked", "seconds"), [(timedelta(seconds=3), 3.0), ("1.5s", 1.5)])
def test_a_command_may_run_as_long_as_its_order_says(agent: LocalAgent, asked: Any, seconds: float) -> None:
    assert made(agent, timeout=asked).timeout == seconds


def test_the_log_is_never_larger_than_the_agent_allows(agent: LocalAgent) -> None:
    most = agent.context.settings.log_bytes
    assert made(agent).log_bytes == most
    assert made(agent, grant={"output": {"limit": 65536}}).log_bytes == 65536
    assert made(agent, grant={"output": {"limit": 10 * most}}).log_bytes == most


def test_the_grace_before_the_kill_is_the_agents_unless_policy_grants_another(agent: LocalAgent) -> None:
    assert made(agent).kill_grace == agent.context.settings.kill_grace.total_seconds()
    assert made(agent, grant={"kill_grace": 0.25}).kill_grace == 0.25


async def test_facts_say_how_the_command_is_isolated(agent: LocalAgent, need: Callable[[bool, str], None]) -> None:
    need(not agent.context.enclosures._abilities.levels[Isolation.PRIVATE], "namespaces")
    facts = made(agent, grant={"isolation": Isolation.PRIVATE})
    assert facts.isolation is not None
    assert facts.isolation.level is Isolation.PRIVATE
