"""A session on the agent's side: real Redis, real spawner, real keys, and an orchestrator in the test's hands."""

from __future__ import annotations

import asyncio
import hashlib
import os
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

# Tests are loaded one by one (importmode importlib), so what they share is found by its folder.
sys.path.insert(0, str(Path(__file__).parent))
from orchestrator import PATIENCE_SECONDS, Orchestrator, orchestrator

from local_agent import LocalAgent
from tachikoma.config.tasks import cancel_all
from tachikoma.identity.signed_messages import Receipt
from tachikoma.redis.commands import Redis
from tachikoma.sessions.frames import (
    INPUT_CREDIT_BYTES,
    Acknowledge,
    Close,
    Data,
    Detach,
    End,
    Resize,
    Signal,
    SignalName,
)
from tachikoma.sessions.messages import Offer, Sealed
from tachikoma.sessions.sealing import EphemeralKey
from tachikoma.vocabulary.requests import WindowSize
from tachikoma.vocabulary.states import ExecState
from tachikoma_worker.execution.execution import Execution
from tachikoma_worker.output.spool import Spool
from tachikoma_worker.sessions import last_use
from tachikoma_worker.sessions import session as module

SHELL = ("/bin/bash", "--norc", "--noprofile", "--noediting", "-i")
PROMPT = {"environment": {"PS1": "$ "}}


@asynccontextmanager
async def running(it: Orchestrator) -> AsyncIterator[asyncio.Task[None]]:
    """The execution of the order; it is cancelled at the end if the test has not ended it."""
    task = asyncio.create_task(Execution.of_order(it.agent.context, it.order.jti, it.token).run())
    try:
        yield task
    finally:
        await cancel_all([task])


async def receipt(it: Orchestrator, task: asyncio.Task[None]) -> Receipt:
    await asyncio.wait_for(task, PATIENCE_SECONDS)
    found = await it.agent.receipt(it.order.jti)
    assert found is not None
    return found


@pytest.fixture
def made(agent: LocalAgent, redis: Redis, subscriptions: Redis) -> Any:
    def make(*command: str, **fields: Any) -> Any:
        return orchestrator(agent, redis, subscriptions, *command, **fields)

    return make


async def test_a_shell_is_typed_to_resized_signalled_and_left(made: Any) -> None:
    async with made(*SHELL, **PROMPT) as it, running(it) as task:
        await it.until_wanted()
        answer = await it.attach()
        assert (answer.accepted, answer.ended) == (0, False)
        await it.until_output(b"$ ")
        await it.type(b"stty size; echo $TERM\r")
        await it.until_output(b"24 80\r\nxterm-256color\r\n")
        await it.until(lambda progress: progress.offset == 22)
        await it.send(Resize(WindowSize(50, 132)))
        await it.type(b"stty size\r")
        await it.until_output(b"50 132\r\n")
        await it.until(lambda progress: progress.offset == 32)
        await it.type(b"sh -c 'echo $((40 + 2)); exec cat'\r")
        await it.until_output(b"42\r\n")
        await it.send(Signal(SignalName.INT))
        # The prompt comes first: a `cat` that has not run since its signal would still take the next line.
        await it.until_output(b"42\r\n\r\n$ ")
        await it.until(lambda progress: progress.offset == 67)
        await it.type(b"echo left $?; exit 7\r")
        await it.until_output(b"left 130\r\n")
        found = await receipt(it, task)
        assert (found.state, found.exit_code) == (ExecState.FAILED, 7)


async def test_what_redis_holds_shows_nothing_that_was_typed_and_is_trimmed(made: Any, redis: Redis) -> None:
    async with made("/bin/cat") as it, running(it):
        await it.attach()
        await it.type(b"a secret that is typed\n")
        raw = await redis.xrange(it.input_key)
        await it.until(lambda progress: progress.offset == 23)
        async with asyncio.timeout(PATIENCE_SECONDS):
            while await redis.xrange(it.input_key):  # noqa: ASYNC110 (nothing announces it)
                await asyncio.sleep(0.01)
        assert all(b"secret" not in value for _, fields in raw for value in fields.values())


