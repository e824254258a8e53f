"""Sessions on a real stack: each part is killed while input is typed, and nothing typed is lost or doubled."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import select
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Self

import pytest
from support import AGENT, POLICY, Cli, kill_redis, request, wait_until

from patience import PATIENCE_SECONDS
from pty_process import PtyProcess
from tachikoma import AsyncClient, Client, ExecResponse, ExecState, OutputKind
from tachikoma.client.interactive import AsyncSession
from tachikoma.client.profile import Profile
from tachikoma.dev.identities import own_user
from tachikoma.dev.part import Part
from tachikoma.dev.redis_server import free_port
from tachikoma.dev.stack import TRUST_DOMAIN, Stack
from tachikoma.identity.spiffe import user_id
from tachikoma.sessions.frames import SignalName
from tachikoma.vocabulary.requests import Terminal, WindowSize
from tachikoma_orchestrator.sessions.screen import Screen, open_screen

pytestmark = pytest.mark.long

GRANTED = """\
    allowInteractive: true
    allowTty: true
    idleTimeout: {idle}
"""


def write_policy(folder: Path, idle: str = "1h") -> None:
    user = user_id(TRUST_DOMAIN, own_user())
    (folder / "policy.yaml").write_text(POLICY.format(user=user) + GRANTED.format(idle=idle))


class TwoOrchestrators(Stack):
    """A stack whose session can continue at another orchestrator."""

    def _make_parts(self) -> None:
        super()._make_parts()
        self.second_address = f"127.0.0.1:{free_port()}"
        command = [self.second_address if word == self.listen else word for word in self.orchestrator._command]
        log = str(self.data / "audit" / "second.jsonl")
        environment = {**self.orchestrator._environment, "TACHIKOMA_AUDIT_LOG": log}
        self.second = Part("second", command, self.data / "logs" / "second.log", environment)

    def start_orchestrator(self) -> None:
        super().start_orchestrator()
        if not self.second.alive:
            self.second.start_until_ready()

    def stop(self) -> None:
        self.second.stop()
        super().stop()

    def both(self) -> Profile:
        """The profile of a caller that knows both."""
        return replace(self.profile(), address=f"{self.address},{self.second_address}")


@pytest.fixture(scope="module")
def session_stack(tmp_path_factory: pytest.TempPathFactory, redis_server: Path | None) -> Iterator[TwoOrchestrators]:
    folder = tmp_path_factory.mktemp("sessions")
    write_policy(folder)
    with TwoOrchestrators(folder, redis_server=redis_server) as running:
        yield running


class Caller:
    """A caller at its session: what it sees, and the result."""

    def __init__(self, session: AsyncSession) -> None:
        self.session = session
        self.output = b""
        self.result: ExecResponse | None = None
        self._news = asyncio.Event()

    async def read(self) -> None:
        async for message in self.session:
            if message.kind is OutputKind.RESULT:
                self.result = message.result
            self.output += message.data
            self._news.set()

    async def until(self, expected: bytes) -> None:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while expected not in self.output:
                self._news.clear()
                await self._news.wait()


@asynccontextmanager
async def caller(stack: Stack, *command: str, tty: bool = True) -> AsyncIterator[tuple[Caller, asyncio.Task[None]]]:
    wanted = request(
        *command, interactive=True, tty=tty, terminal=Terminal(rows=33, columns=99) if tty else None, timeout=300
    )
    async with AsyncClient(stack.profile()) as client, client.session(wanted) as session:
        made = Caller(session)
        reading = asyncio.create_task(made.read())
        try:
            yield made, reading
        finally:
            reading.cancel()
            await asyncio.wait((reading,))


async def test_a_shell_follows_sizes_and_signals_over_the_whole_path(session_stack: Stack) -> None:
    async with caller(session_stack, "bash", "--norc", "--noprofile", "--noediting", "-i") as (made, reading):
        await made.session.write(b"PS1='ready> '; stty size\r")
        await made.until(b"33 99\r\n")
        await made.session.resize(WindowSize(50, 120))
        await made.session.write(b"sleep 0.2; stty size\r")
        await made.until(b"50 120\r\n")
        await made.session.write(b"sh -c 'echo $((40 + 2)); exec cat'\r")
        await made.until(b"42\r\n")
        await made.session.signal(SignalName.INT)
        await made.session.write(b"\rexit 7\r")
        await asyncio.wait_for(reading, PATIENCE_SECONDS)
        assert made.result is not None
        assert (made.result.state, made.result.exit_code) == (ExecState.FAILED, 7)


async def test_each_signal_of_the_api_reaches_the_command(session_stack: Stack) -> None:
    traps = "; ".join(f"trap 'echo got-{name}' {name}" for name in SignalName)
    async with caller(session_stack, "bash", "-c", f"{traps}; echo begun; while :; do sleep 0.1; done") as (made, _):
        await made.until(b"begun\r\n")
        for name in SignalName:
            await made.session.signal(name)
            await made.until(f"got-{name}\r\n".encode())
        await made.session.close()


async def test_a_closed_session_is_cancelled_with_its_reason(session_stack: Stack) -> None:
    async with caller(session_stack, "sh", "-c", "echo started; cat") as (made, reading):
        await made.until(b"started\r\n")
        await made.session.close()
        await asyncio.wait_for(reading, PATIENCE_SECONDS)
        assert made.result is not None
        assert made.result.state is ExecState.CANCELLED
        assert made.result.kill is not None
        assert made.result.kill.empty


async def test_input_without_a_terminal_has_no_bound(session_stack: Stack) -> None:
    content = bytes(range(256)) * 4096 * 10
    async with caller(session_stack, "sha256sum", tty=False) as (made, reading):
        await asyncio.wait_for(made.session.write(content), PATIENCE_SECONDS)
        await made.session.end()
        await asyncio.wait_for(reading, PATIENCE_SECONDS)
        assert made.output.split()[0].decode() == hashlib.sha256(content).hexdigest()


SIZE = WindowSize(33, 99)
#: Bytes of one typed line, with its end.
LINE_BYTES = 64
#: Draws each line that it reads at one of 20 places, in one of seven colours; at the end, the digest of all lines.
DRAWING = r"""
stty -echo -opost; stty size
exec awk '
    { printf "\033[%d;1H\033[3%dm%s", NR % 20 + 2, NR % 7 + 1, $0; fflush(); print | "sha256sum" }
    END { printf "\033[m\033[25;1H"; fflush(); close("sha256sum") }'
