"""Following output while it is written: no hole, no copy, on a real Redis."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from chunks import append
from patience import PATIENCE_SECONDS
from tachikoma.config.tasks import cancel_all
from tachikoma.redis import keys
from tachikoma.redis.commands import Redis
from tachikoma.streams.frames import FIELD, STDERR, STDOUT, Frame, entry_id, sequence_of
from tachikoma.vocabulary.messages import OutputKind
from tachikoma.vocabulary.results import ExecOutput, ExecResponse
from tachikoma.vocabulary.states import ExecState
from tachikoma_orchestrator.executions import follower
from tachikoma_orchestrator.executions.final_state import FinalState
from tachikoma_orchestrator.executions.follower import MAX_QUEUED_BYTES, READ_ENTRIES, Follower
from tachikoma_orchestrator.store import subscriber as subscriber_module
from tachikoma_orchestrator.store.subscriber import Subscriber
from tachikoma_worker.output.output_log import OutputLog

AGENT, EXEC = "web-1", "job-7"
KEY = keys.output(AGENT, EXEC)
KINDS = {STDOUT: OutputKind.STDOUT, STDERR: OutputKind.STDERR}
MIB = 1024 * 1024


def new_log(redis: Redis, *, log_bytes: int = 64 * MIB) -> OutputLog:
    return OutputLog(redis, AGENT, EXEC, log_bytes=log_bytes, excerpt_bytes=1000)


def chunks(count: int, *, seed: int = 7, largest: int = 2000) -> list[tuple[int, bytes]]:
    chance = random.Random(seed)
    return [(chance.choice([STDOUT, STDERR]), chance.randbytes(chance.randrange(1, largest))) for _ in range(count)]


def is_exactly(seen: list[ExecOutput], written: list[tuple[int, bytes]], *, first: int = 1) -> None:
    """What was seen is what was written from a number on: nothing twice, nothing missing, in order."""
    assert [output.seq for output in seen] == list(range(first, len(written) + 1))
    assert [(output.kind, output.data) for output in seen] == [
        (KINDS[kind], data) for kind, data in written[first - 1 :]
    ]


def final() -> FinalState:
    return FinalState(EXEC, ExecResponse(id=EXEC, agent_id=AGENT, state=ExecState.SUCCEEDED, exit_code=0))


@asynccontextmanager
async def subscribed(subscriptions: Redis) -> AsyncIterator[Subscriber]:
    """A subscriber that runs."""
    subscriber = Subscriber(subscriptions)

    async def nothing(_channel: str, _data: bytes) -> None: ...

    subscriber.on_pattern("nothing.*", nothing)
    task = asyncio.create_task(subscriber.run())
    try:
        await asyncio.wait_for(subscriber.connected.wait(), PATIENCE_SECONDS)
        yield subscriber
    finally:
        await cancel_all([task])


class Reader:
    """A caller that follows; `seen` grows while it does."""

    def __init__(self, redis: Redis, subscriber: Subscriber, *, after_seq: int = 0) -> None:
        self.follower = Follower(redis, subscriber, AGENT, EXEC, after_seq)
        self.seen: list[ExecOutput] = []
        #: Cleared, the caller stops taking what comes.
        self.takes = asyncio.Event()
        self.takes.set()
        self.listens = asyncio.Event()
        self.end: asyncio.Future[FinalState] = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._follow())

    async def _follow(self) -> None:
        async with self.follower.listen():
            self.listens.set()
            async for output in self.follower.until(self.end):
                self.seen.append(output)
                await self.takes.wait()

    async def finish(self) -> list[ExecOutput]:
        """The execution has ended; everything seen."""
        if not self.end.done():
            self.end.set_result(final())
        await asyncio.wait_for(self._task, PATIENCE_SECONDS)
        return self.seen

    async def close(self) -> None:
        await cancel_all([self._task])
        self.end.cancel()


@asynccontextmanager
async def reading(redis: Redis, subscriptions: Redis, *, after_seq: int = 0) -> AsyncIterator[Reader]:
    """A reader that listens."""
    async with subscribed(subscriptions) as subscriber:
        reader = Reader(redis, subscriber, after_seq=after_seq)
        try:
            await asyncio.wait_for(reader.listens.wait(), PATIENCE_SECONDS)
            yield reader
        finally:
            await reader.close()


async def append_all(log: OutputLog, written: list[tuple[int, bytes]]) -> None:
    for chunk in written:
        await append(log, [chunk])


# --- to the end -------------------------------------------------------------------------------------------------------


async def test_output_is_followed_while_it_is_written(redis: Redis, subscriptions: Redis, until: Any) -> None:
    written = chunks(300)
    async with reading(redis, subscriptions) as reader:
        await append_all(new_log(redis), written)
        # Before the end, not only because of it.
        await until(lambda: len(reader.seen) == len(written), "all came live")
        is_exactly(await reader.finish(), written)


async def test_a_chunk_comes_at_once(redis: Redis, subscriptions: Redis, until: Any) -> None:
    async with reading(redis, subscriptions) as reader:
        log = new_log(redis)
        for number in range(1, 20):
            await append(log, [(STDOUT, b"line %d\n" % number)])
            await until(lambda number=number: len(reader.seen) == number, "the line came")


@pytest.mark.parametrize("before", [0, 1, READ_ENTRIES - 1, READ_ENTRIES, READ_ENTRIES + 1, 5 * READ_ENTRIES])
async def test_what_was_written_before_is_replayed_and_then_followed(
    redis: Redis, subscriptions: Redis, until: Any, before: int
) -> None:
    written, log = chunks(before + 40), new_log(redis)
    await append_all(log, written[:before])
    async with reading(redis, subscriptions) as reader:
        await append_all(log, written[before:])
        await until(lambda: len(reader.seen) == len(written), "all came")
        is_exactly(await reader.finish(), written)


async def test_readers_that_come_at_any_time_see_everything_once(
    redis: Redis, subscriptions: Redis, until: Any
) -> None:
    written, log = chunks(400), new_log(redis)
    readers: list[Reader] = []
    async with subscribed(subscriptions) as subscriber:
        try:
            for number, chunk in enumerate(written):
                if number % 40 == 0:
                    readers.append(Reader(redis, subscriber, after_seq=number // 2))
                await append(log, [chunk])
            for number, reader in enumerate(readers):
                is_exactly(await reader.finish(), written, first=20 * number + 1)
        finally:
            for reader in readers:
                await reader.close()


@pytest.mark.parametrize("after_seq", [0, 1, 49, 99, 100])
async def test_a_reader_goes_on_where_it_was(redis: Redis, subscriptions: Redis, after_seq: int) -> None:
    written, log = chunks(100), new_log(redis)
    await append_all(log, written)
    async with reading(redis, subscriptions, after_seq=after_seq) as reader:
        is_exactly(await reader.finish(), written, first=after_seq + 1)
        assert reader.follower.seq == 100


async def test_an_end_that_came_before_is_an_end(redis: Redis, subscriptions: Redis) -> None:
    written = chunks(3 * READ_ENTRIES)
    await append_all(new_log(redis), written)
    async with subscribed(subscriptions) as subscriber:
        reader = Reader(redis, subscriber)
        reader.end.set_result(final())
        try:
            is_exactly(await reader.finish(), written)
        finally:
            await reader.close()


async def test_an_execution_without_output_ends_too(redis: Redis, subscriptions: Redis) -> None:
    async with reading(redis, subscriptions) as reader:
        assert await reader.finish() == []


async def test_what_is_written_just_before_the_end_is_not_lost(redis: Redis, subscriptions: Redis) -> None:
    """The end is told over another way than the output, and may come first."""
    for seed in range(20):
        await redis.delete(KEY)
        written, log = chunks(30, seed=seed), new_log(redis)
        async with reading(redis, subscriptions) as reader:
            await append_all(log, written)
            is_exactly(await reader.finish(), written)


async def test_frames_published_twice_are_seen_once(redis: Redis, subscriptions: Redis, until: Any) -> None:
    written, log = chunks(50), new_log(redis)
    async with reading(redis, subscriptions) as reader:
        for number, (kind, data) in enumerate(written, 1):
            offset = log._offset
            await append(log, [(kind, data)])
            if number % 5 == 0:
                await log._send([Frame(kind, number, offset, 1, data)], [], {})
        await until(lambda: len(reader.seen) == len(written), "all came")
        is_exactly(await reader.finish(), written)


async def test_garbage_on_the_channel_does_not_stop_anybody(redis: Redis, subscriptions: Redis, until: Any) -> None:
    written, log = chunks(20), new_log(redis)
    async with reading(redis, subscriptions) as reader:
        for chunk in written:
            await redis.publish(KEY, b"garbage")
            await redis.publish(KEY, b"")
            await append(log, [chunk])
        await until(lambda: len(reader.seen) == len(written), "all came")
        is_exactly(await reader.finish(), written)


# --- slow readers -----------------------------------------------------------------------------------------------------


async def test_a_slow_reader_misses_nothing_and_costs_a_bounded_memory(
    redis: Redis, subscriptions: Redis, until: Any
) -> None:
    written, log = chunks(200, largest=100_000), new_log(redis)
    size = sum(len(data) for _, data in written)
    assert size > 3 * MAX_QUEUED_BYTES
    async with reading(redis, subscriptions) as reader:
        await append(log, [written[0]])
        await until(lambda: reader.seen, "the first came")
        reader.takes.clear()
        most = 0
        for chunk in written[1:]:
            await append(log, [chunk])
            most = max(most, reader.follower._live_bytes)
        # Everything has been published; what the follower holds of it is bounded.
        assert most <= MAX_QUEUED_BYTES
        await until(lambda: reader.follower._needs_replay, "it was sent back to the log")
        reader.takes.set()
        await until(lambda: len(reader.seen) == len(written), "it caught up before the end")
        is_exactly(await reader.finish(), written)


async def test_a_reader_that_is_slow_again_and_again_misses_nothing(
    redis: Redis, subscriptions: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follower, "MAX_QUEUED_BYTES", 3000)
    written, log = chunks(300), new_log(redis)
    chance = random.Random(7)
    async with reading(redis, subscriptions) as reader:
        for chunk in written:
            if chance.random() < 0.3:
                reader.takes.clear()
            elif chance.random() < 0.3:
                reader.takes.set()
            await append(log, [chunk])
        reader.takes.set()
        is_exactly(await reader.finish(), written)


async def test_a_slow_reader_at_the_end_still_gets_everything(
    redis: Redis, subscriptions: Redis, until: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follower, "MAX_QUEUED_BYTES", 3000)
    written, log = chunks(200), new_log(redis)
    async with reading(redis, subscriptions) as reader:
        await append(log, [written[0]])
        await until(lambda: reader.seen, "the first came")
        reader.takes.clear()
        await append_all(log, written[1:])
        reader.end.set_result(final())
        reader.takes.set()
        is_exactly(await reader.finish(), written)


# --- cut connections --------------------------------------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Come back at once after a cut."""
    monkeypatch.setattr(subscriber_module, "RETRY_SECONDS", 0.001)


