"""Tracked tasks: awaited and cancelled together, and one that fails affects no other."""

from __future__ import annotations

import asyncio

from structlog.testing import capture_logs

from patience import PATIENCE_SECONDS
from tachikoma_worker.engine.tasks import TrackedTasks


async def fail() -> None:
    raise ValueError("planted")


async def test_a_failure_is_logged_once_under_its_name_and_ends_no_other() -> None:
    tasks = TrackedTasks("test.failed")
    done = asyncio.Event()
    with capture_logs() as logs:
        tasks.start(fail(), name="job-7")
        tasks.start(done.wait(), name="job-8")
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        done.set()
        await tasks.wait(PATIENCE_SECONDS)
    [entry] = logs
    assert (entry["event"], entry["task"], str(entry["exc_info"])) == ("test.failed", "job-7", "planted")


async def test_waiting_ends_at_its_timeout_and_leaves_the_tasks() -> None:
    tasks = TrackedTasks("test.failed")
    done = asyncio.Event()
    tasks.start(done.wait())
    await tasks.wait(0.01)
    done.set()
    await tasks.wait(PATIENCE_SECONDS)


async def test_cancelled_tasks_have_ended_and_are_no_failure() -> None:
    tasks = TrackedTasks("test.failed")
    ended: list[str] = []

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("ended")

    with capture_logs() as logs:
        tasks.start(work())
        tasks.start(work())
        await asyncio.sleep(0)
        await tasks.cancel()
    assert ended == ["ended", "ended"]
    assert logs == []


async def test_without_tasks_there_is_nothing_to_wait_for() -> None:
    tasks = TrackedTasks("test.failed")
    await tasks.wait(PATIENCE_SECONDS)
    await tasks.cancel()
