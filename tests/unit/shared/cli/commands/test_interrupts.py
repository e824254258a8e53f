"""The first Ctrl-C cancels the execution, the second leaves at once."""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import signal
from collections.abc import AsyncIterator

import pytest

from patience import PATIENCE_SECONDS
from tachikoma import NotFound, Unavailable
from tachikoma.cli.commands.interrupts import SIGNALS, Interrupts, output_failed
from tachikoma.cli.descriptors import OutputFailed


class Orchestrator:
    """A client whose calls to cancel end when they are told to."""

    def __init__(self) -> None:
        self.cancelled: list[str] = []
        self.asked = asyncio.Event()
        self.answer = asyncio.Event()
        self.error: Exception | None = None

    async def cancel(self, exec_id: str) -> None:
        self.cancelled.append(exec_id)
        self.asked.set()
        await self.answer.wait()
        if self.error is not None:
            raise self.error


@pytest.fixture
async def orchestrator() -> AsyncIterator[Orchestrator]:
    # A loop of an earlier test that is collected later would take the wake-up descriptor for signals away.
    gc.collect()
    # A background job of a shell is started with SIGINT ignored, and Interrupts leaves an ignored signal alone.
    before = {number: signal.signal(number, signal.SIG_DFL) for number in SIGNALS}
    yield Orchestrator()
    for number, handler in before.items():
        asyncio.get_running_loop().remove_signal_handler(number)
        signal.signal(number, handler)


async def handle(orchestrator: Orchestrator, ready: asyncio.Event, made: list[Interrupts]) -> str:
    """What `exec` does around its stream."""
    interrupts = Interrupts(orchestrator.cancel, "job-7")
    made.append(interrupts)
    ready.set()
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        return "left"
    finally:
        interrupts.close()
    return "ended"


async def start(orchestrator: Orchestrator) -> tuple[asyncio.Task[str], Interrupts]:
    ready, made = asyncio.Event(), list[Interrupts]()
    task = asyncio.create_task(handle(orchestrator, ready, made))
    await ready.wait()
    return task, made[0]


async def turn() -> None:
    """Let everything run that can."""
    for _ in range(5):
        await asyncio.sleep(0)


@pytest.mark.parametrize("number", SIGNALS)
async def test_the_first_signal_cancels_the_execution(
    orchestrator: Orchestrator, capsys: pytest.CaptureFixture[str], number: signal.Signals
) -> None:
    task, _ = await start(orchestrator)
    os.kill(os.getpid(), number)
    await asyncio.wait_for(orchestrator.asked.wait(), PATIENCE_SECONDS)
    assert orchestrator.cancelled == ["job-7"]
    assert capsys.readouterr().err == "tachikoma: cancelling; Ctrl-C again to leave\n"
    orchestrator.answer.set()
    await turn()
    assert not task.done()
    task.cancel()
    assert await task == "left"


async def test_the_second_signal_leaves_at_once(orchestrator: Orchestrator) -> None:
    task, interrupts = await start(orchestrator)
    interrupts.on_signal()
    interrupts.on_signal()
    assert await task == "left"


async def test_an_execution_that_was_not_accepted_yet_is_left(orchestrator: Orchestrator) -> None:
    orchestrator.error = NotFound("unknown")
    orchestrator.answer.set()
    task, interrupts = await start(orchestrator)
    interrupts.on_signal()
    assert await task == "left"


async def test_a_cancel_that_fails_is_reported_and_the_stream_goes_on(
    orchestrator: Orchestrator, capsys: pytest.CaptureFixture[str]
) -> None:
    orchestrator.error = Unavailable("cannot reach the orchestrator")
    orchestrator.answer.set()
    task, interrupts = await start(orchestrator)
    interrupts.on_signal()
    await turn()
    assert "tachikoma: cannot cancel: cannot reach the orchestrator\n" in capsys.readouterr().err
    assert not task.done()
    task.cancel()
    assert await task == "left"


async def test_who_leaves_waits_a_moment_for_the_cancel_to_arrive(
    orchestrator: Orchestrator, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, interrupts = await start(orchestrator)
    await interrupts.delivered()
    interrupts.on_signal()
    waiting = asyncio.create_task(interrupts.delivered())
    await turn()
    assert not waiting.done()
    orchestrator.answer.set()
    await waiting
    monkeypatch.setattr("tachikoma.cli.commands.interrupts.LEAVE_SECONDS", 0.001)
    task.cancel()
    assert await task == "left"


async def test_a_signal_that_the_parent_ignores_stays_ignored(orchestrator: Orchestrator) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        task, _ = await start(orchestrator)
        os.kill(os.getpid(), signal.SIGHUP)
        await turn()
        assert orchestrator.cancelled == []
        task.cancel()
        assert await task == "left"
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(
    ("number", "code", "message"),
    [
        (errno.EPIPE, 141, ""),
        (errno.ENOSPC, 125, "tachikoma: cannot write to standard output: full; the batch is cancelled\n"),
    ],
)
async def test_output_that_cannot_be_written_cancels(
    number: int, code: int, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tachikoma.cli.commands.interrupts.abandon_output", lambda: None)
    cancelled = []

    async def cancel(subject: str) -> None:
        cancelled.append(subject)

    assert await output_failed(OutputFailed(1, OSError(number, "full")), cancel, "b-1", "batch") == code
    assert cancelled == ["b-1"]
    assert capsys.readouterr().err == message


async def test_a_cancel_that_fails_says_that_the_command_continues(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tachikoma.cli.commands.interrupts.abandon_output", lambda: None)

    async def cancel(_: str) -> None:
        raise Unavailable("cannot reach the orchestrator")

    assert await output_failed(OutputFailed(1, OSError(errno.EIO, "faulty")), cancel, "job-7") == 125
    assert "the execution continues as job-7, since it cannot be cancelled: cannot reach" in capsys.readouterr().err
