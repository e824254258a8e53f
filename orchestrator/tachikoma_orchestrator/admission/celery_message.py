"""Celery messages of signed orders, prepared by Celery and kombu.

The message is the one that `send_task` would put on the queue, so a stock Celery worker understands it. It is pushed by
a script in the round trip of the admission, so ledger, audit trail and queue change together.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import cast
from uuid import uuid4

from celery import Celery
from kombu import Connection, Producer

from tachikoma.redis import keys
from tachikoma_orchestrator.store.capture import CapturingChannel, CapturingTransport

__all__ = ["MessageFactory"]


class MessageFactory:
    """Makes Celery messages of signed orders. For one thread.

    Celery and kombu make one message, with everything that they put into it. All others differ from it in the fields
    that depend on the order, and are made from it at a quarter of the cost.
    """

    def __init__(self) -> None:
        self._app = Celery("tachikoma", set_as_current=False)
        self._app.conf.update(task_serializer="json", accept_content=["json"], enable_utc=True)
        self._channel = cast(CapturingChannel, Connection(transport=CapturingTransport).channel())
        self._producer = Producer(self._channel, auto_declare=False)
        template = json.loads(self.of_celery("agent", "exec", "order", expires_seconds=1, shown="shown"))
        self._headers, self._properties = template.pop("headers"), template.pop("properties")
        _, _, self._embedded = json.loads(template.pop("body"))
        self._encoding = template

    def message(self, agent: str, exec_id: str, order: str, *, expires_seconds: float, shown: str) -> bytes:
        """Return the Celery message of an order, as the element of the agent's queue.

        Args:
            agent: the agent.
            exec_id: the execution.
            order: the signed work order, the task's only argument.
            expires_seconds: seconds after which a worker discards the message.
            shown: the redacted command line, for Flower and logs.
        """
        task_id = keys.task_id(agent, exec_id)
        message = {
            "body": json.dumps([[order], {}, self._embedded]),
            **self._encoding,
            "headers": {
                **self._headers,
                "id": task_id,
                "root_id": task_id,
                "expires": (datetime.now(UTC) + timedelta(seconds=expires_seconds)).isoformat(),
                "argsrepr": shown,
            },
            "properties": {
                **self._properties,
                "correlation_id": task_id,
                "delivery_info": {"exchange": "", "routing_key": keys.queue(agent)},
                "delivery_tag": str(uuid4()),
            },
        }
        return json.dumps(message, separators=(",", ":")).encode()

    def of_celery(self, agent: str, exec_id: str, order: str, *, expires_seconds: float, shown: str) -> bytes:
        """Return the same message as Celery and kombu make it; the arguments are those of `message`."""
        queue = keys.queue(agent)
        task = self._app.amqp.as_task_v2(
            keys.task_id(agent, exec_id),
            keys.EXECUTE_TASK,
            (order,),
            {},
            expires=expires_seconds,
            argsrepr=shown,
            kwargsrepr="{}",
            origin="tachikoma",
            # The worker writes the result itself, together with the receipt.
            ignore_result=True,
        )
        self._producer.publish(
            task.body, exchange="", routing_key=queue, headers=task.headers, serializer="json", **task.properties
        )
        return self._channel.take()
