"""Callers that wait for a final state or an approval."""

from __future__ import annotations

import asyncio

import pytest

from tachikoma.vocabulary.results import ExecResponse
from tachikoma.vocabulary.states import ExecState
from tachikoma_orchestrator.executions.final_state import FinalState
from tachikoma_orchestrator.executions.waiters import Completions

FINAL = FinalState("job-7", ExecResponse(id="job-7", agent_id="web-1", state=ExecState.SUCCEEDED, exit_code=0))


async def test_every_caller_of_an_execution_gets_its_final_state_and_no_other() -> None:
    completions = Completions()
    with completions.expect("job-7") as one, completions.expect("job-7") as two, completions.expect("job-8") as other:
        assert sorted(completions.all_awaited()) == ["job-7", "job-8"]
        completions.deliver(FINAL)
        assert (await one, await two, other.done()) == (FINAL, FINAL, False)
        assert not completions.awaited("job-7")
        assert completions.awaited("job-8")
    assert completions.all_awaited() == []


async def test_a_second_delivery_changes_nothing() -> None:
    completions = Completions()
    with completions.expect("job-7") as end:
        completions.deliver(FINAL)
        completions.deliver(FinalState("job-7", FINAL.response().model_copy(update={"exit_code": 9})))
        assert await end is FINAL


async def test_a_final_state_ends_the_wait_for_an_approval() -> None:
    completions = Completions()
    with completions.approvals.expect("job-7") as approval:
        completions.deliver(FINAL)
        assert await approval is None


async def test_a_caller_that_left_is_forgotten() -> None:
    completions = Completions()
    with pytest.raises(ZeroDivisionError), completions.expect("job-7") as end:
        raise ZeroDivisionError
    assert end.cancelled()
    completions.deliver(FINAL)
    assert completions.all_awaited() == []


async def test_a_delivery_before_a_caller_comes_is_not_kept() -> None:
    completions = Completions()
    completions.deliver(FINAL)
    with completions.expect("job-7") as end:
        await asyncio.sleep(0)
        assert not end.done()