async def test_input_of_a_pipe_streams_to_its_end_and_its_streams_stay_apart(made: Any, redis: Redis) -> None:
    content = os.urandom(3 << 20)
    script = "sha256sum; echo error >&2"
    async with made("/bin/sh", "-c", script, tty=False) as it, running(it) as task:
        await it.attach()
        await it.type(content)
        await it.until(lambda progress: progress.offset == len(content))
        # The command ends with its input, so there may be no further report of progress.
        await it.send(End(len(content)))
        found = await receipt(it, task)
        assert found.state is ExecState.SUCCEEDED
        assert found.stderr.total_bytes == 6
        assert hashlib.sha256(content).hexdigest().encode() in await it.output()
        async with asyncio.timeout(PATIENCE_SECONDS):
            while await redis.exists(it.input_key):  # noqa: ASYNC110 (nothing announces it)
                await asyncio.sleep(0.01)


async def test_the_flags_of_the_terminal_follow_a_password_prompt(made: Any) -> None:
    script = "echo start; stty -echo; printf Password:; read x; stty echo; echo; read y"
    async with made("/bin/sh", "-c", script) as it, running(it):
        await it.attach()
        await it.until_output(b"Password:")
        await it.until(lambda progress: progress.canonical and not progress.echo)
        await it.type(b"hidden\n")
        await it.until(lambda progress: progress.canonical and progress.echo)
        assert b"hidden" not in await it.output()


FORGERIES: dict[str, dict[str, Any]] = {
    "for another agent": {"aud": "spiffe://tachikoma.local/agent/web-2"},
    "for another execution": {"jti": "another"},
    "for another order": {"order_sha256": "ab" * 32},
    "expired": {"exp": 1},
    "by an agent": {},
    "of the same epoch again": {"epoch": 1},
}


@pytest.mark.parametrize("forgery", FORGERIES)
async def test_an_offer_that_is_not_genuine_changes_nothing(made: Any, forgery: str) -> None:
    async with made("/bin/cat") as it, running(it):
        await it.attach()
        signer = it.agent.context.identity.current() if forgery == "by an agent" else None
        forged = it.offer(EphemeralKey(), signer, **{"epoch": 9, **FORGERIES[forgery]})
        for token in (forged, forged[:-3] + "abc", "no token", ""):
            await it.add(Offer(token))
        await it.type(b"still here\n")
        await it.until_output(b"still here\r\nstill here\r\n")
        assert (await it.attach()).accepted == 11


@pytest.mark.parametrize("damage", ["altered", "missing", "repeated", "a gap", "no frame", "an answer"])
async def test_a_frame_that_cannot_be_trusted_ends_the_epoch_and_the_next_one_continues(made: Any, damage: str) -> None:
    async with made("/bin/sh", "-c", "stty -echo; echo ready; cat") as it, running(it):
        await it.attach()
        await it.until_output(b"ready\r\n")
        await it.type(b"one\n")
        await it.until(lambda progress: progress.offset == 4)
        frame = it.seal(Data(4, b"two\n"))
        if damage == "altered":
            await it.add(Sealed(frame[:-1] + bytes([frame[-1] ^ 1])))
        elif damage == "missing":
            await it.send(Data(8, b"three\n"))
        elif damage == "repeated":
            await it.add(Sealed(frame))
            await it.add(Sealed(frame))
        elif damage == "a gap":
            await it.add(Sealed(frame))
            await it.send(Data(9, b"x\n"))
        elif damage == "no frame":
            assert it._sealer is not None
            await it.add(Sealed(frame))
            await it.add(Sealed(it._sealer.seal(b"\xff")))
        else:
            await it.add(Sealed(frame))
            await it.send(it.accepted)
        await it.until_wanted()
        # Nothing of the old epoch counts any more.
        await it.add(Sealed(it.seal(Data(4, b"never\n"))))
        answer = await it.attach()
        # What was queued when the epoch ended need not have been accepted.
        assert answer.accepted in {"altered": (4,), "missing": (4,)}.get(damage, (4, 8))
        await it.type(b"one\ntwo\nthree\n", offset=0)
        await it.until_output(b"ready\r\none\r\ntwo\r\nthree\r\n")


async def test_more_input_than_may_be_in_flight_ends_the_epoch(made: Any) -> None:
    """The command reads nothing, so that what the pipe cannot hold stays in flight."""
    async with made("/bin/sleep", "60", tty=False) as it, running(it):
        await it.attach()
        await it.type(b"y" * (9 << 20))
        await it.until_wanted()
        assert (await it.attach()).accepted < INPUT_CREDIT_BYTES


