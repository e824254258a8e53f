"""A follower whose connection breaks a hundred times gets every byte of a long output, once and in order."""

from __future__ import annotations

import asyncio
import hashlib
import random
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from support import prepare, request

from tachikoma import AsyncClient, ExecState, OutputKind, Unavailable
from tachikoma.dev.stack import Stack

DISCONNECTS = 100
OUTPUT_BYTES = 60_000_000
#: How long the bytes are, so that none could stand for another.
LINES = 7_700_000
READ_BYTES = 256 * 1024


class BreakingWay:
    """A way to the orchestrator over which each connection breaks after a random number of bytes, so many times."""

    def __init__(self, address: str, dice: random.Random) -> None:
        host, _, port = address.rpartition(":")
        self._upstream = host, int(port)
        self._dice = dice
        self.broken = 0

    async def __aenter__(self) -> BreakingWay:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        back, forth = await asyncio.open_connection(*self._upstream)
        # Some end in the middle of their handshake already.
        left = self._dice.randrange(OUTPUT_BYTES // DISCONNECTS) if self.broken < DISCONNECTS else None
        upward = asyncio.ensure_future(_copy(reader, forth))
        try:
            with suppress(OSError):
                while data := await back.read(READ_BYTES if left is None else min(READ_BYTES, left)):
                    writer.write(data)
                    await writer.drain()
                    if left is not None:
                        left -= len(data)
                        if not left:
                            self.broken += 1
                            break
        finally:
            upward.cancel()
            # Without the usual good-bye: what is under way is lost.
            writer.transport.abort()
            forth.transport.abort()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(READ_BYTES):
            writer.write(data)
            await writer.drain()


async def _follow(stack: Stack, exec_id: str, way: BreakingWay) -> tuple[str, int, ExecState]:
    """Digest, length and end of an output; a break goes on from the last number."""
    digest, length, seq = hashlib.sha256(), 0, 0
    profile = replace(stack.profile(), address=way.address)
    # Each break but the last may end one call, and a few calls end in the handshake.
    for _ in range(3 * DISCONNECTS):
        with suppress(Unavailable):
            async with AsyncClient(profile) as client:
                async for output in client.attach(exec_id, after_seq=seq):
                    if output.kind is OutputKind.RESULT:
                        assert output.result is not None
                        return digest.hexdigest(), length, output.result.state
                    assert output.kind is not OutputKind.GAP
                    if output.kind is OutputKind.STDOUT:
                        assert output.seq == seq + 1
                        seq = output.seq
                        digest.update(output.data)
                        length += len(output.data)
    raise AssertionError("it never came to the end")


def _expected() -> str:
    digest, left = hashlib.sha256(), OUTPUT_BYTES
    for begin in range(1, LINES, 100_000):
        part = b"".join(b"%d\n" % number for number in range(begin, begin + 100_000))[:left]
        digest.update(part)
        left -= len(part)
        if not left:
            break
    return digest.hexdigest()


async def test_a_hundred_broken_connections_leave_no_trace_in_a_long_output(
    tmp_path: Path, redis_server: Path | None
) -> None:
    environment = {"TACHIKOMA_LOG_BYTES": str(2 * OUTPUT_BYTES)}
    with Stack(prepare(tmp_path), redis_server=redis_server, environment=environment) as stack:
        async with AsyncClient(stack.profile()) as client, BreakingWay(stack.address, random.Random(100)) as way:
            wanted = request("sh", "-c", f"seq {LINES} | head -c {OUTPUT_BYTES}")
            await client.submit(wanted)
            digest, length, state = await _follow(stack, wanted.id, way)
            assert way.broken == DISCONNECTS
            result = await client.execute(wanted)
    assert (state, length, digest) == (ExecState.SUCCEEDED, OUTPUT_BYTES, _expected())
    assert (result.stdout_summary.total_bytes, result.stdout_summary.sha256) == (OUTPUT_BYTES, digest)
