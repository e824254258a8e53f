"""kombu's Redis transport as an agent's worker uses it.

Of a message, only the order and its task id reach Celery (`plain`). Celery also honours other tasks, encodings,
compression, times, links, chords and groups in a message. The owner of Redis could set them, and nothing here needs
them.
"""

from __future__ import annotations

import json
from time import monotonic
from typing import Any
from uuid import uuid4

from tachikoma.redis.celery_broker import BrokerTransport, QueueChannel
from tachikoma.redis.keys import EXECUTE_TASK
from tachikoma_worker.turns import Turns

__all__ = ["AgentChannel", "AgentTransport", "plain"]

#: Time between two looks at a part of the queues, in seconds.
LOOK_SECONDS = 0.1
#: Time after a look at which the hub is woken for the next, in seconds. It is longer: a timer may be early.
WAKE_SECONDS = 0.11
#: Longest time that Redis takes for such a look, in seconds. 0 would be a wait without an end.
LOOK_WAIT_SECONDS = 0.01

#: Characters of a foreign name in an error.
MAX_NAME_CHARS = 80


def plain(message: dict[str, Any], queue: str) -> dict[str, Any]:
    """Return a message with the order and the task id of another message, and nothing else of it.

    Args:
        message: as kombu reads it from Redis.
        queue: name of the queue that it came from.

    Raises:
        ValueError, TypeError, KeyError, RecursionError: the orchestrator makes no such message.
    """
    headers, body = message["headers"], message["body"]
    if headers["task"] != EXECUTE_TASK or message["content-type"] != "application/json":
        task, content_type = (str(name)[:MAX_NAME_CHARS] for name in (headers["task"], message["content-type"]))
        raise ValueError(f"is no order: {task!r} as {content_type!r}")
    (order,), _, _ = json.loads(body)
    for text in (order, headers["id"]):
        if not isinstance(text, str) or not text.isascii():
            raise TypeError("the order or its id is no text")
    return {
        "body": json.dumps([[order], {}, {}]),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {"task": EXECUTE_TASK, "id": headers["id"], "lang": "py", "ignore_result": True},
        "properties": {
            "delivery_tag": str(uuid4()),
            "delivery_info": {"exchange": "", "routing_key": queue},
        },
    }


class AgentChannel(QueueChannel):
    """A channel that asks only the queues whose turn it is (`turns.py`)."""

    from_transport_options = (*QueueChannel.from_transport_options, "turns")
    #: Decides about the queues; all may be asked without it.
    turns: Turns | None = None
    #: kombu's order of the queues.
    _queue_cycle: Any
    #: Earliest time of the next look at a part of the queues, by the monotonic clock.
    _next_look = 0.0

    def _brpop_start(self, timeout: float | None = None) -> None:
        """Ask all queues and wait for an order; or look for one on those that may use the reserved slots.

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
    """The transport of an agent's worker, which passes on only the order of a message."""

    Channel = AgentChannel

    def _deliver(self, message: Any, queue: Any) -> None:
        super()._deliver(plain(message, queue), queue)