async def test_another_orchestrator_takes_the_session_over_and_sends_again(made: Any) -> None:
    content = b"".join(b"%063d\n" % number for number in range(40_000))
    async with made("/bin/sh", "-c", "stty -echo -opost; echo ready; sha256sum") as it, running(it) as task:
        await it.attach()
        await it.until_output(b"ready\n")
        for _ in range(4):
            begin = it.accepted.offset
            await it.type(content[begin : begin + 700_000], offset=begin)
            answer = await it.attach()
            assert answer.accepted >= begin
            it.accepted = type(it.accepted)(answer.accepted)
        await it.type(content[it.accepted.offset :][: 3 << 20])
        await it.until(lambda progress: progress.offset == len(content))
        await it.send(End(len(content)))
        assert (await receipt(it, task)).state is ExecState.SUCCEEDED
        assert hashlib.sha256(content).hexdigest().encode() in await it.output()


async def test_another_caller_types_other_bytes_after_those_that_were_accepted(made: Any, tmp_path: Path) -> None:
    go = tmp_path / "go"
    script = f"until test -e {go}; do sleep 0.05; done; exec sha256sum"
    async with made("/bin/sh", "-c", script, tty=False) as it, running(it) as task:
        await it.attach()
        # More than a pipe holds, so that a part of it waits for the command.
        await it.type(b"a" * (3 << 20))
        await it.until(lambda progress: progress.offset > 0)
        begin = (await it.attach()).accepted
        assert 0 < begin < 3 << 20
        await it.type(b"b" * 300_000, offset=begin)
        await it.send(End(begin + 300_000))
        go.touch()
        assert (await receipt(it, task)).state is ExecState.SUCCEEDED
        assert hashlib.sha256(b"a" * begin + b"b" * 300_000).hexdigest().encode() in await it.output()


async def test_a_restarted_worker_continues_where_the_command_is(made: Any) -> None:
    content = b"".join(b"%063d\n" % number for number in range(20_000))
    async with made("/bin/sh", "-c", "stty -echo -opost; echo ready; sha256sum") as it:
        async with running(it):
            await it.attach()
            await it.until_output(b"ready\n")
            await it.type(content[:900_000], offset=0)
            await it.until(lambda progress: progress.offset > 0)
        # A frame of lost keys, which the next worker must skip.
        await it.send(Data(0, b"never\n"))
        context = it.agent.context
        spool = Spool.open(context.spools, it.order.jti, max_bytes=1 << 20)
        (held,) = await context.spawner.held()
        assert held.input.offset > 0
        execution = Execution.of_earlier_worker(context, it.order.jti, spool.start.order_sha256)
        task = asyncio.create_task(execution.resume(spool, held))
        await it.until_wanted()
        answer = await it.attach()
        assert answer.accepted >= held.input.offset
        # The caller repeats more than is missing.
        await it.type(content[answer.accepted - 100 :], offset=answer.accepted - 100)
        await it.until(lambda progress: progress.offset == len(content))
        await it.send(End(len(content)))
        assert (await receipt(it, task)).state is ExecState.SUCCEEDED
        assert hashlib.sha256(content).hexdigest().encode() in await it.output()


