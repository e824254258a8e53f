"""Observers in the ledger and in the audit trail, on a real Redis."""

from __future__ import annotations

from pathlib import Path

import pytest

from admissions import AGENT, Stand, peer
from tachikoma.errors import NotFound, ResourceExhausted
from tachikoma.redis import keys
from tachikoma.redis.commands import Redis
from tachikoma.vocabulary.requests import ExecRequest
from tachikoma.vocabulary.states import ExecState
from tachikoma_orchestrator.sessions.attachment import ExecutionEnded
from tachikoma_orchestrator.sessions.observation import MAX_OBSERVERS, Observation


@pytest.fixture
async def stand(redis: Redis, tmp_path: Path) -> Stand:
    return await Stand.make(redis, tmp_path)


async def interactive(stand: Stand) -> str:
    request = ExecRequest(agent_id=AGENT, command=("true",), interactive=True, tty=True)
    assert await stand.admitter.admit(request, peer(), session=True)
    return request.id


async def observers(stand: Stand, exec_id: str) -> tuple[str, ...]:
    record = await stand.ledger.record(exec_id)
    assert record is not None
    return record.status().observers


async def test_an_observer_begins_stays_and_leaves(stand: Stand) -> None:
    exec_id = await interactive(stand)
    observation = Observation(stand.redis, AGENT, exec_id, peer())
    await observation.begin()
    await observation.renew()
    assert await observers(stand, exec_id) == (str(peer()),)
    await observation.end("left")
    assert await observers(stand, exec_id) == ()
    assert await stand.redis.hget(keys.execution(exec_id), "observers") == b"{}"
    assert (await stand.codes(exec_id))[-2:] == ["session_observed", "session_unobserved"]


async def test_the_number_is_bounded(stand: Stand) -> None:
    exec_id = await interactive(stand)
    observations = [Observation(stand.redis, AGENT, exec_id, peer()) for _ in range(MAX_OBSERVERS)]
    for observation in observations:
        await observation.begin()
    another = Observation(stand.redis, AGENT, exec_id, peer())
    with pytest.raises(ResourceExhausted, match="16 observers"):
        await another.begin()
    # An entry that is renewed has its place.
    await observations[0].renew()
    await observations[1].end("left")
    await another.begin()


async def test_an_entry_that_ended_or_is_none_is_removed(stand: Stand) -> None:
    exec_id = await interactive(stand)
    for stored in ('{"dead": ["x", 1], "odd": 7, "none": []}', "no JSON", "[1]"):
        await stand.redis.hset(keys.execution(exec_id), "observers", stored)
        observation = Observation(stand.redis, AGENT, exec_id, peer())
        await observation.begin()
        assert await observers(stand, exec_id) == (str(peer()),)
        await observation.end("left")


async def test_an_execution_that_ended_or_is_unknown_has_none(stand: Stand) -> None:
    exec_id = await interactive(stand)
    with pytest.raises(NotFound):
        await Observation(stand.redis, AGENT, "unknown", peer()).begin()
    with pytest.raises(NotFound):
        await Observation(stand.redis, "another", exec_id, peer()).begin()
    done = await stand.ledger.settle(AGENT, exec_id, [ExecState.QUEUED], ExecState.LOST, reason="a test", fence=False)
    assert done == "DONE"
    with pytest.raises(ExecutionEnded):
        await Observation(stand.redis, AGENT, exec_id, peer()).begin()
