"""The messages that arrive in a call, as bytes: parsed after the caller was authenticated."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import TypeAlias

from google.protobuf.message import DecodeError, Message

from tachikoma.errors import InvalidRequest

__all__ = ["Parse", "dialogue_of", "first_message", "parsed"]

#: Longest time in which a request must arrive after its call.
RECEIVE_SECONDS = 60.0

#: Parses a message of a call; raises DecodeError.
Parse: TypeAlias = Callable[[bytes], Message]


async def first_message(requests: AsyncIterator[bytes]) -> bytes:
    """Return the first message of a call; it is the request.

    Raises:
        InvalidRequest: it does not come in time.
    """
    try:
        async with asyncio.timeout(RECEIVE_SECONDS):
            async for raw in requests:
                return raw
    except TimeoutError:
        raise InvalidRequest(f"the request did not arrive within {RECEIVE_SECONDS:.0f} s") from None
    raise InvalidRequest("the call has no request")


def parsed(raw: bytes, parse: Parse) -> Message:
    """Return the message in some bytes.

    Raises:
        InvalidRequest: the bytes cannot be parsed.
    """
    try:
        return parse(raw)
    except DecodeError:
        raise InvalidRequest("the request is no message of this API") from None


async def dialogue_of(first: Message, requests: AsyncIterator[bytes], parse: Parse) -> AsyncIterator[Message]:
    """Yield the messages of a dialogue, the first one included.

    Raises:
        InvalidRequest: a message cannot be parsed.
    """
    yield first
    async for raw in requests:
        yield parsed(raw, parse)
