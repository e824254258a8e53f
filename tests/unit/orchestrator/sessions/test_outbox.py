"""Messages to an attached caller: in order, bounded, and with the latest progress only."""

from __future__ import annotations

import asyncio

import pytest

from tachikoma.vocabulary.messages import OutputKind
from tachikoma.vocabulary.results import ExecOutput, ExecResponse, InputAccepted
from tachikoma.vocabulary.states import ExecState
from tachikoma_orchestrator.sessions.outbox import MAX_WAITING, Outbox

RESULT = ExecOutput(
    id="e", kind=OutputKind.RESULT, result=ExecResponse(id="e", agent_id="a", state=ExecState.SUCCEEDED)
)


def chunk(number: int) -> ExecOutput:
    return ExecOutput(id="e", kind=OutputKind.STDOUT, seq=number + 1, data=b"12345", offset=5 * number)


async def test_output_keeps_its_order_and_ends_with_the_result() -> None:
    outbox = Outbox()

    async def fill() -> None:
        for number in range(20):
            await outbox.put(chunk(number))
            outbox.accept("e", InputAccepted(offset=number))
        await outbox.put(RESULT)

    filling = asyncio.create_task(fill())
    seen = [message async for message in outbox.messages()]
    await filling
    assert [message.seq for message in seen if message.kind is OutputKind.STDOUT] == list(range(1, 21))
    assert seen[-1] is RESULT
    progress = [message.accepted.offset for message in seen if message.accepted is not None]
    assert progress == sorted(progress)
    assert outbox.sent_bytes == 100
    assert outbox.sent_more.is_set()


async def test_a_caller_that_does_not_read_stops_the_output_and_not_the_progress() -> None:
    outbox = Outbox()
    for number in range(MAX_WAITING):
        await outbox.put(chunk(number))
    waiting = asyncio.create_task(outbox.put(chunk(MAX_WAITING)))
    for number in range(1000):
        outbox.accept("e", InputAccepted(offset=number))
    await asyncio.sleep(0)
    assert not waiting.done()
    messages = outbox.messages()
    first = await anext(messages)
    assert first.accepted == InputAccepted(offset=999)
    assert (await anext(messages)).seq == 1
    await waiting
    # A chunk counts as sent when the next message is asked for.
    assert outbox.sent_bytes == 0
    assert (await anext(messages)).seq == 2
    assert outbox.sent_bytes == 5


async def test_the_end_comes_after_what_waits_and_may_be_an_error() -> None:
    outbox = Outbox()
    await outbox.put(chunk(0))
    outbox.finish(ValueError("why"))
    messages = outbox.messages()
    assert (await anext(messages)).seq == 1
    with pytest.raises(ValueError, match="why"):
        await anext(messages)
    empty = Outbox()
    empty.finish()
    assert [message async for message in empty.messages()] == []
