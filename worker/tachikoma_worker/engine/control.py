"""The control channel: cancels of running executions, received over publish and subscribe."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress

from redis.exceptions import RedisError

from tachikoma.config.retry import Backoff
from tachikoma.redis import keys
from tachikoma.redis.commands import PubSub, Redis
from tachikoma_worker.execution.cancel import as_token, read_cancel
from tachikoma_worker.execution.context import Context
from tachikoma_worker.execution.execution import Execution

__all__ = ["Control"]

#: First and longest delay between attempts to subscribe while Redis is unavailable. Constant: a cancel is urgent.
RETRY_SECONDS = (0.25, 0.25)
#: A connection without a message for this time is tested with a ping, and the longest wait for its answer.
IDLE_SECONDS = 5.0
ANSWER_SECONDS = 5.0


class Control:
    """The subscription to an agent's control channel."""

    def __init__(self, context: Context, subscriptions: Redis, running: Mapping[str, Execution]) -> None:
        """Prepare the subscription.

        Args:
            context: the agent.
            subscriptions: connections for it.
            running: the running executions by id; read at each message.
        """
        self._context = context
        self._subscriptions = subscriptions
        self._running = running

    async def run(self) -> None:
        """Receive cancels until cancelled; subscribe again after each broken connection."""
        backoff = Backoff(*RETRY_SECONDS)
        while True:
            with suppress(RedisError, OSError):
                await self._receive()
            await backoff.wait()

    async def _receive(self) -> None:
        """Receive cancels until the connection is found to be dead.

        Raises:
            RedisError, OSError: the connection broke.
        """
        subscription = self._subscriptions.pubsub()
        try:
            await subscription.subscribe(keys.control(self._context.agent))
            await self._handle_messages(subscription)
        finally:
            with suppress(RedisError, OSError):
                await subscription.aclose()

    async def _handle_messages(self, subscription: PubSub) -> None:
        pinged = False
        while True:
            message = await subscription.get_message(timeout=ANSWER_SECONDS if pinged else IDLE_SECONDS)
            if message is None:
                if pinged:
                    # No answer to the ping.
                    return
                pinged = True
                await subscription.ping()
                continue
            pinged = False
            if message["type"] == "subscribe":
                # Cancels that were published while nobody listened are retained in their keys.
                await self._read_retained()
            elif message["type"] == "message":
                self._apply(as_token(message["data"]) or "")

    def _apply(self, message: str) -> None:
        """Hand a cancel to its execution. The id in front is only a hint; the signed token decides."""
        exec_id, _, token = message.partition(" ")
        execution = self._running.get(exec_id)
        if execution is not None:
            execution.cancel(token)

    async def _read_retained(self) -> None:
        """Apply the retained cancels of all running executions."""
        for exec_id, execution in list(self._running.items()):
            token = await read_cancel(self._context, exec_id)
            if token is not None:
                execution.cancel(token)
