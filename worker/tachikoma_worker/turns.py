"""The requesters' turns: the queues of an agent from which it may take its next order.

An agent has several queues, and all orders of one requester are on the same one. kombu asks them in turn, so that no
long queue delays a short one. Some slots are reserved: a queue whose commands occupy many slots gets none of these. So
a requester cannot occupy all slots with commands that run for hours (docs/decisions/0051).

The idea is stochastic fairness queueing (P. McKenney, INFOCOM 1990): requesters whose queue is the same by chance share
their turns. All methods belong to the thread of Celery's hub.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

__all__ = ["Turns"]

#: One slot of this many is reserved.
RESERVED_PART = 16


class Turns:
    """The slots that the commands of each queue occupy."""

    def __init__(self, slots: int) -> None:
        """Prepare the turns for a number of slots. Fewer than 16 slots have no reserve."""
        self._slots = slots
        self._reserved = slots // RESERVED_PART
        self._occupied: Counter[str] = Counter()
        #: Celery's hub; None before it runs.
        self._hub: Any = None

    def use(self, hub: Any) -> None:
        """Keep the hub; a new one replaces it after each reconnect."""
        self._hub = hub

    def wake_after(self, seconds: float) -> None:
        """Wake the hub after a delay, so that it polls the queues again."""
        if self._hub is not None:
            self._hub.call_later(seconds, _nothing)

    def begin(self, queue: str) -> None:
        """Count an order that was taken from a queue."""
        self._occupied[queue] += 1

    def end(self, queue: str) -> None:
        """Release the slot of an order that has ended."""
        self._occupied[queue] -= 1
        if self._occupied[queue] <= 0:
            del self._occupied[queue]

    def end_soon(self, queue: str) -> None:
        """Release the slot of an order that has ended, from another thread.

        The hub may sleep because all slots are taken. `call_soon` wakes it; otherwise messages would wait for its next
        timer.
        """
        self._hub.call_soon(self.end, queue)

    def open(self, queues: Sequence[str]) -> list[str]:
        """Return the queues from which an order may be taken now, in the given order.

        While a slot is free that is not reserved, these are all queues. Then they are only the queues that occupy
        fewer slots than are reserved.
        """
        free = self._slots - self._occupied.total()
        if free > self._reserved:
            return list(queues)
        return [queue for queue in queues if free > 0 and self._occupied[queue] < self._reserved]


def _nothing() -> None:
    """Do nothing. The hub, once awake, polls the queues again."""
