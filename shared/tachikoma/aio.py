"""What asyncio leaves to its users."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

__all__ = ["cancel_all"]


async def cancel_all(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel tasks and wait until all have ended; how they ended does not matter any more.

    Cancelled again until then: `asyncio.wait_for` of Python 3.11, with which redis-py sends, forgets a cancellation
    that comes together with its result (gh-86296, fixed in 3.12).
    """
    pending = set(tasks)
    while pending:
        for task in pending:
            task.cancel()
        ended, pending = await asyncio.wait(pending, timeout=1)
        for task in ended:
            # Or asyncio logs an exception that nobody looked at.
            if not task.cancelled():
                task.exception()
