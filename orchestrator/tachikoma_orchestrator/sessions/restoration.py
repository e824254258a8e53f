"""The screen of a session, made from the output that Redis holds: for a caller that attaches to it.

Redis holds the beginning and the end of a long output. The model follows both. The agent has stored the modes of the
terminal at places of the output, so a mode that was changed between the two is known as well.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Iterable

from tachikoma.sessions.modes import MAX_CHECKPOINT
from tachikoma.vocabulary.messages import OutputKind
from tachikoma.vocabulary.requests import WindowSize
from tachikoma.vocabulary.results import ExecOutput
from tachikoma_orchestrator.executions.follower import Follower
from tachikoma_orchestrator.sessions.screen import open_screen
from tachikoma_orchestrator.sessions.sizes import SizeHistory

__all__ = ["restored_screen"]

#: Largest number of bytes of one message.
PART_BYTES = 1024 * 1024
#: Most output after a gap that waits for a checkpoint. Agents store one in each 256 KiB; earlier versions store none.
UNPLACED_BYTES = 512 * 1024


async def restored_screen(
    exec_id: str, follower: Follower, sizes: SizeHistory, window: WindowSize
) -> AsyncIterator[ExecOutput]:
    """Read the output so far, and yield the messages that draw its screen. The follower continues after it.

    Args:
        exec_id: the execution.
        follower: at the beginning of the output.
        sizes: of the session's terminal until now.
        window: size of the caller's window.

    Raises:
        OutputAltered: an entry of the log is no output of the agent.
    """
    drawing = _Drawing(sizes)
    #: Output after a gap, until the modes at the gap are known; None where they are.
    unplaced: list[ExecOutput] | None = None
    unplaced_bytes = 0
    async for output in follower.replay():
        if output.kind is OutputKind.GAP:
            drawing.follow(unplaced or ())
            drawing.screen.skip()
            unplaced, unplaced_bytes = [], 0
            continue
        if unplaced is None:
            drawing.follow([output])
            continue
        # The first checkpoint has the modes at the gap too, but for changes in the output between the two.
        unplaced.append(output)
        unplaced_bytes += len(output.data)
        modes = follower.modes[1] if follower.modes is not None and follower.modes[0] == output.seq else b""
        if modes or unplaced_bytes > UNPLACED_BYTES:
            drawing.screen.feed(modes[:MAX_CHECKPOINT])
            drawing.screen.skip()
            drawing.follow(unplaced)
            unplaced = None
    drawing.follow(unplaced or ())
    drawn = drawing.finish(window)
    parts = [drawn[start : start + PART_BYTES] for start in range(0, len(drawn), PART_BYTES)]
    for part in parts[:-1]:
        # A caller whose connection breaks now begins again.
        yield ExecOutput(id=exec_id, kind=OutputKind.SCREEN, data=part)
    yield ExecOutput(id=exec_id, kind=OutputKind.SCREEN, seq=follower.seq, data=parts[-1], offset=drawing.end)


class _Drawing:
    """A screen that follows output, and the changes of its size at their places in the output."""

    def __init__(self, sizes: SizeHistory) -> None:
        self.screen = open_screen(sizes.first)
        self._changes = deque(sizes.changes())
        #: Number of output bytes that it has followed, those in gaps included.
        self.end = 0

    def follow(self, outputs: Iterable[ExecOutput]) -> None:
        """Follow chunks of output."""
        for output in outputs:
            data, self.end = output.data, output.offset
            while data:
                while self._changes and self._changes[0][0] <= self.end:
                    self.screen.resize(self._changes.popleft()[1])
                part = data[: self._changes[0][0] - self.end] if self._changes else data
                self.screen.feed(part)
                data, self.end = data[len(part) :], self.end + len(part)

    def finish(self, window: WindowSize) -> bytes:
        """Return the bytes that draw the screen in a window of this size."""
        for _, size in self._changes:
            self.screen.resize(size)
        self.screen.resize(window)
        return self.screen.draw()
