"""The output window: the bytes that an interactive command may send before its caller has acknowledged them.

A caller acknowledges the bytes that it has written to its terminal. Output in flight still appears after Ctrl-C. So the
window holds the bytes that the caller takes in a short time: its rate, times the sum of the shortest delay of an
acknowledgement and `AHEAD_SECONDS`. On a terminal of 200 KB/s, `yes` continues for more than 12 s after Ctrl-C without
a window, and for about 0.5 s with a window of 100 ms.
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
#: Shortest time that is measured, in seconds.
LEAST_SECONDS = 0.001
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
        #: Output that was taken, oldest first: its position, the time, and the bytes that were acknowledged then.
        self._moments: deque[tuple[int, float, int]] = deque(maxlen=MAX_MOMENTS)
        self._bytes_per_second = 0.0
        self._shortest_delay = float("inf")
        #: Whether output had to wait since the rate was measured, so that the caller is the slower side.
        self._waited = False
        self._changed = asyncio.Event()
        #: Bytes that may be taken and not acknowledged.
        self.size = self._least

    def open(self) -> None:
        """Remove the limit: no caller is attached, or the command has ended."""
        self._acknowledged = None
        self._moments.clear()
        self.size = self._least
        self._changed.set()

    def acknowledge(self, position: int) -> None:
        """Take an acknowledgement.

        Args:
            position: bytes of all output, from its beginning, that the caller has written.
        """
        before = self._acknowledged or 0
        self._acknowledged = max(position, before)
        last: tuple[int, float, int] | None = None
        while self._moments and self._moments[0][0] <= position:
            last = self._moments.popleft()
        if last is not None:
            self._measure(self._acknowledged - last[2], self._clock() - last[1])
            self._resize(self._acknowledged - before)
        self._changed.set()

    def _measure(self, count: int, seconds: float) -> None:
        """Measure delay and rate by output that took some seconds, in which a number of bytes were acknowledged.

        A command that writes little shows only that the caller is not slower. BBR measures in the same way
        (draft-ietf-ccwg-bbr, section 4.1.1).
        """
        seconds = max(seconds, LEAST_SECONDS)
        self._shortest_delay = min(self._shortest_delay, seconds)
        rate = count / seconds
        if self._waited or rate > self._bytes_per_second:
            self._bytes_per_second = rate
            self._waited = False

    def _resize(self, acknowledged: int) -> None:
        """Adapt the size to the rate: shrink at once, grow by acknowledged bytes. Terminals take first bytes faster."""
        wanted = self._bytes_per_second * (self._shortest_delay + AHEAD_SECONDS)
        self.size = round(max(min(wanted, self.size + acknowledged, self._most), self._least))

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
            self._moments.append((position, self._clock(), self._acknowledged))
