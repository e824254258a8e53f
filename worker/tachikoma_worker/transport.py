"""kombu's Redis transport as an agent's worker uses it.

Of a message, only the order and its task id reach Celery (`plain`). Celery also honours other tasks, encodings,
compression, times, links, chords and groups in a message. The owner of Redis could set them, and nothing here needs
them.
"""

from __future__ import annotations

import json
from typing import Any
from uuid import uuid4

from tachikoma.redis.celery_broker import BrokerTransport
from tachikoma.redis.keys import EXECUTE_TASK

__all__ = ["AgentTransport", "plain"]

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


class AgentTransport(BrokerTransport):
    """The transport of an agent's worker, which passes on only the order of a message."""

    def _deliver(self, message: Any, queue: Any) -> None:
        super()._deliver(plain(message, queue), queue)
