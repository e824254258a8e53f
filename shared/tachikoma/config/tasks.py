"""Supervision of background tasks: the one idiom that all processes use.

A process runs its background parts in an `asyncio.TaskGroup`. When one part fails, the group cancels the others and
raises what failed, so the process ends with its reason. When the process is asked to stop, the body of the group
returns, and `supervised` cancels the parts and waits for them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Iterable
from contextlib import asynccontextmanager
from typing import TypeVar

__all__ = ["Supervisor", "cancel_all", "supervised"]

T = TypeVar("T")


class Supervisor:
    """The running background parts of a process; made by `supervised`."""

    def __init__(self, group: asyncio.TaskGroup) -> None:
        self._group = group
        self._tasks: set[asyncio.Task[object]] = set()

    def start(self, part: Coroutine[object, None, T], *, name: str | None = None) -> asyncio.Task[T]:
        """Start one more background part; its failure ends the whole process like that of any other part."""
        task = self._group.create_task(part, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def stop(self) -> None:
        """Cancel all parts and wait until they have ended."""
        await cancel_all(self._tasks)


@asynccontextmanager
async def supervised(*parts: Coroutine[object, None, object]) -> AsyncIterator[Supervisor]:
    """Run background parts while the block runs.

    A part that fails cancels the block and all other parts, and its error is raised as it is. A part that returns
    leaves the others alone. At the end of the block all parts are cancelled and awaited.

    Args:
        parts: coroutines that usually run until cancelled.

    Raises:
        Exception: the first error of a part or of the block, without an ExceptionGroup around it.
    """
    try:
        async with asyncio.TaskGroup() as group:
            supervisor = Supervisor(group)
            for part in parts:
                supervisor.start(part)
            try:
                yield supervisor
            finally:
                await supervisor.stop()
    except BaseExceptionGroup as failures:
        raise _first(failures) from None


def _first(failures: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the first error in a group, however deep it is nested."""
    error: BaseException = failures
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


async def cancel_all(tasks: Iterable[asyncio.Task[object]]) -> None:
    """Cancel tasks and wait until all have ended; their results and errors are dropped.

    The cancellation is repeated each second: `asyncio.wait_for` of Python 3.11 loses one that arrives together with its
    result (gh-86296, fixed in 3.12), and a library may use it.
    """
    pending = set(tasks)
    while pending:
        for task in pending:
            task.cancel()
        ended, pending = await asyncio.wait(pending, timeout=1)
        for task in ended:
            # Retrieve the error, or asyncio logs that it was never retrieved.
            if not task.cancelled():
                task.exception()