async def test_a_cut_in_the_middle_makes_neither_hole_nor_copy(
    redis: Redis, subscriptions: Redis, until: Any, quick: None
) -> None:
    written, log = chunks(200), new_log(redis)
    async with reading(redis, subscriptions) as reader:
        for number, chunk in enumerate(written):
            if number % 25 == 10:
                await redis.client_kill_filter(_type="pubsub")
            await append(log, [chunk])
        is_exactly(await reader.finish(), written)


async def test_what_was_written_while_the_connection_was_cut_comes_without_waiting_for_more(
    redis: Redis, subscriptions: Redis, until: Any, quick: None
) -> None:
    """A command that says one thing and then works for an hour: nothing later would bring it to light."""
    written = chunks(20)
    offset = 0
    async with reading(redis, subscriptions) as reader:
        for seq, (kind, data) in enumerate(written, 1):
            raw = Frame(kind, seq, offset, 1, data).encode()
            offset += len(data)
            async with redis.pipeline(transaction=False) as pipe:
                if seq % 2 == 0:
                    # In the same batch, so that nobody can be back before the chunk is published.
                    pipe.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
                pipe.xadd(KEY, {FIELD: raw}, id=entry_id(seq))
                pipe.publish(KEY, raw)
                await pipe.execute()
            await until(lambda seq=seq: len(reader.seen) == seq, "it came")
        is_exactly(await reader.finish(), written)


