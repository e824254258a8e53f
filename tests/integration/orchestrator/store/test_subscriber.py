"""The orchestrator's subscription, through cut connections, on a real Redis."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
from redis.exceptions import RedisError, ResponseError

from patience import PATIENCE_SECONDS
from tachikoma.config.tasks import cancel_all
from tachikoma.errors import RecordAltered
from tachikoma.redis.commands import Redis
from tachikoma_orchestrator.store import subscriber as module
from tachikoma_orchestrator.store.subscriber import Subscriber


class Heard:
    """A listener that keeps what it is told."""

    def __init__(self) -> None:
        self.messages: list[bytes] = []
        self.gaps = 0

    def message(self, data: bytes) -> None:
        self.messages.append(data)

    def gap(self) -> None:
        self.gaps += 1

    async def anywhere(self, channel: str, data: bytes) -> None:
        self.messages.append(channel.encode() + b"=" + data)

    async def gap_everywhere(self) -> None:
        self.gaps += 1


@asynccontextmanager
async def running(subscriber: Subscriber) -> AsyncIterator[None]:
    """Run it, from its first connection on."""
    task = asyncio.create_task(subscriber.run())
    try:
        await asyncio.wait_for(subscriber.connected.wait(), PATIENCE_SECONDS)
        yield
    finally:
        await cancel_all([task])


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Come back at once after a cut."""
    monkeypatch.setattr(module, "RETRY_SECONDS", 0.001)


async def cut(redis: Redis) -> None:
    """Cut every connection that subscribes, as a restart of Redis or a firewall does."""
    assert await redis.client_kill_filter(_type="pubsub") >= 1


# --- delivery ---------------------------------------------------------------------------------------------------------


async def test_a_listener_gets_the_messages_of_its_channel_in_order(
    redis: Redis, subscriptions: Redis, until: Any
) -> None:
    subscriber, heard = Subscriber(subscriptions), Heard()
    subscriber.on_pattern("nothing.*", heard.anywhere)
    async with running(subscriber), subscriber.listen("mine", heard.message, heard.gap):
        for number in range(200):
            await redis.publish("mine", b"%d" % number)
            await redis.publish("theirs", b"no")
        await until(lambda: len(heard.messages) >= 200, "all came")
    assert heard.messages == [b"%d" % number for number in range(200)]
    assert heard.gaps == 0


async def test_nothing_is_missed_from_when_the_block_is_entered(redis: Redis, subscriptions: Redis, until: Any) -> None:
    subscriber = Subscriber(subscriptions)
    subscriber.on_pattern("nothing.*", Heard().anywhere)
    async with running(subscriber):
        for number in range(50):
            heard = Heard()
            async with subscriber.listen("mine", heard.message, heard.gap):
                assert await redis.publish("mine", b"%d" % number) == 1
                await until(lambda heard=heard: heard.messages, "it came")
            assert heard.messages == [b"%d" % number]


async def test_nothing_comes_after_the_block_was_left(redis: Redis, subscriptions: Redis, until: Any) -> None:
    subscriber, early, late = Subscriber(subscriptions), Heard(), Heard()
    subscriber.on_pattern("nothing.*", early.anywhere)
    async with running(subscriber), subscriber.listen("mine", late.message, late.gap):
        async with subscriber.listen("mine", early.message, early.gap):
            await redis.publish("mine", b"one")
            await until(lambda: late.messages, "the first came")
        await redis.publish("mine", b"two")
        await until(lambda: len(late.messages) == 2, "the second came")
    assert (early.messages, late.messages) == ([b"one"], [b"one", b"two"])


async def test_redis_is_not_left_with_subscriptions_nobody_needs(
    redis: Redis, subscriptions: Redis, until: Any
) -> None:
    subscriber, heard = Subscriber(subscriptions), Heard()
    subscriber.on_pattern("nothing.*", heard.anywhere)
    async with running(subscriber):
        async with subscriber.listen("mine", heard.message, heard.gap):
            assert await redis.pubsub_numsub("mine") == [(b"mine", 1)]
        # The unsubscription is sent, not awaited; once something comes back it has been done.
        async with subscriber.listen("other", heard.message, heard.gap):
            assert await redis.pubsub_numsub("mine") == [(b"mine", 0)]
    assert subscriber._channels == {}


async def test_several_listeners_of_one_channel_each_get_everything(
    redis: Redis, subscriptions: Redis, until: Any
) -> None:
    subscriber, all_heard = Subscriber(subscriptions), [Heard() for _ in range(20)]
    subscriber.on_pattern("nothing.*", all_heard[0].anywhere)
    async with running(subscriber), AsyncExitStack() as stack:
        for heard in all_heard:
            await stack.enter_async_context(subscriber.listen("mine", heard.message, heard.gap))
        await redis.publish("mine", b"x")
        await until(lambda: all(heard.messages for heard in all_heard), "it came to all")
    assert all(heard.messages == [b"x"] for heard in all_heard)


