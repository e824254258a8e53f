"""The agent's Celery application and worker: which settings, and why each.

Measured and tried on real servers; `docs/decisions/0003` has the cases.
"""

from __future__ import annotations

from typing import Any

from celery import Celery
from kombu import Queue

from tachikoma.redis import celery_broker, keys
from tachikoma_worker.engine.engine import Engine
from tachikoma_worker.settings import WorkerSettings
from tachikoma_worker.transport import AgentTransport

__all__ = ["make_app", "make_worker"]


def make_app(settings: WorkerSettings, engine: Engine) -> Celery:
    """The application of one agent."""
    agent = settings.agent_id
    access = engine.access
    celery_broker.install(AgentTransport)
    app = Celery("tachikoma", set_as_current=True)
    app.conf.update(
        **celery_broker.settings(
            access,
            client_name=f"agent-{agent}-celery",
            # Without it a visibility timeout delivers a second time what still runs; and keys shared by all agents.
            ack_emulation=False,
            fanout_prefix=f"/{agent}.",
            polling_interval=settings.poll.total_seconds(),
            socket_timeout=settings.poll.total_seconds() + 10,
        ),
        # Acknowledged before the command starts: at most once.
        task_acks_late=False,
        **celery_broker.WORKER,
        worker_pool="tachikoma_worker.pool:EnginePool",
        task_queues=[Queue(keys.queue(agent), routing_key=keys.queue(agent))],
        task_default_queue=keys.queue(agent),
        task_create_missing_queues=False,
        # The result is written by the engine, together with the receipt.
        task_ignore_result=True,
    )
    app.tachikoma_engine = engine  # type: ignore[attr-defined]

    @app.task(name=keys.EXECUTE_TASK, ignore_result=True)
    def execute(order: str) -> None:
        """Only the name: the pool takes the order from the message."""
        raise RuntimeError("the engine runs orders; this body never does")

    app.finalize()
    return app


def make_worker(app: Celery, settings: WorkerSettings) -> Any:
    """The Celery worker of one agent."""
    return app.Worker(
        hostname=keys.node(settings.agent_id),
        concurrency=settings.slots,
        loglevel=settings.log_level.upper(),
        quiet=True,
        without_gossip=True,
        without_mingle=True,
        without_heartbeat=True,
        optimization="fair",
    )
