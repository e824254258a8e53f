"""Exponential back-off: the one way in which loops wait between attempts."""

from __future__ import annotations

import asyncio

__all__ = ["Backoff"]


class Backoff:
    """Growing delays between attempts of one operation. Not shared between tasks.

    The first delay is `first_seconds`; each further one is twice the last, at most `limit_seconds`. Call `reset` after
    a success, so that the next failure begins with the first delay again.
    """

    def __init__(self, first_seconds: float, limit_seconds: float) -> None:
        """Begin with the first delay.

        Args:
            first_seconds: the first delay, longer than 0.
            limit_seconds: the longest delay; equal to the first for a constant one.
        """
        if not 0 < first_seconds <= limit_seconds:
            raise ValueError("a back-off needs 0 < first_seconds <= limit_seconds")
        self._first = first_seconds
        self._limit = limit_seconds
        self._next = first_seconds

    @property
    def next_seconds(self) -> float:
        """The delay that the next `wait` takes."""
        return self._next

    def reset(self) -> None:
        """Begin with the first delay again."""
        self._next = self._first

    def advance(self) -> float:
        """Return the next delay in seconds, and double it for the time after, for loops that sleep by themselves."""
        delay, self._next = self._next, min(2 * self._next, self._limit)
        return delay

    async def wait(self) -> None:
        """Sleep for the next delay."""
        await asyncio.sleep(self.advance())
