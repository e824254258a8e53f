"""Sessions on a real stack: parts are killed while input is typed, and nothing typed is lost or doubled."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from support import AGENT, POLICY, request, wait_until

from patience import PATIENCE_SECONDS
from tachikoma import AsyncClient, ExecResponse, ExecState, OutputKind
from tachikoma.client.interactive import AsyncSession
from tachikoma.dev.identities import own_user
from tachikoma.dev.stack import TRUST_DOMAIN, Stack
from tachikoma.identity.spiffe import user_id
from tachikoma.sessions.frames import SignalName
from tachikoma.vocabulary.requests import Terminal, WindowSize

GRANTED = """\
    allowInteractive: true
    allowTty: true
    idleTimeout: {idle}
"""


def write_policy(folder: Path, idle: str = "1h") -> None:
    user = user_id(TRUST_DOMAIN, own_user())
    (folder / "policy.yaml").write_text(POLICY.format(user=user) + GRANTED.format(idle=idle))


@pytest.fixture(scope="module")
def session_stack(tmp_path_factory: pytest.TempPathFactory, redis_server: Path | None) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("sessions")
    write_policy(folder)
    with Stack(folder, redis_server=redis_server) as running:
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


def kill_worker(stack: Stack) -> None:
    stack.agents[AGENT].kill()
    stack.start_agent(AGENT)


def kill_orchestrator(stack: Stack) -> None:
    stack.orchestrator.kill()
    stack.start_orchestrator()


def kill_redis(stack: Stack) -> None:
    stack.redis.kill()
    stack.start_redis()


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


async def type_until(made: Caller, killed: threading.Event) -> bytes:
    """Type numbered lines, a few at a time, until all kills are over; return all that was typed."""
    await made.until(b"33 99\n")
    typed = bytearray()
    while not killed.is_set():
        part = b"".join(b"%063d\n" % (len(typed) // 64 + number) for number in range(500))
        await made.session.write(part)
        typed += part
        await asyncio.sleep(0.02)
    await made.session.end()
    return bytes(typed)


def test_parts_are_killed_while_input_is_typed_and_no_byte_is_lost_or_doubled(session_stack: Stack) -> None:
    """Killed by the main thread: parts that another thread starts end with that thread."""
    kills: tuple[Callable[[Stack], None], ...] = (kill_worker, kill_orchestrator, kill_redis)
    callers: list[Caller] = []
    killed = threading.Event()

    async def use() -> bytes:
        async with caller(session_stack, "sh", "-c", "stty -echo -opost; stty size; sha256sum") as (made, reading):
            callers.append(made)
            typed = await type_until(made, killed)
            await asyncio.wait_for(reading, PATIENCE_SECONDS)
            return typed

    def accepted() -> int:
        return callers[0].session.accepted.offset if callers else 0

    with ThreadPoolExecutor(1) as pool:
        using = pool.submit(asyncio.run, use())
        try:
            for kill in kills:
                least = accepted() + 200_000
                wait_until(lambda least=least: accepted() > least, "more input was accepted")
                kill(session_stack)
        finally:
            killed.set()
        content = using.result(2 * PATIENCE_SECONDS)
    result = callers[0].result
    assert result is not None
    assert result.state is ExecState.SUCCEEDED, result.error
    assert callers[0].output == b"33 99\n" + hashlib.sha256(content).hexdigest().encode() + b"  -\n"
    session_stack.wait_for_agents()
