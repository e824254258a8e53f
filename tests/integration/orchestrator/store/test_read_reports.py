"""Reports of what an attached caller has read, in a real Redis."""

from __future__ import annotations

import asyncio

from patience import PATIENCE_SECONDS
from tachikoma.redis import keys
from tachikoma.redis.commands import Redis
from tachikoma.streams.frames import READER_LEFT, parse_reader_position, reader_position
from tachikoma_orchestrator.store.read_reports import LEAST_BYTES, ReadReports

KEY = keys.read("web-1", "job-7")


async def reported(redis: Redis, seq: int) -> None:
    """Return when this position was reported."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while parse_reader_position(await redis.get(KEY) or b"") != seq:  # noqa: ASYNC110 (nothing announces it)
            await asyncio.sleep(0.005)


async def test_a_small_output_costs_no_report(redis: Redis) -> None:
    reports = ReadReports(redis, KEY)
    for seq in range(1, 8):
        reports.chunk_read(seq, 1000)
    reports.ended = True
    await reports.leave()
    assert await redis.get(KEY) is None


async def test_the_last_of_many_chunks_is_reported_although_none_follows(redis: Redis) -> None:
    reports = ReadReports(redis, KEY)
    for seq in range(1, 1000):
        reports.chunk_read(seq, LEAST_BYTES)
    await reported(redis, 999)
    await reports.leave()
    assert await redis.get(KEY) == READER_LEFT


async def test_tiny_chunks_count_as_the_log_counts_them(redis: Redis) -> None:
    reports = ReadReports(redis, KEY)
    for seq in range(1, LEAST_BYTES // 100 + 2):
        reports.chunk_read(seq, 1)
    await reported(redis, LEAST_BYTES // 100 + 1)
    await reports.leave()


async def test_a_caller_that_comes_later_announces_itself(redis: Redis) -> None:
    reports = ReadReports(redis, KEY)
    reports.announce(17)
    await reported(redis, 17)
    await reports.leave()
    assert await redis.get(KEY) == READER_LEFT


async def test_a_caller_that_leaves_before_its_first_report_says_so(redis: Redis) -> None:
    await ReadReports(redis, KEY).leave()
    assert await redis.get(KEY) == READER_LEFT


async def test_a_caller_that_leaves_takes_nothing_back_from_one_that_came_after_it(redis: Redis) -> None:
    first, second = ReadReports(redis, KEY), ReadReports(redis, KEY)
    first.announce(5)
    await reported(redis, 5)
    of_first = await redis.get(KEY)
    second.announce(5)
    async with asyncio.timeout(PATIENCE_SECONDS):
        while (current := await redis.get(KEY)) == of_first:  # noqa: ASYNC110 (nothing announces it)
            await asyncio.sleep(0.005)
    await first.leave()
    assert await redis.get(KEY) == current == reader_position(5, current.decode().partition(".")[2])
    await second.leave()
    assert await redis.get(KEY) == READER_LEFT


async def test_a_value_of_another_type_ends_nothing(redis: Redis) -> None:
    await redis.rpush(KEY, "no", "text")
    await ReadReports(redis, KEY).leave()
    assert await redis.lrange(KEY, 0, -1) == [b"no", b"text"]
    reports = ReadReports(redis, KEY)
    reports.announce(3)
    async with asyncio.timeout(PATIENCE_SECONDS):
        while await redis.type(KEY) != b"string":  # noqa: ASYNC110 (nothing announces it)
            await asyncio.sleep(0.005)
    await reported(redis, 3)
    await reports.leave()
