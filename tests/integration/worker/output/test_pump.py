"""From a command's pipes into the output log, on a real Redis."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from redis.exceptions import ResponseError
from structlog.testing import capture_logs

from chunks import append
from tachikoma.redis import keys
from tachikoma.redis.access import connect
from tachikoma.redis.commands import Redis
from tachikoma.streams.frames import FIELD, STDERR, STDOUT, Frame, entry_id, sequence_of
from tachikoma_worker.output.output_log import ABANDONED_SECONDS, ENTRY_BYTES, OutputLog
from tachikoma_worker.output.pump import Pump
from tachikoma_worker.output.records import Facts
from tachikoma_worker.output.spool import CHUNK_BYTES, Chunk, Spool, host_boot

KEY = keys.output("web-1", "job-7")
MIB = 1024 * 1024
PATIENCE_SECONDS = 30
START = Facts(
    host=host_boot(), order_sha256="ab" * 32, executable="/bin/true",
    started_ms=1, began_ns=1, timeout=60, kill_grace=1,
)  # fmt: skip


def new_log(redis: Redis, *, log_bytes: int = 64 * MIB, excerpt_bytes: int = MIB, **values: Any) -> OutputLog:
    return OutputLog(redis, "web-1", "job-7", log_bytes=log_bytes, excerpt_bytes=excerpt_bytes, **values)


async def stream(redis: Redis) -> list[Frame]:
    """The frames in the log, whose entry ids are their numbers."""
    frames = []
    for entry, fields in await redis.xrange(KEY):
        assert list(fields) == [FIELD]
        frame = Frame.decode(fields[FIELD])
        assert sequence_of(entry) == frame.seq
        assert entry == entry_id(frame.seq).encode()
        frames.append(frame)
    return frames


def follows(frames: list[Frame], *, seq: int = 1, offset: int = 0) -> None:
    """Numbers and offsets are without a hole."""
    for number, frame in enumerate(frames, seq):
        assert (frame.seq, frame.offset) == (number, offset)
        offset += len(frame.data)


def joined(frames: list[Frame], kind: int) -> bytes:
    return b"".join(frame.data for frame in frames if frame.kind == kind)


@asynccontextmanager
async def listening(redis: Redis) -> AsyncIterator[Callable[[int], Any]]:
    """What is published on the log's channel."""
    pubsub = redis.pubsub()
    await pubsub.subscribe(KEY)
    confirmed = await pubsub.get_message(timeout=PATIENCE_SECONDS)
    assert confirmed["type"] == "subscribe"

    async def take(count: int) -> list[Frame]:
        messages = [await pubsub.get_message(timeout=PATIENCE_SECONDS) for _ in range(count)]
        return [Frame.decode(message["data"]) for message in messages]

    try:
        yield take
    finally:
        await pubsub.aclose()


class Pipes:
    """A command's two outputs: reading ends as the spawner gives them, writing ends for the test."""

    def __init__(self, folder: Path) -> None:
        self.spool = Spool.create(folder, "job-7", START, max_bytes=MIB)
        self.stdout, self._out = os.pipe()
        self.stderr, self._err = os.pipe()
        os.set_blocking(self.stdout, False)
        os.set_blocking(self.stderr, False)
        self._writing = {STDOUT: self._out, STDERR: self._err}

    def write(self, kind: int, data: bytes) -> None:
        while data:
            data = data[os.write(self._writing[kind], data) :]

    def end(self, *kinds: int) -> None:
        for kind in kinds or list(self._writing):
            if kind in self._writing:
                os.close(self._writing.pop(kind))

    def close(self) -> None:
        self.end()
        os.close(self.stdout)
        os.close(self.stderr)


@pytest.fixture
def pipes(tmp_path: Path) -> Any:
    made = Pipes(tmp_path)
    yield made
    made.close()


def new_pump(log: OutputLog, pipes: Pipes) -> Pump:
    return Pump(log, pipes.spool, {pipes.stdout: STDOUT, pipes.stderr: STDERR})


async def pumped(log: OutputLog, pipes: Pipes, write: Callable[[], None]) -> None:
    """Pump what a writer in a thread of its own writes, to the end."""
    pump = asyncio.create_task(new_pump(log, pipes).run())
    await asyncio.wait_for(asyncio.to_thread(write), PATIENCE_SECONDS)
    pipes.end()
    await asyncio.wait_for(pump, PATIENCE_SECONDS)


