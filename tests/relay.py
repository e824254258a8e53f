"""A relay between one process and Redis, in the hands of a test.

It reads the commands that pass, so a test can hold one before it reaches Redis, or the answers behind it: a named point
of an execution is reached without anything in the product that knows of tests. It can also be a network that breaks:
with notice, in silence, or in one direction only.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from patience import PATIENCE_SECONDS
from tachikoma.config.tasks import cancel_all

__all__ = ["Command", "Point", "Relay", "Relays"]

#: A command as Redis gets it, its name first.
Command = list[bytes]
T = TypeVar("T")

#: Bytes read at once.
READ_BYTES = 256 * 1024
#: What a wait for something ends with when nothing came.
_NOTHING = b"*-1\r\n"


def _take(buffer: bytearray) -> tuple[Command, bytes] | None:
    """Remove a whole command from the beginning of a buffer: itself, and its bytes. None while it is not all there."""
    if not buffer:
        return None
    end = buffer.find(b"\r\n")
    if end < 0:
        return None
    command: Command = []
    position = end + 2
    for _ in range(int(buffer[1:end])):
        end = buffer.find(b"\r\n", position)
        if end < 0:
            return None
        begin, length = end + 2, int(buffer[position + 1 : end])
        position = begin + length + 2
        if len(buffer) < position:
            return None
        command.append(bytes(buffer[begin : begin + length]))
    raw = bytes(buffer[:position])
    del buffer[:position]
    return command, raw


class Point:
    """Where something is held until it is let go."""

    def __init__(self, matches: Callable[[Command], bool], *, answer: bool) -> None:
        """Prepare a point.

        Args:
            matches: which commands.
            answer: whether they pass, and what Redis says from then on is held.
        """
        self.matches = matches
        self.answer = answer
        #: Set when something is held.
        self.reached = threading.Event()
        self._open = asyncio.Event()

    async def passed(self) -> None:
        """Return when it is let go."""
        self.reached.set()
        await self._open.wait()

    def let_go(self) -> None:
        self._open.set()


class _Connection:
    """One connection of the process, and its other half to Redis."""

    def __init__(self, relay: Relay, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._relay = relay
        self._reader, self._writer = reader, writer
        self._last: Command = []
        self._held: Point | None = None
        #: Whether bytes are swallowed, as on a connection whose other end forgot it.
        self.half_open = False

    async def run(self) -> None:
        try:
            reader, writer = await asyncio.open_unix_connection(self._relay.upstream, limit=READ_BYTES)
        except OSError:
            # Redis is away: as the process would see it, the connection breaks.
            return
        received: asyncio.Queue[bytes] = asyncio.Queue()
        tasks = [
            asyncio.ensure_future(self._receive(received)),
            asyncio.ensure_future(self._up(received, writer)),
            asyncio.ensure_future(self._down(reader)),
        ]
        try:
            # Whichever side ends, both do; what is held then is lost.
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            writer.close()
            await cancel_all(tasks)

    async def _receive(self, received: asyncio.Queue[bytes]) -> None:
        # By itself, so that the end of the process is seen also while its command is held.
        while data := await self._reader.read(READ_BYTES):
            received.put_nowait(data)

    async def _up(self, received: asyncio.Queue[bytes], writer: asyncio.StreamWriter) -> None:
        buffer = bytearray()
        while True:
            buffer += await received.get()
            passed: list[bytes] = []
            while (taken := _take(buffer)) is not None:
                self._last, raw = taken
                for point in list(self._relay.points):
                    if not point.matches(self._last):
                        continue
                    if point.answer:
                        self._held = point
                        continue
                    await self._send(writer, passed)
                    await point.passed()
                passed.append(raw)
            await self._send(writer, passed)

    async def _send(self, writer: asyncio.StreamWriter, parts: list[bytes]) -> None:
        if not parts:
            return
        await self._relay.up.wait()
        if self.half_open:
            parts.clear()
            return
        writer.write(b"".join(parts))
        parts.clear()
        await writer.drain()

    async def _down(self, reader: asyncio.StreamReader) -> None:
        while data := await reader.read(READ_BYTES):
            # One that waits for something, such as BRPOP, was sent before the point was made.
            held = self._held or next(
                (point for point in self._relay.points if point.answer and self._last and point.matches(self._last)),
                None,
            )
            if held is not None:
                if data != _NOTHING:
                    await held.passed()
                # The answer of the next command, such as a ping, is another one's.
                self._held = None
            await self._relay.down.wait()
            if self.half_open:
                continue
            self._writer.write(data)
            await self._writer.drain()


class Relay:
    """The way of one process to Redis. Its methods are for the thread of `Relays`."""

    def __init__(self, upstream: Path) -> None:
        self.upstream = str(upstream)
        self.points: list[Point] = []
        self.up, self.down = asyncio.Event(), asyncio.Event()
        self.up.set()
        self.down.set()
        self._cut = False
        self._connections: set[asyncio.Task[None]] = set()
        self._live: set[_Connection] = set()
        self._server: asyncio.Server | None = None

    async def listen(self, path: Path) -> None:
        self._server = await asyncio.start_unix_server(self._accept, path, limit=READ_BYTES)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._cut:
            writer.close()
            return
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        connection = _Connection(self, reader, writer)
        self._live.add(connection)
        try:
            # The end of a process or of Redis is what this is for.
            with suppress(OSError, asyncio.CancelledError):
                await connection.run()
        finally:
            self._live.discard(connection)
            self._connections.discard(task)
            writer.close()

    async def _break(self) -> None:
        await cancel_all(list(self._connections))

    async def cut(self) -> None:
        """Break every connection, and every one that is tried from now on."""
        self._cut = True
        await self._break()

    async def silence(self, *, up: bool, down: bool) -> None:
        """Let nothing through in these directions; nobody is told."""
        if up:
            self.up.clear()
        if down:
            self.down.clear()

    async def forget(self) -> None:
        """Swallow the bytes of every connection there is; new ones work."""
        for connection in self._live:
            connection.half_open = True

    async def mend(self) -> None:
        """Be a network again; what was under way arrives."""
        self._cut = False
        self.up.set()
        self.down.set()

    async def hold(self, point: Point) -> None:
        self.points.append(point)

    async def let_go(self, point: Point) -> None:
        """Let what is held go on, and hold nothing more."""
        self.points.remove(point)
        point.let_go()

    async def lose(self, point: Point) -> None:
        """Lose what is held, and hold nothing more: connections break, and can be made anew at once."""
        self.points.remove(point)
        await self._break()

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        await self._break()


class Relays:
    """Runs relays in a thread of their own; for other threads. A context manager."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="relays", daemon=True)
        self._relays: dict[str, Relay] = {}
        self._thread.start()

    def do(self, action: Coroutine[Any, Any, T]) -> T:
        """Have something done in their thread."""
        return asyncio.run_coroutine_threadsafe(action, self._loop).result(PATIENCE_SECONDS)

    def __getitem__(self, name: str) -> Relay:
        return self._relays[name]

    def add(self, name: str, path: Path, upstream: Path) -> None:
        """A relay that listens on a path."""

        async def add() -> Relay:
            relay = Relay(upstream)
            await relay.listen(path)
            return relay

        self._relays[name] = self.do(add())

    def hold(self, name: str, matches: Callable[[Command], bool], *, answer: bool = False) -> Point:
        """Hold commands of a process, or their answers, from now on."""

        async def hold() -> Point:
            point = Point(matches, answer=answer)
            await self._relays[name].hold(point)
            return point

        return self.do(hold())

    def let_go(self, name: str, point: Point) -> None:
        """Let what a point holds go on."""
        self.do(self._relays[name].let_go(point))

    def lose(self, name: str, point: Point) -> None:
        """Lose what a point holds."""
        self.do(self._relays[name].lose(point))

    def close(self) -> None:
        for relay in self._relays.values():
            self.do(relay.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
