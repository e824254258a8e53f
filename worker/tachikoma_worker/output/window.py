"""The output window: how far the output of an interactive command may be ahead of its attached caller.

A caller acknowledges the bytes that it has written to its terminal. Output in flight still appears after Ctrl-C. So the
window holds what the caller takes in a short time: its rate times the shortest delay of an acknowledgement and
`AHEAD_SECONDS` more. Without a window, a terminal of 200 KB/s shows `yes` for more than 12 s after Ctrl-C; with one of
100 ms for about 0.5 s.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable

__all__ = ["OutputWindow"]

#: Output that may be on its way to the caller beyond the shortest delay, in seconds.
AHEAD_SECONDS = 0.1
#: Smallest and largest window of a terminal, in bytes. The smallest one is the first one.
TERMINAL_BYTES = (16 * 1024, 4 * 1024 * 1024)
#: Window of a command without a terminal, in bytes. Its output is no display, so it need not be short.
PIPE_BYTES = 4 * 1024 * 1024
#: Time over which the rate is measured, in seconds.
RATE_SECONDS = 0.2
#: Moments of output that are remembered, to measure the delay of their acknowledgement.
MAX_MOMENTS = 4096


class OutputWindow:
    """The window of one command's output. It is open until the caller acknowledges output."""

    def __init__(self, *, terminal: bool = False, clock: Callable[[], float] = time.monotonic) -> None:
        """Make a window without a limit.

        Args:
            terminal: whether the output is that of a terminal.
            clock: the time in seconds.
        """
        self._least, self._most = TERMINAL_BYTES if terminal else (PIPE_BYTES, PIPE_BYTES)
        self._clock = clock
        #: Acknowledged bytes of all output; None for no limit.
        self._acknowledged: int | None = None
        #: Position and time of output that was taken, and of acknowledgements, oldest first.
        self._moments: deque[tuple[int, float]] = deque(maxlen=MAX_MOMENTS)
        self._progress: deque[tuple[int, float]] = deque(maxlen=MAX_MOMENTS)
        self._bytes_per_second = 0.0
        self._shortest_delay = float("inf")
        #: Whether output had to wait since the rate was measured, so that the caller is the slower side.
        self._waited = False
        self._changed = asyncio.Event()

    @property
    def size(self) -> int:
        """Bytes that may be taken and not acknowledged."""
        delay = self._shortest_delay if self._shortest_delay < float("inf") else 0.0
        return round(min(max(self._bytes_per_second * (delay + AHEAD_SECONDS), self._least), self._most))

    def open(self) -> None:
        """Remove the limit: no caller is attached, or the command has ended."""
        self._acknowledged = None
        self._moments.clear()
        self._progress.clear()
        self._changed.set()

    def acknowledge(self, position: int) -> None:
        """Take an acknowledgement.

        Args:
            position: bytes of all output, from its beginning, that the caller has written.
        """
        now = self._clock()
        delay: float | None = None
        while self._moments and self._moments[0][0] <= position:
            delay = now - self._moments.popleft()[1]
        if delay is not None:
            self._shortest_delay = min(self._shortest_delay, delay)
        self._acknowledged = max(position, self._acknowledged or 0)
        self._measure(self._acknowledged, now)
        self._changed.set()

    def _measure(self, position: int, now: float) -> None:
        """Measure the caller's rate. A command that writes little shows only that the rate is not lower."""
        self._progress.append((position, now))
        while now - self._progress[0][1] > RATE_SECONDS and len(self._progress) > 2:
            self._progress.popleft()
        first, since = self._progress[0]
        if now - since < RATE_SECONDS / 10:
            return
        rate = (position - first) / (now - since)
        if self._waited or rate > self._bytes_per_second:
            self._bytes_per_second = rate
            self._waited = False

    async def room(self, position: int) -> None:
        """Wait until more output may be taken.

        Args:
            position: bytes of all output that was taken.
        """
        while self._acknowledged is not None and position - self._acknowledged >= self.size:
            self._waited = True
            self._changed.clear()
            await self._changed.wait()

    def taken(self, position: int) -> None:
        """Remember when output was taken, up to a position."""
        if self._acknowledged is not None:
            self._moments.append((position, self._clock()))
