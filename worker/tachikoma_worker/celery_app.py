"""The agent's Celery application and worker: the settings, and the reason for each.

The settings were measured and tried on real servers; `docs/decisions/0003` describes the cases.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from celery import Celery, signals
from celery.worker import WorkController
from kombu import Queue

from tachikoma.redis import celery_broker, keys
from tachikoma_worker.engine.engine import Engine
from tachikoma_worker.intake import Intake
from tachikoma_worker.settings import WorkerSettings
from tachikoma_worker.transport import AgentTransport
from tachikoma_worker.turns import Turns

__all__ = ["make_app", "run_worker"]

#: The broker may answer this much later than the poll before its connection counts as broken.
ANSWER_SECONDS = 3


def make_app(settings: WorkerSettings, engine: Engine) -> Celery:
    """Return the application of one agent, whose pool hands orders to the engine."""
    agent = settings.agent_id
    celery_broker.install(AgentTransport)
    turns = Turns(settings.slots)
    app = Celery("tachikoma", set_as_current=True)
    app.conf.update(
        **celery_broker.settings(
            engine.access,
            client_name=f"agent-{agent}-celery",
            # With emulated acknowledgements, a visibility timeout would deliver a running order again, and all agents
            # would share keys.
            ack_emulation=False,
            fanout_prefix=f"/{agent}.",
            polling_interval=settings.poll.total_seconds(),
            socket_timeout=settings.poll.total_seconds() + ANSWER_SECONDS,
            turns=turns,
            intake=Intake(engine, turns),
        ),
        # Acknowledged before the command starts: at most once.
        task_acks_late=False,
        **celery_broker.WORKER,
        worker_pool="tachikoma_worker.pool:EnginePool",
        task_queues=[Queue(queue, routing_key=queue) for queue in keys.queues(agent)],
        task_default_queue=keys.queue(agent),
        task_create_missing_queues=False,
        # The engine stores the result, together with the receipt.
        task_ignore_result=True,
    )
    app.tachikoma_engine = engine  # type: ignore[attr-defined]
    app.tachikoma_turns = turns  # type: ignore[attr-defined]

    # Not shared: no other application of this process gets the task.
    @app.task(name=keys.EXECUTE_TASK, ignore_result=True, shared=False)
    def execute(order: str) -> None:
        """Give the task its name; the intake takes the order from the message instead of calling this."""
        raise RuntimeError("the engine runs orders; this body never does")

    app.finalize()
    return app


def _make_worker(app: Celery, settings: WorkerSettings) -> WorkController:
    """Return a worker that is not started, without Celery's traffic between workers."""
    worker: WorkController = app.Worker(
        hostname=keys.node(settings.agent_id),
        concurrency=settings.slots,
        loglevel=settings.log_level.upper(),
        quiet=True,
        without_gossip=True,
        without_mingle=True,
        without_heartbeat=True,
        optimization="fair",
    )
    return worker


def run_worker(
    app: Celery, settings: WorkerSettings, *, on_ready: Callable[[], None], on_stopping: Callable[[], None]
) -> int:
    """Run the agent's Celery worker until it is stopped.

    Args:
        app: the application of `make_app`.
        settings: those of the worker.
        on_ready: called once the worker receives orders.
        on_stopping: called when a stop was requested.

    Returns:
        The exit code of the process.
    """
    # Celery would log one line for each message, at a noticeable part of the cost of handling it.
    logging.getLogger("celery.worker.strategy").setLevel(logging.WARNING)

    @signals.worker_ready.connect(weak=False)
    def ready(**_: Any) -> None:
        on_ready()

    @signals.worker_shutting_down.connect(weak=False)
    def shutting_down(**_: Any) -> None:
        on_stopping()

    worker = _make_worker(app, settings)
    try:
        worker.start()
    finally:
        signals.worker_ready.disconnect(ready)
        signals.worker_shutting_down.disconnect(shutting_down)
    return int(worker.exitcode or 0)
