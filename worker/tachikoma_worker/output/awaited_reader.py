"""The reader that a command's output waits for: the attached caller, or with `whenFull: wait` any reader.

The reader's orchestrator writes its position to Redis. Unread output is not cut while the reader makes progress, so the
command blocks in its write at the pace of its reader. A reader that reads nothing for too long, for example a paused
terminal, no longer holds the command; it gets a gap.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from tachikoma.streams.frames import READER_LEFT, parse_reader_position

__all__ = ["AwaitedReader"]


class AwaitedReader:
    """The reader of one output, and how long the output waits for it."""

    def __init__(
        self, *, always: bool, attached: bool, limit_seconds: float | None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Describe a reader.

        Args:
            always: whether output waits also while there is no reader.
            attached: whether the caller reads the output from its beginning, and has not left.
            limit_seconds: longest wait for a reader that reads nothing; None for no limit.
            clock: the time in seconds.
        """
        self.always = always
        self._attached = attached
        self._limit_seconds = limit_seconds
        self._clock = clock
        #: Number of the last chunk that was read.
        self._position = 0
        #: Whether a reader has reported a position, and not left since.
        self._reports = False
        #: When the wait for the next position began; None while nothing waits.
        self._since: float | None = None
        #: Position at which the reader was given up; None if it was not.
        self._given_up_at: int | None = None

    def note(self, report: bytes) -> None:
        """Take what the reader reported last; empty without a report. An unreadable value counts as none."""
        position = parse_reader_position(report)
        if position is None:
            # The report of a caller that the order named may still come.
            self._attached = self._attached and not self._reports and report != READER_LEFT
            self._reports = False
            return
        self._reports = True
        if position != self._position:
            self._position = position
            self._since = self._given_up_at = None

    def matters_to(self, seq: int) -> bool:
        """Return whether the reader's position decides if the chunk with this number may be cut."""
        return seq > self._position and self._limit_seconds != 0

    def keeps(self, seq: int) -> bool:
        """Return whether output waits for its reader before the chunk with this number may be cut."""
        if seq <= self._position or not (self.always or self._attached or self._reports):
            self._since = None
            return False
        if self._limit_seconds is None:
            return True
        if self._given_up_at == self._position:
            return False
        now = self._clock()
        self._since = now if self._since is None else self._since
        if now - self._since < self._limit_seconds:
            return True
        self._given_up_at = self._position
        return False
