"""The Celery pool: takes messages in Celery's hub thread, and hands their orders to the engine.

Chosen with `worker_pool`, Celery's extension point for pools. The task Celery would run is never called: only the
order in its arguments counts, and everything else in the message is ignored.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import structlog
from celery.concurrency.base import BasePool

from tachikoma.redis import keys
from tachikoma_worker.engine.engine import Engine

__all__ = ["EnginePool"]

log = structlog.get_logger(__name__)


class EnginePool(BasePool):
    """Celery's view of the engine. Everything here runs in the hub's thread."""

    # The body is parsed at once, in `on_apply`.
    body_can_be_buffer = True
    # Stopping waits for the engine's thread, which a signal handler must not.
    signal_safe = False
    # Nothing in this pool waits for another task's result.
    task_join_will_block = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._engine: Engine = self.app.tachikoma_engine
        self._hub: Any = None

    def register_with_event_loop(self, loop: Any) -> None:
        # Called again after each reconnect to the broker. `get_event_loop()` would be None from then on.
        self._hub = loop

    def on_start(self) -> None:
        self._engine.start()

    def on_stop(self) -> None:
        self._engine.stop()

    def on_terminate(self) -> None:
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
        hub = self._hub

        def done() -> None:
            # In the engine's thread. `call_soon` wakes the hub, which may sleep because all slots were taken: without
            # that, messages would wait for its next timer.
            if callback is not None:
                hub.call_soon(callback, (False, None, 0.0))

        try:
            task_id: str = args[1]
            request: dict[str, Any] = args[2]
            (token,) = request["args"]
            if not isinstance(token, str):
                raise TypeError("the order is no text")
            exec_id = keys.split_task_id(task_id)[1]
        except (ValueError, TypeError, KeyError) as error:
            # An exception here would end Celery's loop.
            log.warning("message.refused", reason=str(error)[:200])
            done()
            return
        self._engine.submit(exec_id, token, done)