def group_exists(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


async def test_a_closed_session_hangs_up_and_leaves_no_process(made: Any) -> None:
    async with made(*SHELL, **PROMPT) as it, running(it) as task:
        await it.attach()
        await it.until_output(b"$ ")
        await it.type(b"(trap '' HUP TERM; sleep 300) & sh -c 'trap \"\" HUP; echo $((40 + 2)); sleep 300'\r")
        await it.until_output(b"42\r\n")
        (held,) = await it.agent.context.spawner.held()
        await it.send(Close())
        found = await receipt(it, task)
        assert (found.state, found.error) == (ExecState.CANCELLED, "hung up: its caller closed the session")
        assert found.kill is not None
        assert found.kill.empty
        # The dead are collected in the background, once the receipt is delivered.
        async with asyncio.timeout(PATIENCE_SECONDS):
            while group_exists(held.pid):  # noqa: ASYNC110 (nothing announces it)
                await asyncio.sleep(0.01)


async def test_a_session_without_input_ends_with_its_reason(made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.05)
    # Counted from the start, so that no step of the test has to come in time.
    async with made("/bin/cat", grant={"idle_seconds": 0.3}) as it, running(it) as task:
        found = await receipt(it, task)
        assert (found.state, found.error) == (ExecState.TIMED_OUT, "hung up: no input for 0.3 s")


@pytest.mark.parametrize("limit", ["idle_seconds", "detached_seconds"])
async def test_a_restarted_worker_counts_on_how_long_a_session_was_left_alone(
    made: Any, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    ahead = 0.0
    monkeypatch.setattr(last_use, "now", lambda: time.monotonic() + ahead)
    async with made("/bin/cat", grant={limit: 3600.0}) as it:
        context = it.agent.context
        path = context.sessions / it.order.jti
        async with running(it), asyncio.timeout(PATIENCE_SECONDS):
            while not path.exists() or not path.read_bytes():  # noqa: ASYNC110 (nothing announces it)
                await asyncio.sleep(0.01)
        # Less than the limit in the life of each worker, and more than it in both.
        ahead = 3500.0
        spool = Spool.open(context.spools, it.order.jti, max_bytes=1 << 20)
        (held,) = await context.spawner.held()
        execution = Execution.of_earlier_worker(context, it.order.jti, spool.start.order_sha256)
        task = asyncio.create_task(execution.resume(spool, held))
        await it.until_wanted()
        ahead = 3601.0
        found = await receipt(it, task)
        why = "no input" if limit == "idle_seconds" else "no caller was attached"
        assert (found.state, found.error) == (ExecState.TIMED_OUT, f"hung up: {why} for 3600 s")
        async with asyncio.timeout(PATIENCE_SECONDS):
            while path.exists():  # noqa: ASYNC110 (it is removed in the background)
                await asyncio.sleep(0.01)


@pytest.mark.parametrize("way", ["never attached", "detached", "vanished"])
async def test_a_session_without_a_caller_ends_with_its_reason(
    made: Any, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(module, "REPORT_SECONDS", 0.1)
    ahead = 0.0
    monkeypatch.setattr(last_use, "now", lambda: time.monotonic() + ahead)
    seconds = 3600.0
    async with made("/bin/cat", grant={"detached_seconds": seconds}) as it, running(it) as task:
        if way != "never attached":
            await it.attach()
        if way == "vanished":
            # As long as the orchestrator listens, the session lives.
            ahead += 2 * seconds
            for _ in range(10):
                await it.notice()
            assert not task.done()
        if way == "detached":
            await it.send(Detach())
        elif way == "vanished":
            await it._subscription.unsubscribe()
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not task.done():
                # An hour passes, also after the moment at which the absence is noticed.
                await asyncio.sleep(0.05)
                ahead += seconds
        found = await receipt(it, task)
        error = f"hung up: no caller was attached for {seconds:g} s"
        assert (found.state, found.error) == (ExecState.TIMED_OUT, error)


async def test_output_waits_for_the_acknowledgements_of_an_attached_caller(made: Any) -> None:
    async with made("/bin/sh", "-c", "stty -opost; echo ready; read x; yes") as it, running(it):
        await it.attach()
        output = await it.until_output(b"ready\n")
        await it.send(Acknowledge(len(output)))
        await it.type(b"\n", offset=0)
        await it.until_output(b"y\ny\n")
        sizes: list[int] = []
        async with asyncio.timeout(PATIENCE_SECONDS):
            while len(sizes) < 10 or sizes[-1] != sizes[-10]:
                sizes.append(len(await it.output()))
                await asyncio.sleep(0.05)
        # The first window, and at most a pipe beyond it.
        assert sizes[-1] - len(output) <= 16 * 1024 + 32 * 1024
        await it.send(Acknowledge(sizes[-1]))
        async with asyncio.timeout(PATIENCE_SECONDS):
            while len(await it.output()) == sizes[-1]:  # noqa: ASYNC110 (nothing announces it)
                await asyncio.sleep(0.01)
        await it.send(Detach())
        async with asyncio.timeout(PATIENCE_SECONDS):
            while len(await it.output()) < 1 << 20:  # noqa: ASYNC110 (nothing announces it)
                await asyncio.sleep(0.01)
