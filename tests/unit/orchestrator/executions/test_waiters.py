"""Callers that wait for a final state or an approval."""

from __future__ import annotations

import asyncio

import pytest

from tachikoma.errors import ResultUnknown
from tachikoma.identity.signed_messages import OutputDigest, Receipt
from tachikoma.vocabulary.limits import ResourceUsage
from tachikoma.vocabulary.results import ExecResponse
from tachikoma.vocabulary.states import ExecState
from tachikoma_orchestrator.executions import waiters
from tachikoma_orchestrator.executions.final_state import FinalState, VerifiedReceipt
from tachikoma_orchestrator.executions.waiters import AwaitedOrder, Completions

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


# --- callers whose record the ledger lost -----------------------------------------------------------------------------

FIRST, SECOND = AwaitedOrder("web-1", "first"), AwaitedOrder("web-1", "second")


def receipt(order_sha256: str) -> VerifiedReceipt:
    digest = OutputDigest(total_bytes=0, sha256="", truncated=True, excerpt_sha256="0" * 64)
    signed = Receipt.model_construct(
        jti="job-7", order_sha256=order_sha256, state=ExecState.SUCCEEDED, exit_code=0, signal=0, error="",
        started_ms=0, ended_ms=0, duration_us=0, stdout=digest, stderr=digest, usage=ResourceUsage(), kill=None,
    )  # fmt: skip
    return VerifiedReceipt(signed, "token", b"", b"")


async def test_a_receipt_answers_only_the_callers_of_its_order() -> None:
    completions = Completions()
    with completions.expect("job-7") as first:
        completions.note_order("job-7", AwaitedOrder("web-1", ""))
        completions.note_order("job-7", FIRST)
        with completions.expect("job-7") as second:
            completions.note_order("job-7", SECOND)
            assert completions.orders("job-7") == {FIRST, SECOND}
            assert not completions.answer("web-2", receipt("first"))
            assert not completions.answer("web-1", receipt(""))
            assert completions.answer("web-1", receipt("first"))
            assert (first.done(), second.done()) == (True, False)
            completions.deliver(FINAL, "first")
            assert not second.done()
            completions.deliver(FINAL, "second")
            assert await second is FINAL


async def test_only_accepted_callers_are_given_up_and_only_those_of_a_lost_order() -> None:
    completions = Completions()
    with completions.expect("job-7") as known:
        completions.note_order("job-7", FIRST)
        with completions.expect("job-7") as in_admission:
            assert not completions.give_up("job-7", "first", "lost")
            assert completions.give_up("job-7", "second", "lost")
            with pytest.raises(ResultUnknown, match="whether job-7 ran is unknown: lost"):
                (await known).response()
            assert not completions.give_up("job-7", "", "lost")
            assert not in_admission.done()


async def test_a_look_waits_for_a_final_state_that_is_being_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    completions = Completions()
    recording: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
    completions.note_recording("job-7", recording)
    # Others do not wait.
    await completions.recorded("job-8")
    look = asyncio.create_task(completions.recorded("job-7"))
    await asyncio.sleep(0)
    assert not look.done()
    recording.set_result(True)
    await look
    # A recording that fails is the business of whoever records.
    failed: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
    completions.note_recording("job-7", failed)
    failed.set_exception(OSError("Redis is away"))
    await completions.recorded("job-7")
    assert isinstance(failed.exception(), OSError)
    # One that hangs holds nobody for ever.
    monkeypatch.setattr(waiters, "RECORDED_SECONDS", 0.01)
    completions.note_recording("job-7", asyncio.get_running_loop().create_future())
    await completions.recorded("job-7")
