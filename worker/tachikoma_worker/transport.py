"""kombu's Redis transport, as an agent's worker uses it.

Of a message only the order and its task id go on to Celery (`plain`). What else Celery heeds in one (other tasks,
encodings, compression, times, links, chords, groups) whoever owns Redis could say as well, and nothing here needs it.
"""

from __future__ import annotations

import json
from typing import Any
from uuid import uuid4

from tachikoma.redis.celery_broker import BrokerTransport
from tachikoma.redis.keys import EXECUTE_TASK

__all__ = ["AgentTransport", "plain"]


def plain(message: dict[str, Any], queue: str) -> dict[str, Any]:
    """A message with the order and the task id of another one, and nothing else of it.

    Raises:
        ValueError, TypeError, KeyError, RecursionError: it is none that the orchestrator makes.
    """
    headers, body = message["headers"], message["body"]
    if headers["task"] != EXECUTE_TASK or message["content-type"] != "application/json":
        raise ValueError(f"is no order: {str(headers['task'])[:80]!r} as {str(message['content-type'])[:80]!r}")
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
    """The transport in an agent's worker: the orchestrator's script puts orders on its queue."""

    def _deliver(self, message: Any, queue: Any) -> None:
        super()._deliver(plain(message, queue), queue)
