"""The intake: takes the orders that kombu reads from the agent's queues, and hands them to the engine.

No other part of Celery gets a message. Celery also honours other tasks, encodings, compression, times, links, chords
and groups in a message; the owner of Redis could set them, and nothing here needs them (`docs/decisions/0054`). All
methods belong to the thread of Celery's hub.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from tachikoma.redis import keys
from tachikoma.redis.keys import EXECUTE_TASK
from tachikoma_worker.turns import Turns

__all__ = ["Intake", "Runner", "read_order"]

#: Characters of a foreign name in an error.
MAX_NAME_CHARS = 80


class Runner(Protocol):
    """The methods of the engine that the intake uses."""

    def submit(self, exec_id: str, token: str, done: Callable[[], None]) -> None:
        """Run an order without waiting for it.

        Args:
            exec_id: the execution that the message names.
            token: the signed order, not yet verified.
            done: called once, on any thread, when there is no more work for the order.
        """


def read_order(message: Mapping[str, Any]) -> tuple[str, str]:
    """Return the execution id and the signed order in a message.

    Args:
        message: as kombu reads it from Redis; an attacker may have written it.

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
    return keys.split_task_id(headers["id"])[1], order


class Intake:
    """Counts a slot for each order of a queue, from its arrival until the engine is done with it."""

    def __init__(self, engine: Runner, turns: Turns) -> None:
        self._engine = engine
        self._turns = turns

    def take(self, message: Mapping[str, Any], queue: str) -> None:
        """Pass the order of a message to the engine. Never blocks. Raises as `read_order`; then no turn begins.

        Args:
            message: as kombu reads it from Redis.
            queue: name of the queue that it came from.
        """
        exec_id, token = read_order(message)
        self._turns.begin(queue)
        self._engine.submit(exec_id, token, lambda: self._turns.end_soon(queue))
