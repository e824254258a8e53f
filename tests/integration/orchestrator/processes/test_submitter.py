"""The submitter's loop: work from other threads, release, stop, failure of a part."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from celery.exceptions import Ignore, Reject

from patience import PATIENCE_SECONDS
from tachikoma_orchestrator.processes.settings import SubmitterSettings
from tachikoma_orchestrator.processes.submitter import Submitter
from tachikoma_orchestrator.processes.taken_messages import TakenMessages


@pytest.fixture
def made(given: dict[str, Any]) -> Iterator[Submitter]:
    submitter = Submitter(SubmitterSettings(**given))
    yield submitter
    submitter.stop()
    assert not submitter._thread.is_alive()
    assert submitter._loop.is_closed()


@pytest.fixture
def submitter(made: Submitter) -> Submitter:
    made.start()
    return made


async def double(number: int) -> int:
    await asyncio.sleep(0)
    return 2 * number


async def wait_for_ever(started: threading.Event) -> None:
    started.set()
    await asyncio.Event().wait()


def test_threads_get_the_results_of_their_work(submitter: Submitter) -> None:
    with ThreadPoolExecutor(8) as threads:
        results = list(threads.map(lambda number: submitter.run(f"t{number}", double(number)), range(50)))
    assert results == [2 * number for number in range(50)]
    assert submitter.failure is None


def test_an_error_of_the_work_is_raised_in_the_thread(submitter: Submitter) -> None:
    async def fail() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        submitter.run("t", fail())
    # The id is free again.
    assert submitter.run("t", double(1)) == 2


def test_a_task_whose_message_came_twice_is_done_once(submitter: Submitter) -> None:
    started = threading.Event()
    with ThreadPoolExecutor(1) as threads:
        first = threads.submit(submitter.run, "t", wait_for_ever(started))
        assert started.wait(PATIENCE_SECONDS)
        with pytest.raises(Ignore):
            submitter.run("t", double(1))
        submitter.release()
        with pytest.raises(Reject):
            first.result(PATIENCE_SECONDS)


def test_released_work_goes_back_to_its_queue_and_no_more_is_taken(submitter: Submitter) -> None:
    started = threading.Event()
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(submitter.run, "t", wait_for_ever(started))
        assert started.wait(PATIENCE_SECONDS)
        submitter.release()
        with pytest.raises(Reject) as caught:
            waiting.result(PATIENCE_SECONDS)
    assert caught.value.requeue
    with pytest.raises(Reject):
        submitter.run("u", double(1))
    assert submitter.failure is None


def test_a_part_that_fails_ends_the_process_with_its_reason(made: Submitter, monkeypatch: pytest.MonkeyPatch) -> None:
    fail, asked = threading.Event(), threading.Event()

    async def failing(self: TakenMessages) -> None:
        while not fail.is_set():  # noqa: ASYNC110 (an event of another thread)
            await asyncio.sleep(0.001)
        raise ZeroDivisionError("the part failed")

    def kill(pid: int, number: int) -> None:
        assert (pid, number) == (os.getpid(), signal.SIGTERM)
        asked.set()

    monkeypatch.setattr(TakenMessages, "run", failing)
    monkeypatch.setattr("tachikoma_orchestrator.processes.submitter.os.kill", kill)
    made.start()
    fail.set()
    assert asked.wait(PATIENCE_SECONDS)
    assert isinstance(made.failure, ZeroDivisionError)
    # Celery's threads can still use the loop, until Celery has stopped.
    assert made.run("t", double(1)) == 2


def test_a_start_that_fails_is_raised(made: Submitter, monkeypatch: pytest.MonkeyPatch) -> None:
    async def failing(self: Any, supervisor: Any) -> None:
        raise ZeroDivisionError("no start")

    monkeypatch.setattr("tachikoma_orchestrator.processes.parts.Core.start", failing)
    with pytest.raises(ZeroDivisionError, match="no start"):
        made.start()
