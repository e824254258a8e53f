"""The worker's connection to a spawner that misbehaves. With the real one it is tested in tests/confinement."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from patience import PATIENCE_SECONDS
from tachikoma_worker.confinement import protocol
from tachikoma_worker.confinement.protocol import (
    Exit,
    Hello,
    Operation,
    SpawnerGone,
    SpawnFailed,
    Step,
    encode_message,
)
from tachikoma_worker.confinement.spawner import Spawner


@asynccontextmanager
async def connected() -> AsyncIterator[tuple[Spawner, socket.socket]]:
    """A spawner connection, and its other end in the test's hands."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    made = Spawner(ours, Hello(protocol.PROTOCOL_VERSION, os.getuid(), 0), None)
    made.attach()
    try:
        yield made, theirs
    finally:
        theirs.close()
        made.close()


async def request(theirs: socket.socket) -> protocol.Header:
    """Read one request."""
    loop = asyncio.get_running_loop()
    header = protocol.decode_header(await loop.sock_recv(theirs, protocol.HEADER_BYTES))
    if header.length:
        await loop.sock_recv(theirs, header.length)
    return header


async def test_replies_are_matched_by_their_tags(monkeypatch: pytest.MonkeyPatch) -> None:
    async with connected() as (made, theirs):
        kills = [asyncio.create_task(made.kill(name)) for name in ("a", "b")]
        tags = [(await request(theirs)).tag for _ in kills]
        for count, tag in reversed(list(enumerate(tags))):
            theirs.send(encode_message(Operation.KILL, tag, struct.pack("=II32I", count, 0, *([0] * 32))))
        assert [(await kill).count for kill in kills] == [0, 1]


async def test_a_failure_fails_only_its_own_request() -> None:
    async with connected() as (made, theirs):
        release = asyncio.create_task(made.release("a"))
        tag = (await request(theirs)).tag
        theirs.send(encode_message(Operation.FAILED, tag, struct.pack("=Ii", Step.NAME, 3)))
        with pytest.raises(SpawnFailed, match="name: No such process"):
            await release
        assert made.gone is not None
        assert not made.gone.done()


def exited(name: str) -> bytes:
    body = struct.pack("=64sIIiiQQ32x", name.encode(), 7, 1, os.CLD_EXITED, 5, 0, 0)
    return encode_message(Operation.EXITED, 0, body)


def input_state(name: str, offset: int, *, flags: int = 0) -> bytes:
    return struct.pack("=64sQIIII8x", name.encode(), offset, protocol.InputMode.TERMINAL, flags, 100, 0)


async def test_an_event_that_is_reported_before_its_command_is_known_is_kept() -> None:
    async with connected() as (made, theirs):
        taking = asyncio.create_task(made.take(protocol.Held("job-7", 7, None)))
        tag = (await request(theirs)).tag
        theirs.send(exited("job-7"))
        pipes = [*os.pipe(), *os.pipe()]
        theirs.send(encode_message(Operation.INPUT_EVENT, 0, input_state("job-7", 12, flags=4)))
        running = struct.pack("=64sI60x", b"job-7", 7)
        socket.send_fds(theirs, [encode_message(Operation.TAKE, tag, running)], [pipes[0], pipes[2]])
        process = await taking
        assert await process.exited == Exit(5, 0, 0.0)
        assert (process.input.offset, process.input.echo) == (12, True)
        process.leave()
        for pipe in pipes:
            os.close(pipe)


async def test_a_reply_that_no_caller_waits_for_leaves_no_descriptor_open() -> None:
    async with connected() as (made, theirs):
        before = len(os.listdir("/proc/self/fd"))
        pipes = [*os.pipe(), *os.pipe()]
        socket.send_fds(theirs, [encode_message(Operation.TAKE, 12345)], pipes)
        for pipe in pipes:
            os.close(pipe)
        # Events are handled in order: after this one, the reply was.
        theirs.send(exited("other"))
        async with asyncio.timeout(PATIENCE_SECONDS):
            while "other" not in made._early_exits:  # noqa: ASYNC110 (nothing announces it)
                await asyncio.sleep(0)
        assert len(os.listdir("/proc/self/fd")) == before


BROKEN: list[Callable[[socket.socket], object]] = [
    lambda theirs: theirs.close(),
    lambda theirs: theirs.send(struct.pack("=IIQ", 2**32 - 1, 2, 1)),
    lambda theirs: theirs.send(encode_message(Operation.EXITED, 0, b"too short")),
    lambda theirs: theirs.send(encode_message(Operation.FAILED, 1, struct.pack("=Ii", 77, 1))),
]


@pytest.mark.parametrize("broken", BROKEN, ids=["closed", "too long", "a short event", "an unknown step"])
async def test_a_spawner_that_breaks_the_protocol_is_gone_for_all(broken: Callable[[socket.socket], object]) -> None:
    async with connected() as (made, theirs):
        waiting = asyncio.create_task(made.held())
        await request(theirs)
        broken(theirs)
        with pytest.raises(SpawnerGone):
            await asyncio.wait_for(waiting, PATIENCE_SECONDS)
        assert made.gone is not None
        assert made.gone.done()
        with pytest.raises(SpawnerGone):
            await made.kill("job-7")


@settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture], max_examples=40)
@given(st.lists(st.binary(min_size=1, max_size=200), min_size=1, max_size=5))
def test_whatever_a_spawner_sends_a_request_ends(pieces: list[bytes]) -> None:
    async def run() -> None:
        async with connected() as (made, theirs):
            waiting = asyncio.create_task(made.kill("job-7"))
            await request(theirs)
            for piece in pieces:
                theirs.send(piece)
            theirs.close()
            with suppress(SpawnerGone, SpawnFailed, ValueError):
                await asyncio.wait_for(waiting, PATIENCE_SECONDS)

    asyncio.run(run())


async def test_a_message_whose_sender_is_cancelled_is_sent_to_its_end() -> None:
    """Half of one would make the spawner read the next one wrongly, and drop the worker."""
    loop = asyncio.get_running_loop()
    async with connected() as (made, theirs):
        large, small = b"l" * 4_000_000, b"s" * 10
        cancelled = asyncio.create_task(made._send(large, ()))
        # It fills the buffer of the socket.
        received = bytearray(await loop.sock_recv(theirs, 1000))
        cancelled.cancel()
        following = asyncio.create_task(made._send(small, ()))
        while len(received) < len(large) + len(small):
            received += await loop.sock_recv(theirs, 100_000)
        assert received == large + small
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        await following
