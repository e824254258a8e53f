"""Attachments in the ledger and in the audit trail, on a real Redis."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from admissions import AGENT, Stand, peer
from tachikoma.errors import FailedPrecondition, NotFound
from tachikoma.redis import keys
from tachikoma.redis.commands import Redis
from tachikoma.vocabulary.audit import AuditCode
from tachikoma.vocabulary.requests import ExecRequest
from tachikoma.vocabulary.states import ExecState
from tachikoma_orchestrator.sessions import attachment as module
from tachikoma_orchestrator.sessions.attachment import MAX_EVENTS, Attachment, ExecutionEnded
from tachikoma_orchestrator.store.scripts import Call


@pytest.fixture
async def stand(redis: Redis, tmp_path: Path) -> Stand:
    return await Stand.make(redis, tmp_path)


async def interactive(stand: Stand) -> str:
    """Admit an interactive execution."""
    request = ExecRequest(agent_id=AGENT, command=("true",), interactive=True, tty=True)
    assert await stand.admitter.admit(request, peer(), session=True)
    return request.id


def attachment(stand: Stand, exec_id: str) -> Attachment:
    return Attachment(stand.redis, AGENT, exec_id, peer())


async def field(stand: Stand, exec_id: str, name: str) -> str:
    return ((await stand.redis.hget(keys.execution(exec_id), name)) or b"").decode()


async def test_a_caller_opens_uses_and_leaves_a_session(stand: Stand) -> None:
    exec_id = await interactive(stand)
    attached = attachment(stand, exec_id)
    await attached.begin(opened=True)
    assert attached.epoch == 1
    assert await field(stand, exec_id, "attached_by") == str(peer())
    assert await attached.next_epoch() == 2
    await attached.note(AuditCode.SESSION_SIGNALLED, "INT")
    await attached.end("the caller left it")
    assert await field(stand, exec_id, "attached_by") == ""
    events = [event for event in await stand.events(exec_id) if event.event.startswith("session_")]
    assert [event.event for event in events] == ["session_opened", "session_signalled", "session_detached"]
    assert [event.reason for event in events] == [
        "from 192.0.2.7", "from 192.0.2.7: INT", "from 192.0.2.7: the caller left it"
    ]  # fmt: skip
    assert all(event.actor == event.requested_by == str(peer()) and event.authorized for event in events)


@pytest.mark.parametrize("older", [{}, {"session_owner": "an earlier one", "epoch": "1"}], ids=["rebuilt", "older"])
async def test_a_caller_keeps_its_place_in_a_record_that_went_back(stand: Stand, older: dict[str, str]) -> None:
    exec_id = await interactive(stand)
    attached = attachment(stand, exec_id)
    await attached.begin(opened=True)
    assert await attached.next_epoch() == 2
    for name in ("attached_by", "session_owner", "epoch"):
        await stand.redis.execute_command("HDEL", keys.execution(exec_id), name)
    for name, value in older.items():
        await stand.redis.hset(keys.execution(exec_id), name, value)
    # The agent knows the second epoch, so the next one is the third.
    assert await attached.next_epoch() == 3
    assert await field(stand, exec_id, "attached_by") == str(peer())
    other = attachment(stand, exec_id)
    await other.begin(opened=False)
    with pytest.raises(FailedPrecondition, match="another caller has attached"):
        await attached.next_epoch()


async def test_another_caller_takes_the_place_and_keeps_it(stand: Stand) -> None:
    exec_id = await interactive(stand)
    first, second = attachment(stand, exec_id), attachment(stand, exec_id)
    await first.begin(opened=True)
    await second.begin(opened=False)
    assert (first.epoch, second.epoch) == (1, 2)
    with pytest.raises(FailedPrecondition, match="another caller has attached"):
        await first.next_epoch()
    await first.end("it was taken over")
    assert await field(stand, exec_id, "attached_by") == str(peer())
    assert await second.next_epoch() == 3


async def test_an_answer_of_redis_that_is_lost_costs_a_number_and_nothing_else(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    exec_id = await interactive(stand)
    attached = attachment(stand, exec_id)
    run = attached._runner.run

    async def lose(call: Call) -> None:
        await run(call)
        raise ConnectionError("the connection broke")

    with monkeypatch.context() as lossy:
        lossy.setattr(attached._runner, "run", lose)
        for begin in (attached.begin(opened=True), attached.next_epoch()):
            with pytest.raises(ConnectionError):
                await begin
    await attached.begin(opened=True)
    assert await attached.next_epoch() == 4
    await attached.end("the caller left it")
    events = [event.event for event in await stand.events(exec_id) if event.event.startswith("session_")]
    assert events == ["session_opened", "session_detached"]


async def test_no_caller_comes_between_the_check_and_the_epoch(stand: Stand) -> None:
    """Callers that take the place from each other at the same time: each epoch has one owner."""
    exec_id = await interactive(stand)
    attachments = [attachment(stand, exec_id) for _ in range(8)]
    epochs: list[int] = []

    async def use(attached: Attachment) -> None:
        await attached.begin(opened=False)
        epochs.append(attached.epoch)
        for _ in range(5):
            try:
                epochs.append(await attached.next_epoch())
            except FailedPrecondition:
                return

    await asyncio.gather(*map(use, attachments))
    assert sorted(epochs) == list(range(1, len(epochs) + 1))
    owners = [attached for attached in attachments if attached.epoch == max(epochs)]
    assert [attached._name for attached in owners] == [await field(stand, exec_id, "session_owner")]


async def test_events_of_one_kind_are_bounded_and_counted(stand: Stand) -> None:
    exec_id = await interactive(stand)
    attached = attachment(stand, exec_id)
    await attached.begin(opened=True)
    for number in range(MAX_EVENTS + 7):
        await attached.note(AuditCode.SESSION_RESIZED, str(number))
    await attached.end("the connection ended")
    events = await stand.events(exec_id)
    assert sum(event.event == "session_resized" for event in events) == MAX_EVENTS
    assert events[-1].reason.endswith("the connection ended; without events of their own: 7 more session_resized")


async def test_an_execution_that_ended_has_no_session(stand: Stand) -> None:
    exec_id = await interactive(stand)
    attached = attachment(stand, exec_id)
    await attached.begin(opened=True)
    await stand.ledger.settle(
        AGENT, exec_id, [ExecState.QUEUED], ExecState.CANCELLED, reason="it was cancelled", fence=True
    )
    with pytest.raises(ExecutionEnded):
        await attached.next_epoch()
    late = attachment(stand, exec_id)
    with pytest.raises(ExecutionEnded, match="has ended"):
        await late.begin(opened=False)
    await stand.redis.delete(keys.execution(exec_id))
    with pytest.raises(NotFound):
        await late.begin(opened=False)


async def test_a_caller_whose_orchestrator_was_killed_is_not_named_for_long(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ENTRY_SECONDS", 0.3)
    exec_id = await interactive(stand)
    attached = attachment(stand, exec_id)

    async def named() -> str:
        record = await stand.ledger.record(exec_id)
        assert record is not None
        return record.status().attached_by

    await attached.begin(opened=True)
    first = int(await field(stand, exec_id, "attached_until_ms"))
    # By the clock of Redis, and by this one.
    await asyncio.sleep(max(0.0, first / 1000 - time.time()))
    assert not await named()
    # One that is still there says so.
    monkeypatch.setattr(module, "ENTRY_SECONDS", 60)
    await attached.renew()
    assert await named() == str(peer())
    assert int(await field(stand, exec_id, "attached_until_ms")) > first
    assert [event.event for event in await stand.events(exec_id) if event.event.startswith("session_")] == [
        "session_opened"
    ]


async def test_a_caller_whose_place_another_one_has_renews_nothing(stand: Stand) -> None:
    exec_id = await interactive(stand)
    first, second = attachment(stand, exec_id), attachment(stand, exec_id)
    await first.begin(opened=True)
    await second.begin(opened=False)
    await second.end("it left")
    await first.renew()
    assert await field(stand, exec_id, "attached_by") == ""