async def test_listeners_that_come_and_go_at_the_same_time_do_not_disturb_each_other(
    redis: Redis, subscriptions: Redis, until: Any
) -> None:
    subscriber = Subscriber(subscriptions)
    subscriber.on_pattern("nothing.*", Heard().anywhere)

    async def visit(number: int) -> None:
        for _ in range(10):
            heard = Heard()
            async with subscriber.listen(f"channel-{number % 3}", heard.message, heard.gap):
                await redis.publish(f"channel-{number % 3}", b"x")
                await until(lambda heard=heard: heard.messages, "it came")

    async with running(subscriber):
        await asyncio.gather(*(visit(number) for number in range(12)))
    assert subscriber._channels == {}


async def test_a_pattern_handler_gets_channel_and_message(redis: Redis, subscriptions: Redis, until: Any) -> None:
    subscriber, heard = Subscriber(subscriptions), Heard()
    subscriber.on_pattern("agent.*:events", heard.anywhere)
    async with running(subscriber):
        for channel in ("agent.a:events", "agent.b:output:x", "agent.b:events", "orch:ended"):
            await redis.publish(channel, b"\0\xff")
        await until(lambda: len(heard.messages) >= 2, "both came")
    assert heard.messages == [b"agent.a:events=\0\xff", b"agent.b:events=\0\xff"]


async def test_the_first_connection_is_a_gap_for_those_who_read_what_came_before(
    subscriptions: Redis, until: Any
) -> None:
    subscriber, heard = Subscriber(subscriptions), Heard()
    subscriber.on_pattern("x.*", heard.anywhere)
    subscriber.on_gap(heard.gap_everywhere)
    async with running(subscriber):
        await until(lambda: heard.gaps, "it was told")
    assert heard.gaps == 1


async def test_a_listener_may_come_before_there_is_a_connection(redis: Redis, subscriptions: Redis, until: Any) -> None:
    subscriber, heard = Subscriber(subscriptions), Heard()
    subscriber.on_pattern("nothing.*", heard.anywhere)

    async def listen() -> None:
        async with subscriber.listen("mine", heard.message, heard.gap):
            await redis.publish("mine", b"x")
            await until(lambda: heard.messages, "it came")

    waiting = asyncio.create_task(listen())
    await asyncio.sleep(0)
    async with running(subscriber):
        await asyncio.wait_for(waiting, PATIENCE_SECONDS)