# --- the pump ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [b"line\n", b"\0", b"\xff\xfe", b"\r\n\x1b[0m", bytes(range(256)), b"x"])
async def test_bytes_come_through_unchanged(redis: Redis, pipes: Pipes, data: bytes) -> None:
    log = new_log(redis)
    await pumped(log, pipes, lambda: pipes.write(STDOUT, data))
    frames = await stream(redis)
    follows(frames)
    assert joined(frames, STDOUT) == data
    assert joined(frames, STDERR) == b""
    assert log.excerpts[STDOUT].content() == data


async def test_much_binary_output_of_both_kinds_comes_through_whole(redis: Redis, pipes: Pipes) -> None:
    chance = random.Random(7)
    written = {STDOUT: b"", STDERR: b""}
    pieces = [(chance.choice([STDOUT, STDERR]), chance.randbytes(chance.randrange(1, 60_000))) for _ in range(150)]

    def write() -> None:
        for kind, data in pieces:
            pipes.write(kind, data)

    for kind, data in pieces:
        written[kind] += data
    log = new_log(redis)
    await pumped(log, pipes, write)
    frames = await stream(redis)
    follows(frames)
    assert all(1 <= len(frame.data) <= CHUNK_BYTES for frame in frames)
    for kind in (STDOUT, STDERR):
        assert joined(frames, kind) == written[kind]
        assert log.excerpts[kind].digest().sha256 == hashlib.sha256(written[kind]).hexdigest()
        assert log.excerpts[kind].total == len(written[kind])
    assert log.seq == len(frames)


async def test_what_is_published_is_what_stands_in_the_log(redis: Redis, subscriptions: Redis, pipes: Pipes) -> None:
    log = new_log(redis)
    async with listening(subscriptions) as take:
        await pumped(log, pipes, lambda: pipes.write(STDOUT, bytes(200_000)))
        assert await take(log.seq) == await stream(redis)


async def test_a_line_is_there_while_the_command_still_runs(redis: Redis, subscriptions: Redis, pipes: Pipes) -> None:
    pump = asyncio.create_task(new_pump(new_log(redis), pipes).run())
    async with listening(subscriptions) as take:
        for number in range(1, 4):
            pipes.write(STDOUT, b"line %d\n" % number)
            [frame] = await take(1)
            assert (frame.seq, frame.data) == (number, b"line %d\n" % number)
    assert not pump.done()
    pipes.end()
    await asyncio.wait_for(pump, PATIENCE_SECONDS)


async def test_a_command_that_closes_one_output_is_still_heard_on_the_other(redis: Redis, pipes: Pipes) -> None:
    pump = asyncio.create_task(new_pump(new_log(redis), pipes).run())
    pipes.end(STDOUT)
    await asyncio.to_thread(pipes.write, STDERR, b"still here\n")
    pipes.end(STDERR)
    await asyncio.wait_for(pump, PATIENCE_SECONDS)
    assert joined(await stream(redis), STDERR) == b"still here\n"


async def test_no_output_leaves_no_log(redis: Redis, pipes: Pipes) -> None:
    log = new_log(redis)
    await pumped(log, pipes, lambda: None)
    assert log.seq == 0
    assert not await redis.exists(KEY)


async def test_stop_takes_what_is_in_the_pipes_and_ends_though_somebody_holds_them(redis: Redis, pipes: Pipes) -> None:
    log = new_log(redis)
    pump = new_pump(log, pipes)
    pipes.write(STDOUT, b"last words")
    pipes.write(STDERR, b"last complaint")
    pump.stop()
    await asyncio.wait_for(pump.run(), PATIENCE_SECONDS)
    frames = await stream(redis)
    assert (joined(frames, STDOUT), joined(frames, STDERR)) == (b"last words", b"last complaint")


async def test_stop_is_heard_while_nothing_comes(redis: Redis, pipes: Pipes) -> None:
    pump = new_pump(new_log(redis), pipes)
    running = asyncio.create_task(pump.run())
    await asyncio.sleep(0)
    pump.stop()
    await asyncio.wait_for(running, PATIENCE_SECONDS)


