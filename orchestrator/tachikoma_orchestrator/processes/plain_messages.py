"""The messages that the submitter accepts from its queues, reduced to the parts it trusts.

Any application may put messages on the queues. Celery acts on many fields of a message: `reply_to`, `retries`, `eta`,
nested task names, other serialisers. So a message is not handed on as it is. A new one is made from the few fields that
a request or a hint of beat needs.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any
from uuid import uuid4

from tachikoma.celery import TASK_NAMES
from tachikoma.redis import keys
from tachikoma.redis.celery_broker import BrokerTransport
from tachikoma.redis.keys import DUE_TASK

__all__ = ["TASKS", "SubmitterTransport", "plain"]

#: The tasks of each queue.
TASKS = {keys.SUBMIT: TASK_NAMES, keys.BATCH: frozenset({DUE_TASK})}
#: Follow-ups that an application may request from Celery.
EMBEDDED = ("callbacks", "errbacks", "chain", "chord")
#: Headers that are copied: the task's id, and the workflow that it is part of.
HEADERS = ("id", "root_id", "parent_id", "group", "group_index")


def plain(message: Mapping[str, Any], queue: str) -> dict[str, Any]:
    """Return a new message with the trusted parts of a received one.

    Raises:
        ValueError, TypeError, KeyError, RecursionError: neither an application nor beat makes such a message.
    """
    headers = message["headers"]
    if message["content-type"] != "application/json":
        raise ValueError(f"is not JSON: {str(message['content-type'])[:80]!r}")
    if headers["task"] not in TASKS[queue]:
        raise ValueError(f"is not a task of {queue}: {str(headers['task'])[:80]!r}")
    args, kwargs, embedded = _arguments(message)
    copied = {name: headers[name] for name in HEADERS if headers.get(name) is not None}
    if not isinstance(copied["id"], str):
        raise TypeError("has no id")
    if queue == keys.BATCH:
        # Nothing follows a hint of beat: its sender must not have tasks sent with the submitter's rights.
        copied, embedded = {"id": copied["id"]}, {}
    return {
        "body": json.dumps([args, kwargs, {name: embedded.get(name) for name in EMBEDDED}]),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        # Celery logs these two in place of the arguments, which contain a whole request.
        "headers": {"task": headers["task"], "lang": "py", "argsrepr": "...", "kwargsrepr": "...", **copied},
        "properties": {
            "delivery_mode": 2,
            "delivery_tag": str(uuid4()),
            "delivery_info": {
                "exchange": "",
                "routing_key": queue,
                # For a redelivered message Celery first checks whether its task has succeeded already.
                "redelivered": message["properties"].get("delivery_info", {}).get("redelivered") is True,
            },
        },
    }


def _arguments(message: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any], dict[str, Any]]:
    """Return the positional arguments, the named arguments and the follow-ups in the body of a message."""
    body = message["body"]
    if message["properties"].get("body_encoding") == "base64":
        body = base64.b64decode(body, validate=True)
    args, kwargs, embedded = json.loads(body)
    if not (isinstance(args, list) and isinstance(kwargs, dict) and isinstance(embedded, dict)):
        raise TypeError("has no arguments")
    return args, kwargs, embedded


class SubmitterTransport(BrokerTransport):
    """A transport of kombu that delivers plain messages only; the broker's transport logs and drops the others."""

    def _deliver(self, message: Any, queue: Any) -> None:
        super()._deliver(plain(message, queue), queue)