async def test_a_subscription_nobody_confirms_is_an_error_of_redis(
    subscriptions: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CONFIRM_SECONDS", 0.01)
    subscriber, heard = Subscriber(subscriptions), Heard()
    with pytest.raises(RedisError, match="no confirmation of the subscription to mine"):
        async with subscriber.listen("mine", heard.message, heard.gap):
            pytest.fail("nobody runs it")
    assert subscriber._channels == {}


# --- cut connections --------------------------------------------------------------------------------------------------


async def test_after_a_cut_everybody_is_told_of_the_gap_and_hears_again(
    redis: Redis, subscriptions: Redis, until: Any, quick: None
) -> None:
    subscriber, channel, pattern = Subscriber(subscriptions), Heard(), Heard()
    subscriber.on_pattern("agent.*:events", pattern.anywhere)
    subscriber.on_gap(pattern.gap_everywhere)
    async with running(subscriber), subscriber.listen("mine", channel.message, channel.gap):
        await until(lambda: pattern.gaps == 1, "the first connection was told")
        for times in range(1, 4):
            await cut(redis)
            await until(lambda times=times: channel.gaps >= times and pattern.gaps >= times + 1, "the gap was told")
            # Told of the gap, whoever reads now and hears from now on misses nothing.
            await redis.publish("mine", b"%d" % times)
            await redis.publish("agent.a:events", b"%d" % times)
            await until(lambda times=times: len(channel.messages) >= times, "the channel is heard again")
            await until(lambda times=times: len(pattern.messages) >= times, "the pattern is heard again")
    assert channel.messages == [b"1", b"2", b"3"]
    assert pattern.messages == [b"agent.a:events=1", b"agent.a:events=2", b"agent.a:events=3"]


async def test_no_message_is_missed_without_a_gap_being_told_after_it(
    redis: Redis, subscriptions: Redis, until: Any, quick: None
) -> None:
    """Cut again and again while messages come: what was not delivered lies before a gap."""
    subscriber = Subscriber(subscriptions)
    subscriber.on_pattern("nothing.*", Heard().anywhere)
    story: list[int | None] = []
    last = 400
    async with (
        running(subscriber),
        subscriber.listen("mine", lambda data: story.append(int(data)), lambda: story.append(None)),
    ):
        for number in range(last):
            await redis.publish("mine", b"%d" % number)
            if number % 40 == 20:
                await redis.client_kill_filter(_type="pubsub")
        await until(lambda: (story and story[-1] == last - 1) or None in story[-1:], "the end came, or a gap")
        await redis.publish("mine", b"%d" % last)
        await until(lambda: last in story or story[-1] is None, "the very last came, or a gap")
    expected = 0
    gap = False
    for item in story:
        if item is None:
            gap = True
            continue
        assert item == expected or (gap and item > expected), f"{expected} is missing before {item}"
        expected, gap = item + 1, False


async def test_a_listener_that_comes_while_the_connection_is_cut_is_served(
    redis: Redis, subscriptions: Redis, until: Any, quick: None
) -> None:
    subscriber = Subscriber(subscriptions)
    subscriber.on_pattern("nothing.*", Heard().anywhere)
    async with running(subscriber):
        for _ in range(10):
            await cut(redis)
            heard = Heard()
            async with subscriber.listen("mine", heard.message, heard.gap):
                # It may come with a gap, if the cut was noticed only now; then one reads what there is.
                await redis.publish("mine", b"x")
                await until(lambda heard=heard: heard.messages or heard.gaps, "it came, or a gap")
            await until(subscriber.connected.is_set, "it is connected again")


async def test_it_says_whether_it_is_connected(redis: Redis, subscriptions: Redis, until: Any) -> None:
    subscriber = Subscriber(subscriptions)
    subscriber.on_pattern("nothing.*", Heard().anywhere)
    assert not subscriber.connected.is_set()
    async with running(subscriber):
        assert subscriber.connected.is_set()
        await cut(redis)
        await until(lambda: not subscriber.connected.is_set(), "the cut was noticed")
        await until(subscriber.connected.is_set, "it is connected again")


async def test_an_idle_connection_is_tried_and_kept(
    redis: Redis, subscriptions: Redis, until: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Also how long Redis may take to answer on a busy machine.
    monkeypatch.setattr(module, "IDLE_SECONDS", 0.7)
    subscriber, heard = Subscriber(subscriptions), Heard()
    subscriber.on_pattern("nothing.*", heard.anywhere)
    subscriber.on_gap(heard.gap_everywhere)
    before = (await redis.info("commandstats")).get("cmdstat_ping", {"calls": 0})["calls"]
    async with running(subscriber), subscriber.listen("mine", heard.message, heard.gap):
        async with asyncio.timeout(PATIENCE_SECONDS):
            while (await redis.info("commandstats")).get("cmdstat_ping", {"calls": 0})["calls"] < before + 2:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        await redis.publish("mine", b"x")
        await until(lambda: heard.messages, "it is still heard")
    assert heard.gaps == 1  # that of the beginning


# --- parts that fail --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error", [ZeroDivisionError("a mistake"), RecordAltered("x"), ResponseError("WRONGTYPE"), RecursionError()]
)
async def test_a_gap_handler_that_meets_a_bad_value_ends_nothing_and_keeps_no_other_from_its_gap(
    redis: Redis, subscriptions: Redis, until: Any, error: Exception
) -> None:
    subscriber, heard = Subscriber(subscriptions), Heard()
    subscriber.on_pattern("pattern.*", heard.anywhere)

    async def mistaken() -> None:
        raise error

    subscriber.on_gap(mistaken)
    subscriber.on_gap(heard.gap_everywhere)
    async with running(subscriber):
        await until(lambda: heard.gaps == 1, "the other handler is called")
        await redis.publish("pattern.a", b"x")
        await until(lambda: heard.messages == [b"pattern.a=x"], "it still receives")
    assert heard.gaps == 1


async def test_a_gap_handler_that_redis_fails_is_called_again_on_the_next_connection(
    subscriptions: Redis, until: Any, quick: None
) -> None:
    subscriber, heard = Subscriber(subscriptions), Heard()
    subscriber.on_pattern("nothing.*", heard.anywhere)

    async def failing() -> None:
        heard.gap()
        if heard.gaps < 3:
            raise RedisError("unavailable")

    subscriber.on_gap(failing)
    async with running(subscriber):
        await until(lambda: heard.gaps == 3, "it was called again")


async def test_a_message_whose_handler_fails_does_not_keep_the_next_from_its_handler(
    redis: Redis, subscriptions: Redis, until: Any
) -> None:
    subscriber, heard = Subscriber(subscriptions), Heard()

    async def failing(channel: str, data: bytes) -> None:
        await heard.anywhere(channel, data)
        raise ZeroDivisionError if data == b"1" else RedisError("unavailable")

    subscriber.on_pattern("agent.*:events", failing)
    async with running(subscriber):
        for number in range(3):
            await redis.publish("agent.a:events", b"%d" % number)
        await until(lambda: len(heard.messages) == 3, "all came")
        assert subscriber._handling._value == module.MAX_HANDLED


async def test_handlers_that_still_run_are_cancelled_when_the_subscriber_ends(
    redis: Redis, subscriptions: Redis, until: Any
) -> None:
    subscriber, begun, cancelled = Subscriber(subscriptions), asyncio.Event(), asyncio.Event()

    async def endless(_channel: str, _data: bytes) -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    subscriber.on_pattern("agent.*:events", endless)
    async with running(subscriber):
        await redis.publish("agent.a:events", b"x")
        await asyncio.wait_for(begun.wait(), PATIENCE_SECONDS)
    assert cancelled.is_set()