async def test_after_stop_nobody_is_listened_to_for_ever(redis: Redis, pipes: Pipes) -> None:
    """A leftover that writes on and on: the pump ends all the same."""
    pump = new_pump(new_log(redis, log_bytes=MIB), pipes)
    pump.stop()

    def write() -> None:
        with suppress(BrokenPipeError):
            while True:
                pipes.write(STDOUT, bytes(CHUNK_BYTES))

    writer = asyncio.create_task(asyncio.to_thread(write))
    await asyncio.wait_for(pump.run(), PATIENCE_SECONDS)
    os.close(pipes.stdout)
    await asyncio.wait_for(writer, PATIENCE_SECONDS)
    pipes.stdout = os.open(os.devnull, os.O_RDONLY)  # for close()


async def test_the_loop_is_as_it_was_after_the_end(redis: Redis, pipes: Pipes) -> None:
    await pumped(new_log(redis), pipes, lambda: pipes.write(STDOUT, b"x"))
    loop = asyncio.get_running_loop()
    assert not loop.remove_reader(pipes.stdout)
    assert not loop.remove_reader(pipes.stderr)


# --- the log ----------------------------------------------------------------------------------------------------------


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
    await log._send(frames, [])
    before = await stream(redis)
    await log._send(frames, [])
    assert await stream(redis) == before
    follows(before)


async def test_an_append_that_came_through_in_part_is_completed(redis: Redis) -> None:
    log = new_log(redis)
    frames = [Frame(STDOUT, 1, 0, 1, b"one"), Frame(STDERR, 2, 3, 1, b"two")]
    await redis.xadd(KEY, {FIELD: frames[0].encode()}, id=entry_id(1))
    await log._send(frames, [])
    assert await stream(redis) == frames


async def test_an_append_of_what_was_trimmed_already_brings_nothing_back(redis: Redis) -> None:
    log = new_log(redis, log_bytes=4)
    for data in (b"aaa", b"bbb", b"ccc"):
        await append(log, [(STDOUT, data)])
    await log._send([Frame(STDOUT, 1, 0, 1, b"aaa")], [])
    assert [frame.data for frame in await stream(redis)] == [b"ccc"]


async def test_any_other_error_of_redis_is_not_swallowed(redis: Redis) -> None:
    await redis.set(KEY, "no stream")
    log = new_log(redis)
    with pytest.raises(ResponseError, match="WRONGTYPE"):
        await log._send([Frame(STDOUT, 1, 0, 1, b"x")], [])


async def test_an_append_waits_until_redis_takes_it_and_nothing_is_lost(redis: Redis, until: Any) -> None:
    await redis.set(KEY, "in the way")
    log = new_log(redis)
    with capture_logs() as told:
        waiting = asyncio.create_task(append(log, [(STDOUT, b"patient")]))
        await until(lambda: len(told) >= 2, "two attempts failed")
    assert {entry["event"] for entry in told} == {"output.waiting"}
    assert not waiting.done()
    await redis.delete(KEY)
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


# --- the spool --------------------------------------------------------------------------------------------------------


def resumed(redis: Redis, spool: Spool) -> OutputLog:
    """The log of a worker that was started again."""
    return OutputLog(redis, "web-1", "job-7", log_bytes=64 * MIB, excerpt_bytes=MIB, resumed=spool.start.totals)


@pytest.mark.parametrize("sent", [0, 1, 3])
async def test_a_worker_that_was_killed_is_gone_on_from(redis: Redis, pipes: Pipes, tmp_path: Path, sent: int) -> None:
    """What was taken is in the spool, what was not is in the pipe; how much of it came to Redis is no matter."""
    taken = [(STDOUT, b"one\n"), (STDERR, b"two\n"), (STDOUT, b"three\n")]
    for kind, data in taken:
        pipes.write(kind, data)
        pipes.spool.take(kind, pipes.stdout if kind == STDOUT else pipes.stderr)
    await append(new_log(redis), taken[:sent])
    pipes.write(STDOUT, b"four\n")
    # It is killed here: nothing is closed, nothing said.
    spool = Spool.open(tmp_path, "job-7", max_bytes=MIB)
    log = resumed(redis, spool)
    pipes.end()
    await asyncio.wait_for(Pump(log, spool, {pipes.stdout: STDOUT, pipes.stderr: STDERR}).run(), PATIENCE_SECONDS)
    frames = await stream(redis)
    follows(frames)
    assert joined(frames, STDOUT) == b"one\nthree\nfour\n"
    assert joined(frames, STDERR) == b"two\n"
    for kind in (STDOUT, STDERR):
        assert log.excerpts[kind].digest().sha256 == hashlib.sha256(joined(frames, kind)).hexdigest()
        assert log.excerpts[kind].content() == joined(frames, kind)


