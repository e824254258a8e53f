"""A session's names in Redis: entries are read once and trimmed, and notices arrive."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from patience import PATIENCE_SECONDS
from tachikoma.redis import keys
from tachikoma.redis.commands import Redis
from tachikoma.sessions.messages import Answer, Entry, Offer, OfferWanted, Sealed, decode_notice, encode_entry
from tachikoma_worker.sessions.mailbox import Mailbox

AGENT, EXECUTION = "web-1", "job-7"
KEY, NAME = keys.input(AGENT, EXECUTION), keys.session(AGENT, EXECUTION)


@pytest.fixture
def mailbox(redis: Redis, subscriptions: Redis) -> Mailbox:
    return Mailbox(redis, subscriptions, AGENT, EXECUTION)


async def add(redis: Redis, *entries: Entry) -> None:
    for entry in entries:
        await redis.xadd(KEY, encode_entry(entry))


async def take(entries: AsyncIterator[Entry], count: int) -> list[Entry]:
    async with asyncio.timeout(PATIENCE_SECONDS):
        return [await anext(entries) for _ in range(count)]


async def test_entries_come_in_order_and_those_that_are_none_are_skipped(redis: Redis, mailbox: Mailbox) -> None:
    entries: list[Entry] = [Offer("abc"), Sealed(b"x" * 40), Sealed(b"y" * 40)]
    await add(redis, entries[0])
    await redis.xadd(KEY, {b"z": b"nothing"})
    await redis.xadd(KEY, {b"o": b"\xff"})
    await add(redis, *entries[1:])
    reading = mailbox.read()
    assert await take(reading, 3) == entries
    following = asyncio.ensure_future(take(reading, 1))
    # The reader mostly waits by then; it finds the entry in any case.
    await asyncio.sleep(0.05)
    await add(redis, Offer("later"))
    assert await following == [Offer("later")]


async def test_what_was_read_is_trimmed_with_the_next_notice(redis: Redis, mailbox: Mailbox) -> None:
    await add(redis, *(Sealed(b"%040d" % number) for number in range(20)))
    await take(mailbox.read(), 7)
    assert await mailbox.publish([]) == 7
    assert len(await redis.xrange(KEY)) == 13


async def test_what_an_earlier_worker_may_have_read_is_skipped(redis: Redis, mailbox: Mailbox) -> None:
    await add(redis, *(Sealed(b"%040d" % number) for number in range(50)))
    await mailbox.skip()
    await add(redis, Offer("new"))
    assert await take(mailbox.read(), 1) == [Offer("new")]


async def test_notices_are_published_in_order_and_an_answer_is_stored(redis: Redis, mailbox: Mailbox) -> None:
    assert await mailbox.publish([OfferWanted()]) == 0
    pubsub = redis.pubsub()
    await pubsub.subscribe(NAME)
    await pubsub.get_message(timeout=PATIENCE_SECONDS)
    notices = [OfferWanted(), Answer("abc"), Sealed(b"x" * 40)]
    assert await mailbox.publish(notices) == 1
    messages = [await pubsub.get_message(timeout=PATIENCE_SECONDS) for _ in notices]
    assert [decode_notice(message["data"]) for message in messages if message is not None] == notices
    assert await redis.get(NAME) == b"Aabc"
    assert await redis.ttl(NAME) > 0
    await pubsub.aclose()


async def test_a_value_of_another_type_is_removed_and_reading_continues(redis: Redis, mailbox: Mailbox) -> None:
    await redis.set(KEY, "x")
    reading = asyncio.ensure_future(take(mailbox.read(), 1))
    async with asyncio.timeout(PATIENCE_SECONDS):
        while await redis.exists(KEY):  # noqa: ASYNC110 (nothing announces it)
            await asyncio.sleep(0.01)
    await add(redis, Offer("abc"))
    assert await reading == [Offer("abc")]


async def test_the_input_of_a_session_that_has_ended_is_removed(redis: Redis, mailbox: Mailbox) -> None:
    await add(redis, Offer("abc"))
    await mailbox.remove()
    assert not await redis.exists(KEY)
