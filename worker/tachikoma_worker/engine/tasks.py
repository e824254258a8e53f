"""Tracked tasks: the executions of an agent, and the cleaning after them.

A part of the engine ends the worker when it fails (`tachikoma.config.tasks.supervised`). One execution must not be able
to do that, so the failure of a task here is logged and affects no other task.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Coroutine

import structlog

from tachikoma.config.tasks import cancel_all

__all__ = ["PartFailed", "TrackedTasks", "end_worker", "named"]

log = structlog.get_logger(__name__)


class TrackedTasks:
    """Tasks of one event loop that can be awaited or cancelled together."""

    def __init__(self, failed_event: str) -> None:
        """Start with none; `failed_event` is the event that is logged when a task fails."""
        self._failed_event = failed_event
        self._tasks: set[asyncio.Task[object]] = set()

    def start(self, work: Coroutine[object, object, object], *, name: str | None = None) -> None:
        """Start a task; its name is logged if it fails."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    async def wait(self, timeout_seconds: float) -> None:
        """Wait until all present tasks have ended, or until the timeout."""
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=timeout_seconds)

    async def cancel(self) -> None:
        """Cancel all tasks and wait until they have ended."""
        await cancel_all(self._tasks)

    def _ended(self, task: asyncio.Task[object]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error(self._failed_event, task=task.get_name(), exc_info=task.exception())


class PartFailed(Exception):
    """A part of the engine failed; its reason is in the log."""


async def named(name: str, part: Coroutine[object, object, object]) -> None:
    """Run a part of the engine, and log its failure under its name. Raises PartFailed."""
    try:
        await part
    except Exception as error:
        log.critical(f"{name}.failed", exc_info=True)
        raise PartFailed(name) from error


def end_worker() -> None:
    """Ask Celery's worker to stop, which then stops its pool and with it the engine."""
    os.kill(os.getpid(), signal.SIGTERM)