# --- what is no longer there ------------------------------------------------------------------------------------------


def gaps(seen: list[ExecOutput]) -> list[tuple[int, int]]:
    """Place and size of each gap."""
    return [(at, output.missing_bytes) for at, output in enumerate(seen) if output.kind is OutputKind.GAP]


async def cut(redis: Redis, written: list[tuple[int, bytes]]) -> tuple[int, int, int]:
    """What was cut out of the middle of a log: number before it, number behind it, and its bytes."""
    numbers = [sequence_of(entry) for entry, _ in await redis.xrange(KEY)]
    before = next(place for place, number in enumerate(numbers, 1) if number != place) - 1
    behind = numbers[before]
    assert 0 < before < behind - 1
    return before, behind, sum(len(data) for _, data in written[before : behind - 1])


async def test_a_gap_is_told_where_the_log_was_cut_with_its_exact_size(redis: Redis, subscriptions: Redis) -> None:
    written = chunks(100)
    await append_all(new_log(redis, log_bytes=20_000), written)
    before, behind, lost = await cut(redis, written)
    for after_seq in (0, 1, before):
        async with reading(redis, subscriptions, after_seq=after_seq) as reader:
            seen = await reader.finish()
            place = before - after_seq
            if after_seq < before:
                assert gaps(seen) == [(place, lost)]
                assert seen[place].seq == before
            else:
                # It does not say where it was in bytes, so what is told is a bound.
                [(_, missing)] = gaps(seen)
                assert lost <= missing <= lost + sum(len(data) for _, data in written[:before])
            is_exactly(seen[place + 1 :], written, first=behind)
            assert reader.follower.missing_at_end(sum(len(data) for _, data in written)) == 0


