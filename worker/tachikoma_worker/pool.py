"""The engine as Celery's pool: it starts and stops with Celery's worker.

It is chosen with `worker_pool`, Celery's extension point for pools. Celery gives it no task: orders come through the
intake (`intake.py`).
"""

from __future__ import annotations

from typing import Any

from celery.concurrency.base import BasePool
from celery.worker import state

from tachikoma_worker.engine.engine import Engine
from tachikoma_worker.turns import Turns

__all__ = ["EnginePool"]


class EnginePool(BasePool):
    """The engine as a pool of Celery. Every method runs on the hub's thread."""

    # Stopping waits for the engine's thread, and a signal handler must not wait.
    signal_safe = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._engine: Engine = self.app.tachikoma_engine
        self._turns: Turns = self.app.tachikoma_turns

    def register_with_event_loop(self, loop: Any) -> None:
        """Keep the hub. Celery calls this again after each reconnect, and `get_event_loop()` is None from then on."""
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
