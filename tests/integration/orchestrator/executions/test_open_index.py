"""The index of open executions after a loss of data, on a real Redis."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from members import AGENT, OPERATOR, Stand
from tachikoma.redis import keys
from tachikoma.redis.commands import Redis
from tachikoma.vocabulary.requests import ExecRequest
from tachikoma.vocabulary.states import ExecState
from tachikoma_orchestrator.executions import restoration as module
from tachikoma_orchestrator.executions.restoration import OpenIndex
from tachikoma_orchestrator.executions.transitions import Admission, Dispatch


class Lives:
    """The lives of Redis: only the last loss."""

    valid_from = 0


@pytest.fixture
def lives() -> Lives:
    return Lives()


@pytest.fixture
async def index(redis: Redis, tmp_path: Path, lives: Any, monkeypatch: pytest.MonkeyPatch) -> OpenIndex:
    """The index, and three executions, of which the second has ended."""
    monkeypatch.setattr(module, "COMPARED", 2)
    monkeypatch.setattr(module, "SCANNED", 1)
    stand = Stand(redis, tmp_path)
    await redis.set(keys.info(AGENT), "{}")
    for name in ("one", "two", "three"):
        request = ExecRequest(id=name, agent_id=AGENT, command=["/bin/true"], requested_by=str(OPERATOR))
        admission = Admission(
            request, request.command, "digest", "web@1", "", timedelta(minutes=9), timedelta(hours=1), {}
        )
        await stand.ledger.admit(admission, Dispatch("digest", "order", "web@1", b"m"))
    await stand.ledger.settle(AGENT, "two", [ExecState.QUEUED], ExecState.EXPIRED, reason="late", fence=True)
    return OpenIndex(redis, stand.ledger, lives)


async def entries(redis: Redis) -> set[bytes]:
    return set(await redis.zrange(keys.OPEN, 0, -1))


async def test_it_has_every_open_execution_after_a_loss(redis: Redis, index: OpenIndex, lives: Lives) -> None:
    await redis.delete(keys.OPEN)
    await index.restore_if_needed()
    assert await entries(redis) == set()
    lives.valid_from = 2
    await index.restore_if_needed()
    assert await entries(redis) == {b"one", b"three"}
    # Once for each loss.
    await redis.delete(keys.OPEN)
    await index.restore_if_needed()
    assert await entries(redis) == set()
    lives.valid_from = 3
    await index.restore_if_needed()
    assert await entries(redis) == {b"one", b"three"}


async def test_it_has_every_open_execution_after_it_was_damaged(redis: Redis, index: OpenIndex) -> None:
    await redis.delete(keys.OPEN, keys.INDEX)
    index.note_damage()
    await index.restore_if_needed()
    assert await entries(redis) == {b"one", b"three"}
    await redis.delete(keys.OPEN)
    await index.restore_if_needed()
    assert await entries(redis) == set()


@pytest.mark.parametrize("key", [keys.INDEX, keys.OPEN, keys.execution("three")])
async def test_a_value_of_another_type_stops_no_pass(redis: Redis, index: OpenIndex, lives: Lives, key: str) -> None:
    lives.valid_from = 2
    await redis.delete(keys.OPEN, key)
    await redis.set(key, "a string")
    await index.restore_if_needed()
    if key == keys.execution("three"):
        assert await entries(redis) == {b"one"}
    if key == keys.INDEX:
        assert await entries(redis) == {b"one", b"three"}
