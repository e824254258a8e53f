"""Lists of executions: bounded work for each call, and nothing that is missed."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from admissions import ALICE, Stand, peer
from tachikoma.exec.v1 import remote_execution_pb2 as pb
from tachikoma.redis import keys
from tachikoma.redis.commands import Redis
from tachikoma_orchestrator.api import guard
from tachikoma_orchestrator.api import overview as module
from tachikoma_orchestrator.api.overview import OverviewCalls

OLD = 130


@pytest.fixture
async def stand(redis: Redis, tmp_path: Path) -> Stand:
    """A failed execution, and many newer ones that succeeded."""
    stand = await Stand.make(redis, tmp_path, queue_size=1000)
    ids = [await stand.admit("true") for _ in range(OLD + 1)]
    for number, exec_id in enumerate(ids):
        state = "SUCCEEDED" if number else "FAILED"
        await redis.hset(keys.execution(exec_id), "state", state)
        await redis.hset(keys.execution(exec_id), "history", f"QUEUED 1;{state} 2")
    return stand


def calls(stand: Stand) -> OverviewCalls:
    guard._peer.set(peer(ALICE))
    parts = SimpleNamespace(ledger=stand.ledger, registry=stand.registry, policies=stand.policies)
    return OverviewCalls(parts)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [0, 1, 10, 50, 1000])
@pytest.mark.parametrize("step", [7, 250])
async def test_a_failed_execution_is_found_behind_many_that_succeeded(
    stand: Stand, monkeypatch: pytest.MonkeyPatch, size: int, step: int
) -> None:
    monkeypatch.setattr(module, "STEP", step)
    found = await calls(stand).List(pb.ListRequest(states=[pb.EXEC_STATE_FAILED], page_size=size), None)
    assert len(found.executions) == 1


@pytest.mark.parametrize("size", [1, 2, 50, 1000])
async def test_a_call_looks_at_a_bounded_number_whatever_its_page_and_the_next_goes_on(
    stand: Stand, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(module, "STEP", 10)
    monkeypatch.setattr(module, "MAX_STEPS", 3)
    looked = 0
    records = stand.ledger.records

    async def counting(ids: list[str]) -> list[object]:
        nonlocal looked
        looked += len(ids)
        return list(await records(ids))

    monkeypatch.setattr(stand.ledger, "records", counting)
    pages, token, found = 0, "", []
    while True:
        before = looked
        page = await calls(stand).List(
            pb.ListRequest(states=[pb.EXEC_STATE_FAILED], page_size=size, page_token=token), None
        )
        assert looked - before <= 30
        pages, token = pages + 1, page.next_page_token
        found += page.executions
        if not token:
            break
    assert len(found) == 1
    assert pages >= OLD // 30


async def test_every_execution_is_in_exactly_one_page(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STEP", 4)
    token, ids = "", []
    while True:
        page = await calls(stand).List(pb.ListRequest(include_ended=True, page_size=9, page_token=token), None)
        ids += [item.id for item in page.executions]
        token = page.next_page_token
        if not token:
            break
    assert len(ids) == len(set(ids)) == OLD + 1
