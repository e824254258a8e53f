"""The submitter's Celery application, and the process around it."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import structlog
from celery import Celery, signals
from kombu import Queue

from tachikoma.celery import BATCH_TASK_NAME, PROGRESS, TASK_NAME
from tachikoma.config.readiness import report_ready
from tachikoma.errors import TachikomaError
from tachikoma.redis import celery_broker, keys
from tachikoma.redis.keys import DUE_TASK
from tachikoma.vocabulary.batches import BatchStatus
from tachikoma_orchestrator.processes.batch_submission import document, execute_batch
from tachikoma_orchestrator.processes.plain_messages import TASKS, SubmitterTransport
from tachikoma_orchestrator.processes.settings import SubmitterSettings
from tachikoma_orchestrator.processes.submission import execute
from tachikoma_orchestrator.processes.submitter import Submitter

__all__ = ["make_app", "serve"]

log = structlog.get_logger(__name__)

#: kombu would put messages back because of their age; the submitter's may wait for days, and are put back otherwise.
NEVER_SECONDS = 10 * 365 * 24 * 3600
#: Seconds that a poll of the queues lasts, and so the longest that stopping takes while no message comes.
POLL_SECONDS = 5
#: The broker may answer this much later than the poll before its connection counts as broken.
ANSWER_SECONDS = 3
#: Seconds for which a result is kept.
RESULT_SECONDS = 24 * 3600


def make_app(submitter: Submitter) -> Celery:
    """Make the Celery application, with its tasks."""
    app = _configured(submitter)

    @app.task(name=TASK_NAME, bind=True, throws=(TachikomaError,))
    def submit(self: Any, token: Any = None, check: Any = True) -> dict[str, Any]:
        """Run a signed request and return its result."""
        response = submitter.run(self.request.id, execute(submitter.core, token))
        return (response.check() if check else response).to_dict()

    @app.task(name=BATCH_TASK_NAME, bind=True, throws=(TachikomaError,))
    def submit_batch(self: Any, token: Any = None, check: Any = True) -> dict[str, Any]:
        """Run a signed batch and return its final status and its results."""
        # Both belong to this thread.
        request, backend = self.request, self.backend

        async def report(status: BatchStatus) -> None:
            # Celery's result backend blocks.
            meta = {"batch": status.to_dict()}
            await asyncio.to_thread(backend.store_result, request.id, meta, PROGRESS, request=request)

        status, results = submitter.run(request.id, execute_batch(submitter.core, token, report))
        if check:
            status.check()
        return document(status, results)

    # A hint that is lost with its submitter need not be repeated: the next submitter looks at all schedules by itself.
    @app.task(name=DUE_TASK, bind=True, acks_late=False, ignore_result=True)
    def due(self: Any, *_: Any, **given: Any) -> None:
        """Check a schedule that is due according to beat."""
        if submitter.core.schedule_runner is not None:
            hint = submitter.core.schedule_runner.hint(given.get("schedule"), given.get("due_ms"))
            submitter.run(self.request.id, hint)

    app.finalize()
    return app


def _configured(submitter: Submitter) -> Celery:
    """Make the application, with its broker, result backend and settings."""
    celery_broker.install(SubmitterTransport)
    unacked, index, mutex = keys.unacked(submitter.run_id)
    app = Celery("tachikoma-submitter", backend=celery_broker.result_backend(submitter.access))
    settings = celery_broker.settings(
        submitter.access,
        client_name="submitter-celery",
        unacked_key=unacked,
        unacked_index_key=index,
        unacked_mutex_key=mutex,
        visibility_timeout=NEVER_SECONDS,
        polling_interval=POLL_SECONDS,
        socket_timeout=POLL_SECONDS + ANSWER_SECONDS,
    )
    app.conf.update(
        **settings,
        # The queue of callbacks that name none.
        task_default_queue=keys.CALLBACKS,
        task_queues=[Queue(name, routing_key=name) for name in TASKS],
        task_acks_late=True,
        **celery_broker.WORKER,
        result_expires=RESULT_SECONDS,
        result_backend_always_retry=True,
        result_backend_thread_safe=True,
        # A submitter that was killed after it stored a result has sent the callbacks too; they are not sent again.
        worker_deduplicate_successful_tasks=True,
    )
    return app


def make_worker(app: Celery, submitter: Submitter) -> Any:
    """Make the Celery worker, with one thread for each task that may wait at once."""
    return app.Worker(
        hostname=f"submitter@{submitter.run_id}",
        pool="threads",
        concurrency=submitter.settings.submitter_slots,
        loglevel=submitter.settings.log_level.upper(),
        quiet=True,
        without_gossip=True,
        without_mingle=True,
        without_heartbeat=True,
        optimization="fair",
    )


def serve(settings: SubmitterSettings, ready_fd: int | None = None) -> int:
    """Run a submitter until SIGTERM or SIGINT.

    Args:
        settings: of the submitter.
        ready_fd: descriptor for a report once it takes messages (`report_ready`); None for none.

    Returns:
        The exit code: 1 if a background part failed.

    Raises:
        ConfigurationError: identity, policy or a setting cannot be used.
    """
    submitter = Submitter(settings)
    worker = make_worker(make_app(submitter), submitter)

    @signals.worker_ready.connect(weak=False)
    def on_ready(**_: Any) -> None:
        log.info("submitter.ready", pid=os.getpid(), slots=settings.submitter_slots)
        report_ready(ready_fd)

    @signals.worker_shutting_down.connect(weak=False)
    def on_shutting_down(**_: Any) -> None:
        submitter.release()

    submitter.start()
    # 1. Run Celery until a signal: it then takes no more messages, and those in progress go back to their queue.
    worker.start()
    # 2. Stop the loop that served it.
    submitter.stop()
    return 1 if submitter.failure is not None else int(worker.exitcode or 0)
