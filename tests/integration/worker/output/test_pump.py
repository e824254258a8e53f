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

from chunks import append
from output_frames import KEY, MIB, follows, joined, new_log, stream
from patience import PATIENCE_SECONDS
from tachikoma.redis.access import connect
from tachikoma.redis.commands import Redis
from tachikoma.streams.frames import STDERR, STDOUT, Frame
from tachikoma_worker.output.output_log import OutputLog
from tachikoma_worker.output.pump import Pump
from tachikoma_worker.output.records import Facts
from tachikoma_worker.output.spool import CHUNK_BYTES, Spool, host_boot

START = Facts(
    host=host_boot(), order_sha256="ab" * 32, executable="/bin/true",
    started_ms=1, began_ns=1, timeout=60, kill_grace=1,
)  # fmt: skip


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
