"""A player of recordings at a terminal: output at its times, faster or slower, without long pauses."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass

from tachikoma.sessions.asciicast import OUTPUT, CastEvent

__all__ = ["Pace", "play"]


@dataclass(frozen=True, slots=True)
class Pace:
    """The speed at which a recording is played."""

    #: Speed of playback; 2 is twice as fast.
    speed: float = 1.0
    #: Longest pause between two events, in seconds of the recording; None for no limit.
    idle_seconds: float | None = None
    #: Microsecond of the recording from which on it has its own speed; all before is shown at once.
    from_us: int = 0

    def delay_seconds(self, before_us: int, at_us: int) -> float:
        """Return the pause between two events at microseconds of the recording."""
        seconds = max(0, at_us - max(before_us, self.from_us)) / 1_000_000
        if self.idle_seconds is not None:
            seconds = min(seconds, self.idle_seconds)
        return seconds / self.speed


async def play(
    events: Iterable[CastEvent], write: Callable[[bytes], Awaitable[None]], pace: Pace,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> None:  # fmt: skip
    """Write the output of a recording.

    Args:
        events: of the recording.
        write: writes bytes to the terminal.
        pace: the speed.
        sleep: waits for a number of seconds.
    """
    before_us = 0
    for event in events:
        # Other events count too: a pause in which a marker lies is two pauses.
        if delay := pace.delay_seconds(before_us, event.at_us):
            await sleep(delay)
        before_us = event.at_us
        if event.code == OUTPUT:
            await write(event.data.encode(errors="replace"))
