"""The final states without a receipt that this orchestrator reported, to be recorded again if Redis forgets them.

A cancelled, rejected or expired execution must not be queued or pending again after Redis went back to an older state.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Iterator

from tachikoma_orchestrator.executions.transitions import Transition

__all__ = ["Settled"]

#: How long a final state is remembered, in seconds.
KEEP_SECONDS = 24 * 3600
#: Most final states that are remembered; the oldest are forgotten first.
MAX_SETTLED = 10_000


class Settled:
    """Remembers changes of records by execution."""

    def __init__(self) -> None:
        #: The last change of each execution, with its time by the monotonic clock; the oldest first.
        self._changes: OrderedDict[str, tuple[float, Transition]] = OrderedDict()

    def remember(self, transition: Transition) -> None:
        """Remember a change that was made."""
        self._changes.pop(transition.exec_id, None)
        self._changes[transition.exec_id] = time.monotonic(), transition
        if len(self._changes) > MAX_SETTLED:
            self._changes.popitem(last=False)

    def __iter__(self) -> Iterator[Transition]:
        """Yield the changes that are still remembered, the oldest first."""
        oldest = time.monotonic() - KEEP_SECONDS
        for at, transition in list(self._changes.values()):
            if at >= oldest:
                yield transition
