"""Names in Redis: nobody's name is, or falls under, another's."""

from __future__ import annotations

from fnmatch import fnmatchcase
from uuid import UUID

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tachikoma.redis import keys

#: Few characters, so that one id often begins another; with those that have a meaning in patterns left out by the type.
IDS = st.from_regex(r"[a0][a0_-]{0,3}", fullmatch=True) | st.from_regex(
    r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}", fullmatch=True
)


def names(agent: str, exec_id: str) -> list[str]:
    """Every name an agent has in Redis."""
    return [
        keys.queue(agent),
        keys.info(agent),
        keys.events(agent),
        keys.control(agent),
        keys.claim(agent, exec_id),
        keys.output(agent, exec_id),
        keys.read(agent, exec_id),
        keys.cancel(agent, exec_id),
        keys.input(agent, exec_id),
        keys.session(agent, exec_id),
        keys.report(agent, 5, exec_id),
        keys.result(agent, exec_id),
    ]


def granted(agent: str) -> list[str]:
    """The patterns of an agent's ACL user (facts/celery-redis.md)."""
    return [f"agent.{agent}", f"agent.{agent}:*", f"celery-task-meta-{agent}.*"]


@given(IDS, IDS, IDS, IDS)
def test_no_name_of_one_agent_falls_under_the_patterns_of_another(
    agent: str, other: str, exec_id: str, other_exec: str
) -> None:
    assume(agent != other)
    for name in names(other, other_exec):
        assert not any(fnmatchcase(name, pattern) for pattern in granted(agent))
    for name in names(agent, exec_id):
        assert any(fnmatchcase(name, pattern) for pattern in granted(agent))


@given(IDS, IDS, IDS, IDS)
def test_names_that_belong_to_one_execution_never_begin_those_of_another_agent(
    agent: str, other: str, exec_id: str, other_exec: str
) -> None:
    assume(agent != other)
    for mine in names(agent, exec_id)[1:]:
        assert not any(theirs.startswith(mine) for theirs in names(other, other_exec))


@given(IDS, IDS, IDS, IDS)
def test_two_executions_never_share_a_name(agent: str, exec_id: str, other: str, other_exec: str) -> None:
    assume((agent, exec_id) != (other, other_exec))
    mine = {keys.claim(agent, exec_id), keys.output(agent, exec_id), keys.cancel(agent, exec_id)}
    theirs = {keys.claim(other, other_exec), keys.output(other, other_exec), keys.cancel(other, other_exec)}
    assert not (mine | {keys.result(agent, exec_id)}) & (theirs | {keys.result(other, other_exec)})


@given(IDS, IDS)
def test_names_of_agents_and_of_the_orchestrator_are_apart(agent: str, exec_id: str) -> None:
    own = [keys.INDEX, keys.OPEN, keys.AGENTS, keys.AUDIT, keys.ENDED, keys.execution(exec_id), keys.agent_index(agent)]
    assert len(set(own)) == len(own)
    assert all(name.startswith("orch:") for name in own)
    assert not any(name.startswith("orch:") for name in names(agent, exec_id))


@given(IDS, IDS)
def test_what_was_put_together_comes_apart_again(agent: str, exec_id: str) -> None:
    assert keys.split_task_id(keys.task_id(agent, exec_id)) == (agent, exec_id)
    assert keys.execution_of_channel(keys.report(agent, 63, exec_id)) == (agent, exec_id)
    for channel in names(agent, exec_id)[:-1]:
        assert keys.agent_of_channel(channel) == agent


@pytest.mark.parametrize("value", ["", ".", "a", "a.", ".e", "celery", "6f1c2f0e-4b52-4f6e-8a0f-0d3c8e7f1a2b"])
def test_a_task_id_of_somebody_else_is_not_taken_apart(value: str) -> None:
    with pytest.raises(ValueError, match=r"is not <agent>\.<execution>"):
        keys.split_task_id(value)


@given(IDS, IDS)
def test_the_orchestrator_hears_every_agent(agent: str, exec_id: str) -> None:
    assert fnmatchcase(keys.events(agent), keys.ALL_EVENTS)
    assert fnmatchcase(keys.info(agent), keys.ALL_INFO)
    assert fnmatchcase(keys.report(agent, 7, exec_id), keys.reports_to(7))
    assert not fnmatchcase(keys.report(agent, 17, exec_id), keys.reports_to(7))
    assert not any(fnmatchcase(name, keys.ALL_CELERY_EVENTS) for name in names(agent, exec_id))
    # And nothing else over these patterns, for its handlers trust the form of the name.
    assert not any(fnmatchcase(name, keys.ALL_EVENTS) for name in names(agent, exec_id) if name != keys.events(agent))


@given(IDS, IDS, st.uuids())
def test_results_of_applications_are_nobody_elses(agent: str, exec_id: str, own: UUID) -> None:
    agents, commands, tasks = (
        keys.result(agent, exec_id),
        keys.application_result(agent, exec_id),
        keys.own_result(str(own)),
    )
    assert fnmatchcase(tasks, keys.ALL_OWN_RESULTS)
    assert not fnmatchcase(agents, keys.ALL_OWN_RESULTS)
    assert not fnmatchcase(commands, keys.ALL_OWN_RESULTS)
    assert not fnmatchcase(agents, keys.application_result("*", "*"))
    for foreign in (agents, commands, tasks):
        with pytest.raises(ValueError, match=r"is no channel of reports"):
            keys.execution_of_channel(foreign)
