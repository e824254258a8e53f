"""The screen of a session, made from the output that Redis holds: for a caller that attaches to it.

Redis holds the beginning and the end of a long output. The model follows both, so modes that a program has set at its
beginning are known. A change in the part between them is not.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

from tachikoma.vocabulary.messages import OutputKind
from tachikoma.vocabulary.requests import WindowSize
from tachikoma.vocabulary.results import ExecOutput
from tachikoma_orchestrator.executions.follower import Follower
from tachikoma_orchestrator.sessions.screen import open_screen
from tachikoma_orchestrator.sessions.sizes import SizeHistory

__all__ = ["restored_screen"]

#: Largest number of bytes of one message.
PART_BYTES = 1024 * 1024


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
    screen = open_screen(sizes.first)
    changes = list(sizes.changes())
    end = 0
    async for output in follower.replay():
        if output.kind is OutputKind.GAP:
            screen.skip()
            continue
        data, end = output.data, output.offset
        while data:
            while changes and changes[0][0] <= end:
                screen.resize(changes.pop(0)[1])
            part = data[: changes[0][0] - end] if changes else data
            screen.feed(part)
            data, end = data[len(part) :], end + len(part)
    for _, size in changes:
        screen.resize(size)
    screen.resize(window)
    drawn = screen.draw()
    parts = [drawn[start : start + PART_BYTES] for start in range(0, len(drawn), PART_BYTES)]
    for part in parts[:-1]:
        # A caller whose connection breaks now begins again.
        yield ExecOutput(id=exec_id, kind=OutputKind.SCREEN, data=part)
    yield ExecOutput(id=exec_id, kind=OutputKind.SCREEN, seq=follower.seq, data=parts[-1], offset=end)
