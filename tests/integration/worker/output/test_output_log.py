"""The output log on a real Redis: numbered, bounded, and repeated until Redis has it."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest
from redis.exceptions import ResponseError
from structlog.testing import capture_logs

from chunks import append
from output_frames import KEY, follows, joined, new_log, stream
from patience import PATIENCE_SECONDS
from tachikoma.redis import keys
from tachikoma.redis.commands import Redis
from tachikoma.streams.frames import FIELD, STDERR, STDOUT, Frame, entry_id
from tachikoma_worker.output.output_log import ABANDONED_SECONDS, ENTRY_BYTES
from tachikoma_worker.output.spool import Chunk


async def test_two_chunks_of_one_append_have_numbers_and_offsets_in_order(redis: Redis) -> None:
    log = new_log(redis)
    await append(log, [(STDOUT, b"abc"), (STDERR, b"de")])
    await append(log, [(STDOUT, b"f")])
    frames = await stream(redis)
    assert [(f.kind, f.seq, f.offset, f.data) for f in frames] == [
        (STDOUT, 1, 0, b"abc"),
        (STDERR, 2, 3, b"de"),
        (STDOUT, 3, 5, b"f"),
    ]
    assert frames[0].time_micros <= frames[2].time_micros


async def test_a_log_whose_agent_dies_does_not_stay_for_ever(redis: Redis) -> None:
    log = new_log(redis)
    await append(log, [(STDOUT, b"x")])
    await append(log, [(STDOUT, b"y")])
    assert ABANDONED_SECONDS - 60 < await redis.ttl(KEY) <= ABANDONED_SECONDS


@pytest.mark.parametrize("seed", range(4))
async def test_a_full_log_keeps_begin_and_end(redis: Redis, seed: int) -> None:
    chance = random.Random(seed)
    limit = 50_000
    log = new_log(redis, log_bytes=limit)
    everything: list[tuple[int, bytes]] = []
    for _ in range(60):
        chunks = [(kind, chance.randbytes(chance.randrange(1, 4000))) for kind in chance.choice([[1], [2], [1, 2]])]
        everything += chunks
        await append(log, chunks)
        assert sum(len(frame.data) + ENTRY_BYTES for frame in await stream(redis)) <= limit
    frames = await stream(redis)
    sizes = [len(data) + ENTRY_BYTES for _, data in everything]
    begin = next(n for n, frame in enumerate(frames, 1) if frame.seq != n) - 1
    end = len(frames) - begin
    assert [(frame.kind, frame.data) for frame in frames] == everything[:begin] + everything[-end:]
    # Nothing was let go that there was room for.
    assert sum(sizes[: begin + 1]) > limit // 2
    assert sum(sizes[-end - 1 :]) > limit // 2
    follows(frames[:begin])
    follows(
        frames[begin:], seq=len(everything) - end + 1, offset=sum(len(data) for _, data in everything[:-end])
    )  # fmt: skip


async def test_a_worker_that_goes_on_cuts_what_an_earlier_one_brought_there(redis: Redis) -> None:
    limit = 50_000
    log = new_log(redis, log_bytes=limit)
    for number in range(30):
        await append(log, [(STDOUT, b"%d" % number * 1000)])
    later = new_log(redis, log_bytes=limit, resumed=log.totals())
    for number in range(40):
        chunk = Chunk(STDOUT, 31 + number, 1, b"later")
        await later.append([chunk])
        assert sum(len(frame.data) + ENTRY_BYTES for frame in await stream(redis)) <= limit
    frames = await stream(redis)
    assert [frame.seq for frame in frames if frame.data == b"later"] == list(range(31, 71))
    assert frames[0].seq == 1


async def test_output_that_waits_is_cut_only_where_it_was_read(redis: Redis, until: Any) -> None:
    log = new_log(redis, log_bytes=10_000, waits=True)
    for _ in range(9):
        await append(log, [(STDOUT, bytes(1000))])
    waiting = asyncio.create_task(append(log, [(STDOUT, bytes(3000))]))
    await asked_again(redis)
    assert not waiting.done()
    assert [frame.seq for frame in await stream(redis)] == list(range(1, 10))
    # Not all that must go.
    await redis.set(keys.read("web-1", "job-7"), 1)
    await asked_again(redis)
    assert not waiting.done()
    await redis.set(keys.read("web-1", "job-7"), 9)
    await asyncio.wait_for(waiting, PATIENCE_SECONDS)
    frames = await stream(redis)
    # What was read stays as long as there is room.
    assert [frame.seq for frame in frames] == list(range(4, 11))


async def test_output_of_what_has_ended_waits_only_for_readers_there_are(redis: Redis) -> None:
    log = new_log(redis, log_bytes=10_000, waits=True)
    await append(log, [(STDOUT, bytes(9000))])
    log.wait_only_for_known_readers()
    await redis.set(keys.read("web-1", "job-7"), 0)
    waiting = asyncio.create_task(append(log, [(STDOUT, bytes(9000))]))
    await asked_again(redis)
    assert not waiting.done()
    # It took nothing for too long. What is no position says of no reader.
    key = keys.read("web-1", "job-7")
    await redis.delete(key)
    await redis.rpush(key, "no", "text")
    await asyncio.wait_for(waiting, PATIENCE_SECONDS)
    assert [frame.seq for frame in await stream(redis)] == [2]


async def asked_again(redis: Redis) -> None:
    """Return when it was asked some times more what was read."""

    async def asked() -> int:
        return int((await redis.info("commandstats")).get("cmdstat_get", {"calls": 0})["calls"])

    before = await asked()
    async with asyncio.timeout(PATIENCE_SECONDS):
        while await asked() < before + 3:  # noqa: ASYNC110 (nothing announces it)
            await asyncio.sleep(0.005)


async def test_a_chunk_larger_than_the_log_is_kept_alone(redis: Redis) -> None:
    log = new_log(redis, log_bytes=10)
    await append(log, [(STDOUT, b"small")])
    await append(log, [(STDOUT, b"larger than the whole log")])
    assert [frame.data for frame in await stream(redis)] == [b"larger than the whole log"]


async def test_a_repeated_append_changes_nothing_in_the_log(redis: Redis) -> None:
    """As after a connection that broke between the command and its answer."""
    log = new_log(redis)
    await append(log, [(STDOUT, b"one")])
    frames = [Frame(STDOUT, 2, 3, 1, b"two"), Frame(STDERR, 3, 6, 1, b"three")]
    await log._send(frames, [], {})
    before = await stream(redis)
    await log._send(frames, [], {})
    assert await stream(redis) == before
    follows(before)


async def test_an_append_that_came_through_in_part_is_completed(redis: Redis) -> None:
    log = new_log(redis)
    frames = [Frame(STDOUT, 1, 0, 1, b"one"), Frame(STDERR, 2, 3, 1, b"two")]
    await redis.xadd(KEY, {FIELD: frames[0].encode()}, id=entry_id(1))
    await log._send(frames, [], {})
    assert await stream(redis) == frames


async def test_an_append_of_what_was_trimmed_already_brings_nothing_back(redis: Redis) -> None:
    log = new_log(redis, log_bytes=4)
    for data in (b"aaa", b"bbb", b"ccc"):
        await append(log, [(STDOUT, data)])
    await log._send([Frame(STDOUT, 1, 0, 1, b"aaa")], [], {})
    assert [frame.data for frame in await stream(redis)] == [b"ccc"]


async def test_any_other_error_of_redis_is_not_swallowed(redis: Redis) -> None:
    await redis.set(KEY, "no stream")
    log = new_log(redis)
    with pytest.raises(ResponseError, match="WRONGTYPE"):
        await log._send([Frame(STDOUT, 1, 0, 1, b"x")], [], {})


async def test_an_append_waits_until_redis_takes_it_and_nothing_is_lost(redis: Redis, until: Any) -> None:
    log = new_log(redis)
    await redis.config_set("maxmemory", "1")
    try:
        with capture_logs() as entries:
            waiting = asyncio.create_task(append(log, [(STDOUT, b"patient")]))
            await until(lambda: len(entries) >= 2, "two attempts failed")
        assert {entry["event"] for entry in entries} == {"output.waiting"}
        assert not waiting.done()
    finally:
        await redis.config_set("maxmemory", "0")
    await asyncio.wait_for(waiting, PATIENCE_SECONDS)
    assert [frame.data for frame in await stream(redis)] == [b"patient"]
    assert log.seq == 1


async def test_connections_that_are_cut_again_and_again_lose_nothing(redis: Redis, redis_url: str) -> None:
    log = new_log(redis)
    for number in range(30):
        if number % 3 == 0:
            # All but the one that asks.
            await redis.client_kill_filter(_type="normal", skipme=True)
        await append(log, [(STDOUT, b"%d\n" % number)])
    frames = await stream(redis)
    follows(frames)
    assert joined(frames, STDOUT) == b"".join(b"%d\n" % number for number in range(30))