async def test_a_reader_that_was_beyond_what_is_cut_is_told_of_no_gap(redis: Redis, subscriptions: Redis) -> None:
    written = chunks(100)
    await append_all(new_log(redis, log_bytes=20_000), written)
    _, behind, _ = await cut(redis, written)
    async with reading(redis, subscriptions, after_seq=behind - 1) as reader:
        is_exactly(await reader.finish(), written, first=behind)


async def test_a_reader_that_falls_behind_the_log_is_told_how_much_it_lost(
    redis: Redis, subscriptions: Redis, until: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follower, "MAX_QUEUED_BYTES", 3000)
    written, log = chunks(300), new_log(redis, log_bytes=40_000)
    async with reading(redis, subscriptions) as reader:
        await append(log, [written[0]])
        await until(lambda: reader.seen, "the first came")
        reader.takes.clear()
        await append_all(log, written[1:])
        reader.takes.set()
        seen = await reader.finish()
    numbers = [output.seq for output in seen if output.kind is not OutputKind.GAP]
    assert numbers == sorted(set(numbers))
    assert numbers[-1] == 300
    told = 0
    expected = 1
    for output in seen:
        if output.kind is OutputKind.GAP:
            told += output.missing_bytes
            continue
        # Every hole in the numbers is a gap told before it, of exactly so many bytes.
        assert told == sum(len(data) for _, data in written[expected - 1 : output.seq - 1])
        assert output.data == written[output.seq - 1][1]
        expected, told = output.seq + 1, 0
    assert len(gaps(seen)) == 1


async def test_a_log_that_is_gone_altogether_is_told_at_the_end(redis: Redis, subscriptions: Redis) -> None:
    async with reading(redis, subscriptions) as reader:
        assert await reader.finish() == []
        assert reader.follower.missing_at_end(4711) == 4711
        gap = reader.follower.gap(4711)
        assert (gap.kind, gap.seq, gap.missing_bytes) == (OutputKind.GAP, 0, 4711)


async def test_a_reader_reports_its_position_again_while_nothing_comes(
    redis: Redis, subscriptions: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its report expires. A command that then needs room would wait for a reader that has read everything."""
    monkeypatch.setattr(follower, "RENEW_SECONDS", 0.01)
    log = new_log(redis)
    await append(log, [(STDOUT, b"x")])
    end: asyncio.Future[FinalState] = asyncio.get_running_loop().create_future()
    async with subscribed(subscriptions) as subscriber:
        reader = Follower(redis, subscriber, AGENT, EXEC, 0)
        reader.acknowledges = True
        async with reader.listen():
            reading = asyncio.create_task(all_of(reader, end))
            async with asyncio.timeout(PATIENCE_SECONDS):
                for _ in range(2):
                    while await redis.get(keys.read(AGENT, EXEC)) != b"1":  # noqa: ASYNC110 (nothing announces it)
                        await asyncio.sleep(0.005)
                    await redis.delete(keys.read(AGENT, EXEC))
            end.set_result(final())
            assert [output.data for output in await reading] == [b"x"]


async def all_of(reader: Follower, end: asyncio.Future[FinalState]) -> list[ExecOutput]:
    return [output async for output in reader.until(end)]
