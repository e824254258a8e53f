"""Ways to a terminal on this machine over the network: OpenSSH, asyncssh, and this system by program and by library."""

from __future__ import annotations

import asyncio
import fcntl
import os
import pty
import shlex
import struct
import sys
import termios
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from peers import Sshd
from system import System

from tachikoma import AsyncClient, ExecRequest
from tachikoma.client.interactive import AsyncSession
from tachikoma.client.profile import Profile
from tachikoma.vocabulary.requests import Terminal

__all__ = ["AsyncSshLibrary", "Library", "Line", "Program", "Way", "ssh_program", "system_program"]

AGENT = "agent-1"
ROWS, COLUMNS = 24, 80
READ_BYTES = 256 * 1024


class Line(ABC):
    """An open terminal with a command."""

    @abstractmethod
    async def write(self, data: bytes) -> None:
        """Type."""

    @abstractmethod
    async def read(self) -> bytes:
        """Return the next output; none at its end."""

    async def until(self, expected: bytes) -> bytes:
        """Read until a text comes, and return what was read."""
        found = b""
        while expected not in found:
            data = await self.read()
            if not data:
                raise SystemExit(f"a terminal ended before {expected!r}: {found[-500:]!r}")
            found += data
        return found


class Way(ABC):
    """A way to open terminals."""

    name: str

    @abstractmethod
    def open(self, *command: str) -> Any:
        """Open a terminal with a command; a context manager."""

    @abstractmethod
    async def feed(self, file: Path, *command: str) -> bytes:
        """Run a command without a terminal whose standard input is a file, and return its output."""


class PtyLine(Line):
    """A program at a terminal of this machine."""

    def __init__(self, master: int) -> None:
        self.master = master
        self._readable = asyncio.Event()
        os.set_blocking(master, False)

    async def write(self, data: bytes) -> None:
        while data:
            try:
                data = data[os.write(self.master, data) :]
            except BlockingIOError:
                await asyncio.sleep(0.001)

    async def read(self, size: int = READ_BYTES) -> bytes:
        loop = asyncio.get_running_loop()
        while True:
            try:
                return os.read(self.master, size)
            except BlockingIOError:
                self._readable.clear()
                loop.add_reader(self.master, self._readable.set)
                await self._readable.wait()
                loop.remove_reader(self.master)
            except OSError:
                return b""


class Program(Way):
    """A program as people use it: at a terminal, or with a file as its input."""

    def __init__(
        self, name: str, terminal: Sequence[str], pipe: Sequence[str], environment: dict[str, str] | None = None,
        *, quoted: bool = False,
    ) -> None:  # fmt: skip
        """Prepare it.

        Args:
            name: its name in the tables.
            terminal, pipe: the program with its options, with a terminal and without.
            environment: further variables.
            quoted: whether it takes the command as a text for a shell.
        """
        self.name = name
        self._quoted = quoted
        self._terminal, self._pipe = list(terminal), list(pipe)
        self._environment = {**os.environ, "TERM": "xterm-256color", **(environment or {})}

    def _words(self, command: Sequence[str]) -> Sequence[str]:
        return [shlex.join(command)] if self._quoted else command

    @asynccontextmanager
    async def open(self, *command: str) -> AsyncIterator[PtyLine]:
        master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
        process = await asyncio.create_subprocess_exec(
            *self._terminal, *self._words(command), stdin=slave, stdout=slave, stderr=slave, env=self._environment,
            start_new_session=True,
        )  # fmt: skip
        os.close(slave)
        try:
            yield PtyLine(master)
        finally:
            process.kill()
            await process.wait()
            os.close(master)

    async def feed(self, file: Path, *command: str) -> bytes:
        with file.open("rb") as content:
            process = await asyncio.create_subprocess_exec(
                *self._pipe, *self._words(command), stdin=content, stdout=asyncio.subprocess.PIPE, env=self._environment
            )
            output, _ = await process.communicate()
        return output


def ssh_program(server: Sshd) -> Program:
    """OpenSSH, with a connection of its own for each call."""
    ssh = [
        *("ssh", "-F", "none", "-p", str(server.port), "-i", str(server.key), "-o", "StrictHostKeyChecking=no"),
        *("-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR"),
    ]
    return Program("ssh", [*ssh, "-tt", "root@127.0.0.1"], [*ssh, "-T", "root@127.0.0.1"], quoted=True)


def system_program(system: System, folder: Path) -> Program:
    """The command line of this system."""
    profile = folder / "profile.json"
    Profile(**system.facts["profile"]).save(profile)
    start = [sys.executable, "-m", "tachikoma", "exec"]
    return Program(
        "tachikoma exec", [*start, "-it", AGENT, "--"], [*start, "-i", AGENT, "--"],
        {"TACHIKOMA_PROFILE": str(profile)},
    )  # fmt: skip


class _AsyncSshLine(Line):
    def __init__(self, process: Any) -> None:
        self._process = process

    async def write(self, data: bytes) -> None:
        self._process.stdin.write(data)
        await self._process.stdin.drain()

    async def read(self) -> bytes:
        return bytes(await self._process.stdout.read(READ_BYTES))


class AsyncSshLibrary(Way):
    """asyncssh in this process, to OpenSSH's server."""

    name = "asyncssh"

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    @classmethod
    @asynccontextmanager
    async def connected(cls, server: Sshd) -> AsyncIterator[AsyncSshLibrary]:
        """Connect."""
        import asyncssh

        async with asyncssh.connect(
            "127.0.0.1", server.port, username="root", client_keys=[str(server.key)], known_hosts=None
        ) as connection:
            yield cls(connection)

    @asynccontextmanager
    async def open(self, *command: str) -> AsyncIterator[_AsyncSshLine]:
        process = await self._connection.create_process(
            shlex.join(command), term_type="xterm-256color", term_size=(COLUMNS, ROWS), encoding=None
        )
        try:
            yield _AsyncSshLine(process)
        finally:
            process.close()
            await process.wait_closed()

    async def feed(self, file: Path, *command: str) -> bytes:
        done = await self._connection.run(" ".join(command), stdin=str(file), encoding=None, check=True)
        return bytes(done.stdout)


class _LibraryLine(Line):
    def __init__(self, session: AsyncSession) -> None:
        self.session = session
        self._messages = aiter(session)  # type: ignore[call-overload]

    async def write(self, data: bytes) -> None:
        await self.session.write(data)

    async def read(self) -> bytes:
        async for message in self._messages:
            if message.data:
                return bytes(message.data)
        return b""


class Library(Way):
    """The client library of this system, in this process."""

    name = "tachikoma library"

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    @asynccontextmanager
    async def open(self, *command: str) -> AsyncIterator[_LibraryLine]:
        request = ExecRequest(
            agent_id=AGENT, command=command, interactive=True, tty=True, terminal=Terminal(rows=ROWS, columns=COLUMNS)
        )
        async with self._client.session(request) as session:
            yield _LibraryLine(session)

    async def feed(self, file: Path, *command: str) -> bytes:
        output = b""
        request = ExecRequest(agent_id=AGENT, command=command, interactive=True)
        async with self._client.session(request) as session:

            async def send() -> None:
                with file.open("rb") as content:
                    while data := content.read(READ_BYTES):
                        await session.write(data)
                await session.end()

            sending = asyncio.ensure_future(send())
            async for message in session:
                output += message.data
            await sending
        return output
