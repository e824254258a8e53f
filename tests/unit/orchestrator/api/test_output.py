"""The streams of output: a caller that follows is not disturbed by a ledger that loses the record meanwhile."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tachikoma.errors import InvalidRequest, RecordAltered
from tachikoma.vocabulary.states import ExecState
from tachikoma_orchestrator.api.output import LAST_CHUNK, OutputCalls
from tachikoma_orchestrator.executions.record import Record
from tachikoma_orchestrator.executions.waiters import Completions


class Ledger:
    """A ledger that has lost a record, or whose value is no record."""

    def __init__(self, *, altered: bool) -> None:
        self.altered = altered

    async def record(self, exec_id: str) -> Record | None:
        if self.altered:
            raise RecordAltered(f"the record of {exec_id} in Redis cannot be read")
        return None


@pytest.mark.parametrize("altered", [True, False])
@pytest.mark.parametrize("state", [ExecState.QUEUED, ExecState.STARTED])
async def test_a_follower_whose_record_is_lost_waits_for_its_answer(altered: bool, state: ExecState) -> None:
    parts = SimpleNamespace(ledger=Ledger(altered=altered), completions=Completions())
    record = cast(Record, SimpleNamespace(exec_id="job-7", state=state))
    assert await OutputCalls(cast(Any, parts))._wait_for_approval(record) is record


@pytest.mark.parametrize("altered", [True, False])
async def test_a_follower_of_a_parked_request_whose_record_is_lost_goes_on_at_its_end(altered: bool) -> None:
    parts = SimpleNamespace(ledger=Ledger(altered=altered), completions=Completions())
    record = cast(Record, SimpleNamespace(exec_id="job-7", state=ExecState.PENDING_APPROVAL))
    calls = OutputCalls(cast(Any, parts))
    waiting = calls._wait_for_approval(record)

    async def end() -> None:
        parts.completions.approvals.resolve("job-7", None)

    # The event loop runs the second when the first waits.
    found, _ = await asyncio.gather(waiting, end())
    assert found is record


@pytest.mark.parametrize("after_seq", [2**63, 2**63 + 5, 2**64 - 1])
def test_a_number_that_no_chunk_has_is_refused(after_seq: int) -> None:
    calls = OutputCalls(cast(Any, SimpleNamespace(redis=None, output_subscriber=None)))
    with pytest.raises(InvalidRequest, match=f"after_seq is at most {LAST_CHUNK}, not {after_seq}"):
        calls._follower("web-1", "job-7", after_seq)
    assert calls._follower("web-1", "job-7", LAST_CHUNK).seq == LAST_CHUNK