async def test_a_redis_that_went_back_gets_again_what_it_lost(redis: Redis, pipes: Pipes, tmp_path: Path) -> None:
    pieces = [(STDOUT, b"%d\n" % number) for number in range(10)]
    for kind, data in pieces:
        pipes.write(kind, data)
        pipes.spool.take(kind, pipes.stdout)
    await append(new_log(redis), pieces[:4])
    spool = Spool.open(tmp_path, "job-7", max_bytes=MIB)
    await asyncio.wait_for(Pump(resumed(redis, spool), spool, {}).run(), PATIENCE_SECONDS)
    frames = await stream(redis)
    follows(frames)
    assert joined(frames, STDOUT) == b"".join(data for _, data in pieces)


async def test_a_spool_that_is_full_is_begun_anew_and_counts_on(redis: Redis, pipes: Pipes, tmp_path: Path) -> None:
    written = random.Random(3).randbytes(5 * MIB)
    log = new_log(redis, excerpt_bytes=1000)
    await pumped(log, pipes, lambda: pipes.write(STDOUT, written))
    assert (tmp_path / "job-7").stat().st_size < 2 * MIB
    assert joined(await stream(redis), STDOUT) == written
    digest = log.excerpts[STDOUT].digest()
    assert digest.sha256 == hashlib.sha256(written).hexdigest()
    # A later worker knows numbers, count, begin and end, but not the digest; it says so rather than a wrong one.
    spool = Spool.open(tmp_path, "job-7", max_bytes=MIB)
    assert spool.start.totals.seq > 0
    later = OutputLog(redis, "web-1", "job-7", log_bytes=64 * MIB, excerpt_bytes=1000, resumed=spool.start.totals)
    await asyncio.wait_for(Pump(later, spool, {}).run(), PATIENCE_SECONDS)
    assert (later.seq, later.excerpts[STDOUT].total) == (log.seq, len(written))
    assert later.excerpts[STDOUT].content() == log.excerpts[STDOUT].content()
    assert later.excerpts[STDOUT].digest() == digest.model_copy(update={"sha256": ""})


async def test_a_full_disk_lets_the_output_through_memory(redis: Redis, pipes: Pipes, tmp_path: Path) -> None:
    log = new_log(redis)
    full = os.open("/dev/full", os.O_RDWR)
    os.dup2(full, pipes.spool._descriptor)
    os.close(full)
    written = random.Random(4).randbytes(9 * MIB)
    await pumped(log, pipes, lambda: pipes.write(STDOUT, written))
    assert joined(await stream(redis), STDOUT) == written
    assert not (tmp_path / "job-7").exists()


async def test_while_redis_is_away_the_command_goes_on_until_the_spool_is_full(redis: Redis, pipes: Pipes) -> None:
    away = OutputLog(
        connect("unix:///nonexistent", name="test"), "web-1", "job-7", log_bytes=64 * MIB, excerpt_bytes=MIB
    )
    pump = asyncio.create_task(new_pump(away, pipes).run())
    written = 0

    def write() -> None:
        nonlocal written
        while written < 3 * MIB:
            pipes.write(STDOUT, bytes(1000))
            written += 1000

    writer = asyncio.create_task(asyncio.to_thread(write))
    # Its first MiB is in the spool; then it waits.
    while written < MIB:  # noqa: ASYNC110 (a thread writes)
        await asyncio.sleep(0.01)
    assert not writer.done()
    away._redis = redis
    await asyncio.wait_for(writer, PATIENCE_SECONDS)
    pipes.end()
    await asyncio.wait_for(pump, PATIENCE_SECONDS)
    assert len(joined(await stream(redis), STDOUT)) == written
