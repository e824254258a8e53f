"""Messages of a call: the first one must come in time, and each must be one of this API."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from tachikoma.errors import InvalidRequest
from tachikoma.exec.v1 import remote_execution_pb2 as pb
from tachikoma_orchestrator.api import incoming

PARSE = pb.CancelRequest.FromString
FIRST, SECOND = pb.CancelRequest(id="a"), pb.CancelRequest(id="b")


async def _messages(*messages: bytes) -> AsyncIterator[bytes]:
    for message in messages:
        yield message


async def test_a_dialogue_has_the_first_message_and_the_later_ones() -> None:
    requests = _messages(FIRST.SerializeToString(), SECOND.SerializeToString())
    first = incoming.parsed(await incoming.first_message(requests), PARSE)
    assert [message async for message in incoming.dialogue_of(first, requests, PARSE)] == [FIRST, SECOND]


async def test_a_call_without_a_message_is_invalid() -> None:
    with pytest.raises(InvalidRequest, match="has no request"):
        await incoming.first_message(_messages())


async def test_a_message_that_does_not_come_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    async def never() -> AsyncIterator[bytes]:
        await asyncio.Event().wait()
        yield b""

    monkeypatch.setattr(incoming, "RECEIVE_SECONDS", 0.01)
    with pytest.raises(InvalidRequest, match="did not arrive within"):
        await incoming.first_message(never())


async def test_bytes_that_are_no_message_are_invalid() -> None:
    with pytest.raises(InvalidRequest, match="no message of this API"):
        incoming.parsed(b"\xff", PARSE)
    dialogue = incoming.dialogue_of(FIRST, _messages(b"\xff"), PARSE)
    assert await anext(dialogue) == FIRST
    with pytest.raises(InvalidRequest):
        await anext(dialogue)
