"""kombu's Redis transport as an agent's worker uses it: it polls the queues in turn, and messages go to the intake."""

from __future__ import annotations

from time import monotonic
from typing import Any

from tachikoma.redis.celery_broker import BrokerTransport, QueueChannel
from tachikoma_worker.turns import Turns

__all__ = ["AgentChannel", "AgentTransport"]

#: Time between two looks at a part of the queues, in seconds.
LOOK_SECONDS = 0.1
#: Time after a look at which the hub is woken for the next, in seconds. It is longer: a timer may be early.
WAKE_SECONDS = 0.11
#: Longest time that Redis takes for such a look, in seconds. 0 would be a wait without an end.
LOOK_WAIT_SECONDS = 0.01


class AgentChannel(QueueChannel):
    """A channel that polls only the queues whose turn it is (`turns.py`)."""

    from_transport_options = (*QueueChannel.from_transport_options, "turns")
    #: Decides about the queues; all may be asked without it.
    turns: Turns | None = None
    #: Earliest time of the next look at a part of the queues, by the monotonic clock.
    _next_look = 0.0

    def _brpop_start(self, timeout: float | None = None) -> None:
        """Wait for an order on all queues, or on those that may use the reserved slots.

        A look returns at once. A wait would also delay the queues that it leaves out when a slot becomes free.
        """
        queues = self._queue_cycle.consume(len(self.active_queues))
        open_queues = queues if self.turns is None else self.turns.open(queues)
        if self.turns is None or len(open_queues) == len(queues):
            super()._brpop_start(timeout)  # type: ignore[misc]
            return
        now = monotonic()
        if not open_queues or now < self._next_look:
            return
        self._next_look = now + LOOK_SECONDS
        self.turns.wake_after(WAKE_SECONDS)
        connection = self.client.connection
        self._in_poll, self._brpop_sent_at = connection, now
        connection.send_command("BRPOP", *open_queues, LOOK_WAIT_SECONDS)


class AgentTransport(BrokerTransport):
    """The transport of an agent's worker. Its option `intake` takes the messages, instead of a consumer of Celery."""

    Channel = AgentChannel
    #: kombu's connection.
    client: Any

    def _deliver(self, message: Any, queue: Any) -> None:
        self.client.transport_options["intake"].take(message, queue)