"""


def typed_line(number: int) -> bytes:
    return b"%063d\n" % number


def typed(lines: int) -> bytes:
    return b"".join(map(typed_line, range(lines)))


def undisturbed(lines: int) -> Screen:
    """The screen after all lines, in a session where nothing was killed."""
    screen = open_screen(SIZE)
    screen.feed(b"33 99\n")
    for number in range(1, lines + 1):
        screen.feed(b"\x1b[%d;1H\x1b[3%dm%063d" % (number % 20 + 2, number % 7 + 1, number - 1))
    screen.feed(b"\x1b[m\x1b[25;1H" + hashlib.sha256(typed(lines)).hexdigest().encode() + b"  -\n")
    return screen


class Typist(threading.Thread):
    """A person at the real program at a terminal: reads the screen, and types numbered lines without a pause."""

    def __init__(self, process: PtyProcess, begin: int) -> None:
        super().__init__(daemon=True)
        self.process = process
        self.screen = open_screen(SIZE)
        #: Number of the latest line that was drawn.
        self.drawn = 0
        self.typed_bytes = begin
        self._last = b""
        self._over = threading.Event()

    def __enter__(self) -> Self:
        os.set_blocking(self.process.master, False)
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.join()

    def run(self) -> None:
        while not self._over.wait(0.01):
            self.read()
            position = self.typed_bytes % LINE_BYTES
            line = typed_line(self.typed_bytes // LINE_BYTES)[position:]
            # While the program reads nothing, the terminal takes nothing more.
            with suppress(BlockingIOError):
                self.typed_bytes += os.write(self.process.master, line)

    def read(self) -> None:
        while select.select([self.process.master], [], [], 0)[0]:
            data = os.read(self.process.master, 65536)
            self.screen.feed(data)
            for found in re.finditer(rb"m(\d{63})", self._last + data):
                self.drawn = max(self.drawn, int(found[1]))
            self._last = (self._last + data)[-128:]

    def finish(self) -> int:
        """Complete the last line and end the input; return the number of lines."""
        lines = -(-self.typed_bytes // LINE_BYTES)
        self.process.type(typed_line(lines - 1)[self.typed_bytes % LINE_BYTES or LINE_BYTES :] + b"\x04")
        return lines


async def accepted_bytes(stack: TwoOrchestrators, name: str) -> int:
    """Attach as another program of the same person, ask how much of the input the command has, and leave."""
    async with AsyncClient(stack.both()) as client, client.attach_session(name) as session:
        made = Caller(session)
        reading = asyncio.create_task(made.read())
        # Writing waits until the position is known.
        await asyncio.wait_for(session.write(b""), PATIENCE_SECONDS)
        await session.detach()
        await asyncio.wait_for(reading, PATIENCE_SECONDS)
        return session.accepted.offset


def on_screen(screen: Screen) -> bytes:
    """The screen with its colours and cursor; without the lines above it."""
    return screen.draw().rpartition(b"\x1b[H\x1b[2J")[2]


def test_each_part_is_killed_while_input_is_typed_and_the_screen_is_as_of_an_undisturbed_session(
    session_stack: TwoOrchestrators, tmp_path: Path
) -> None:
    """Parts are killed by the main thread: those that another thread starts end with that thread."""
    stack, name = session_stack, "disturbed"
    stack.both().save(tmp_path / "profile.json")
    cli = Cli(tmp_path / "profile.json")

    def open_terminal(*arguments: str) -> PtyProcess:
        return cli.open(*arguments, rows=SIZE.rows, columns=SIZE.columns)

    def until_drawn(typist: Typist, more: int = 50) -> None:
        wanted = typist.drawn + more
        wait_until(lambda: typist.drawn >= wanted, "more of what was typed was drawn")

    with open_terminal("exec", "-it", "--id", name, AGENT, "--", "sh", "-c", DRAWING) as first:
        first.expect("33 99")
        with Typist(first, 0) as typist:
            until_drawn(typist)
            first.process.kill()
    begin = asyncio.run(accepted_bytes(stack, name))
    with open_terminal("sessions", "attach", name) as second:
        # Typed keys are held by the terminal until the program has made it a raw one.
        second.expect("\x1b\\[H")
        typist = Typist(second, begin)
        typist.screen.feed(bytes(second.output))
        with typist:
            until_drawn(typist)
            stack.agents[AGENT].kill()
            stack.start_agent(AGENT)
            until_drawn(typist)
            stack.orchestrator.kill()
            until_drawn(typist)
            stack.start_orchestrator()
            kill_redis(stack)
            stack.start_redis()
            until_drawn(typist)
        shown = len(second.output)
        lines = typist.finish()
        assert second.wait() == 0
        assert second.restored()
        typist.screen.feed(bytes(second.output[shown:]))
    assert typist.screen.text() == undisturbed(lines).text()
    assert on_screen(typist.screen) == on_screen(undisturbed(lines))
    stack.wait_for_agents()
    with Client(stack.profile()) as client:
        assert client.status(name).state is ExecState.SUCCEEDED
