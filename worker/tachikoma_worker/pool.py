"""The Celery pool: receives messages on Celery's hub thread and hands their orders to the engine.

It is chosen with `worker_pool`, Celery's extension point for pools. The task that Celery would run is never called:
only the order in its arguments counts, and everything else in the message is ignored.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import structlog
from celery.concurrency.base import BasePool
from celery.worker import state

from tachikoma.redis import keys
from tachikoma_worker.engine.engine import Engine
from tachikoma_worker.turns import Turns

__all__ = ["EnginePool", "queue_of", "read_order"]

log = structlog.get_logger(__name__)

#: Characters of a reason in the log.
MAX_REASON_CHARS = 200


def read_order(args: Any) -> tuple[str, str]:
    """Return the execution id and the token in the arguments with which Celery calls a pool.

    Args:
        args: name of the task, task id, request with the task's arguments, and others that are ignored.

    Raises:
        ValueError, TypeError, KeyError, IndexError: the message is no order.
    """
    task_id, request = args[1], args[2]
    (token,) = request["args"]
    if not isinstance(token, str) or not isinstance(task_id, str):
        raise TypeError("the order or its id is no text")
    return keys.split_task_id(task_id)[1], token


def queue_of(args: Any) -> str:
    """Return the queue that a message came from, by the arguments with which Celery calls a pool; else empty."""
    try:
        return str(args[2]["delivery_info"]["routing_key"])
    except (TypeError, KeyError, IndexError):
        return ""


class EnginePool(BasePool):
    """The engine as a pool of Celery. Every method runs on the hub's thread."""

    # `on_apply` parses the body at once.
    body_can_be_buffer = True
    # Stopping waits for the engine's thread, and a signal handler must not wait.
    signal_safe = False
    # No task in this pool waits for the result of another task.
    task_join_will_block = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._engine: Engine = self.app.tachikoma_engine
        self._turns: Turns = self.app.tachikoma_turns
        self._hub: Any = None

    def register_with_event_loop(self, loop: Any) -> None:
        """Keep the hub. Celery calls this again after each reconnect, and `get_event_loop()` is None from then on."""
        self._hub = loop
        self._turns.use(loop)

    def on_start(self) -> None:
        """Start the engine, and wait until it holds the agent's lease.

        Celery takes messages only after this. Meanwhile the engine continues the commands of an earlier run.
        """
        self._engine.start()
        try:
            self._engine.wait_for_lease(state.maybe_shutdown)
        except SystemExit:
            # Celery stops no part of a worker that has not started completely.
            self._engine.stop()
            raise

    def on_stop(self) -> None:
        """Stop the engine."""
        self._engine.stop()

    def on_terminate(self) -> None:
        """Stop the engine."""
        self._engine.stop()

    def on_apply(
        self,
        target: Callable[..., Any],
        args: Any = None,
        kwargs: Any = None,
        callback: Callable[..., Any] | None = None,
        accept_callback: Callable[..., Any] | None = None,
        **_: Any,
    ) -> None:
        """Accept a message (early acknowledgement) and hand its order over. Never blocks."""
        if accept_callback is not None:
            accept_callback(os.getpid(), time.monotonic())
        hub, queue = self._hub, queue_of(args)
        self._turns.begin(queue)

        def ended() -> None:
            self._turns.end(queue)
            if callback is not None:
                callback((False, None, 0.0))

        def done() -> None:
            # On the engine's thread. The hub may sleep because all slots were taken. `call_soon` wakes it; otherwise
            # messages would wait for its next timer.
            hub.call_soon(ended)

        try:
            exec_id, token = read_order(args)
        except (ValueError, TypeError, KeyError, IndexError) as error:
            # Raised here, it would end Celery's loop.
            log.warning("message.refused", reason=str(error)[:MAX_REASON_CHARS])
            done()
            return
        self._engine.submit(exec_id, token, done)
