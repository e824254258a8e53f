"""The final states that this orchestrator reported, to be recorded again if Redis forgets them.

A cancelled, rejected or expired execution must not be queued or pending again after Redis went back to an older state.
One with a receipt must not be lost because its agent, which has the receipt in its journal, is silent then.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterator

from tachikoma.redis import keys
from tachikoma.redis.commands import Redis
from tachikoma_orchestrator.executions.transitions import DISPATCHED, Transition, TransitionOutcome
from tachikoma_orchestrator.store.scripts import Call, Runner

__all__ = ["ReportedStates", "Settled"]

#: How long a final state is remembered, in seconds.
KEEP_SECONDS = 24 * 3600
#: Most final states that are remembered; the oldest are forgotten first.
MAX_SETTLED = 10_000
#: The same for those with a receipt, which agents write again as well. A receipt has about 4 KiB.
KEEP_RECEIPTS_SECONDS, MAX_RECEIPTS = 900, 4000
#: Records that are read at once.
BATCH = 200


class Settled:
    """Remembers changes of records by execution."""

    def __init__(self, keep_seconds: float = KEEP_SECONDS, most: int = MAX_SETTLED) -> None:
        """Remember nothing yet.

        Args:
            keep_seconds: how long a change is remembered.
            most: most changes that are remembered; the oldest are forgotten first.
        """
        self._keep_seconds, self._most = keep_seconds, most
        #: The last change of each execution, with its time by the monotonic clock; the oldest first.
        self._changes: OrderedDict[str, tuple[float, Transition]] = OrderedDict()

    def remember(self, transition: Transition) -> None:
        """Remember a change that was made."""
        self._changes.pop(transition.exec_id, None)
        self._changes[transition.exec_id] = time.monotonic(), transition
        if len(self._changes) > self._most:
            self._changes.popitem(last=False)

    def __iter__(self) -> Iterator[Transition]:
        """Yield the changes that are still remembered, the oldest first."""
        oldest = time.monotonic() - self._keep_seconds
        for at, transition in list(self._changes.values()):
            if at >= oldest:
                yield transition


class ReportedStates:
    """Remembers the final states that were reported, and records them again."""

    def __init__(self, call: Callable[[Transition], Call]) -> None:
        """Remember nothing yet.

        Args:
            call: returns the call of the script that makes a change.
        """
        self._call = call
        self._without_receipt = Settled()
        self._with_receipt = Settled(KEEP_RECEIPTS_SECONDS, MAX_RECEIPTS)

    def remember(self, transition: Transition, outcome: TransitionOutcome) -> TransitionOutcome:
        """Remember a change if it was made; return its outcome."""
        if outcome is TransitionOutcome.DONE:
            (self._with_receipt if "receipt" in transition.fields else self._without_receipt).remember(transition)
        return outcome

    async def write_again(self, redis: Redis) -> None:
        """Record all of them again, after Redis lost data. Raises redis errors.

        Args:
            redis: connections that need not wait for the new life of Redis.
        """
        runner = Runner(redis)
        for transition in self._without_receipt:
            await runner.run(self._call(transition))
        # Most of these are still there.
        completed = list(self._with_receipt)
        for begin in range(0, len(completed), BATCH):
            for transition in await self._forgotten(redis, completed[begin : begin + BATCH]):
                await runner.run(self._call(transition))

    @staticmethod
    async def _forgotten(redis: Redis, transitions: list[Transition]) -> list[Transition]:
        """Return the changes whose records have no final state."""
        async with redis.pipeline(transaction=False) as pipe:
            for transition in transitions:
                pipe.hget(keys.execution(transition.exec_id), "state")
            states = await pipe.execute(raise_on_error=False)
        # A key of another type gives an error in place of a state.
        found = [state.decode(errors="replace") if isinstance(state, bytes) else "" for state in states]
        return [transition for transition, state in zip(transitions, found, strict=True) if state in DISPATCHED]
