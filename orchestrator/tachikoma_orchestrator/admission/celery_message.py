"""Celery messages of signed orders, prepared by Celery and kombu.

The message is the one that `send_task` would put on the queue, so a stock Celery worker understands it. It is pushed by
a script in the round trip of the admission, so ledger, audit trail and queue change together.
"""

from __future__ import annotations

from typing import cast

from celery import Celery
from kombu import Connection, Producer

from tachikoma.redis import keys
from tachikoma_orchestrator.store.capture import CapturingChannel, CapturingTransport

__all__ = ["MessageFactory"]


class MessageFactory:
    """Makes Celery messages of signed orders. For one thread."""

    def __init__(self) -> None:
        self._app = Celery("tachikoma", set_as_current=False)
        self._app.conf.update(task_serializer="json", accept_content=["json"], enable_utc=True)
        self._channel = cast(CapturingChannel, Connection(transport=CapturingTransport).channel())
        self._producer = Producer(self._channel, auto_declare=False)

    def message(self, agent: str, exec_id: str, order: str, *, expires_seconds: float, shown: str) -> bytes:
        """Return the Celery message of an order, as the element of the agent's queue.

        Args:
            agent: the agent.
            exec_id: the execution.
            order: the signed work order, the task's only argument.
            expires_seconds: seconds after which a worker discards the message.
            shown: the redacted command line, for Flower and logs.
        """
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
