"""The submitter's event loop, beside Celery's threads in one process.

The submitter takes signed requests of Celery applications and hints of Celery beat. It admits requests as the gRPC
service does, with a `Core` of its own. While a Celery task waits for the result of its execution, it occupies a thread
of Celery's pool, and its message is not acknowledged. `taken_messages.py` describes the fate of such messages.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Coroutine
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from typing import Any, TypeVar

import structlog
from celery.exceptions import Ignore, Reject
from redis.exceptions import RedisError

from tachikoma.config.tasks import Supervisor, cancel_all, supervised
from tachikoma.redis.access import connect
from tachikoma_orchestrator.processes.parts import Core
from tachikoma_orchestrator.processes.settings import SubmitterSettings
from tachikoma_orchestrator.processes.sink_watch import SinkWatch
from tachikoma_orchestrator.processes.taken_messages import TakenMessages

__all__ = ["Submitter"]

log = structlog.get_logger(__name__)

#: Longest time that closing may take.
CLOSE_SECONDS = 10.0

T = TypeVar("T")


class Submitter:
    """An event loop in a thread of its own, to which Celery's threads hand their work."""

    def __init__(self, settings: SubmitterSettings) -> None:
        """Put the parts together. Raises ConfigurationError as `Core` does."""
        self.settings = settings
        self.core = Core(settings, "submitter")
        self.access = settings.celery(self.core.identity)
        self._redis = connect(self.access, name="submitter-queues", max_connections=4)
        self._taken = TakenMessages(self._redis)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run_loop, name="submitter", daemon=True)
        #: Resolved once the background parts run, or with the reason why they do not.
        self._started: Future[None] = Future()
        #: Set in the loop when the thread has to end.
        self._ended = asyncio.Event()
        #: Work of Celery's tasks that is in progress in the loop.
        self._waiting: set[asyncio.Task[Any]] = set()
        #: Ids of these Celery tasks. Celery's threads change the set; each change is atomic in Python.
        self._task_ids: set[str] = set()
        self._stopping = False
        #: The reason why the submitter had to end; None if it was asked to.
        self.failure: Exception | None = None

    @property
    def run_id(self) -> str:
        """Random id of this run of the submitter."""
        return self._taken.run_id

    # --- for other threads --------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the loop and its background parts."""
        self._thread.start()
        self._started.result()

    def run(self, task_id: str, work: Coroutine[Any, Any, T]) -> T:
        """Run the work of a Celery task in the loop, and wait for its result.

        Raises:
            Ignore: the same task is in progress; its message came again after a connection broke.
            Reject: the submitter stops; the message goes back to its queue.
        """
        if task_id in self._task_ids:
            work.close()
            raise Ignore
        self._task_ids.add(task_id)
        try:
            return asyncio.run_coroutine_threadsafe(self._tracked(work), self._loop).result()
        except CancelledError:
            raise Reject("the submitter stops", requeue=True) from None
        finally:
            self._task_ids.discard(task_id)

    def release(self) -> None:
        """Cancel all work in progress, so that its messages go back to their queues. Safe in signal handlers."""
        self._stopping = True
        self._loop.call_soon_threadsafe(self._cancel_waiting)

    def stop(self) -> None:
        """Stop the loop and close everything. No work may be handed over afterwards."""
        self._stopping = True
        self._loop.call_soon_threadsafe(self._ended.set)
        self._thread.join(CLOSE_SECONDS)

    # --- in the loop --------------------------------------------------------------------------------------------------

    def _run_loop(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._main())

    async def _main(self) -> None:
        """Supervise the background parts until `stop`, and close everything."""
        try:
            async with supervised() as supervisor:
                await self._start_parts(supervisor)
                self._started.set_result(None)
                await self._ended.wait()
        except Exception as failure:
            self._fail(failure)
        # After a failure, Celery's threads may still hand over work until Celery has stopped.
        await self._ended.wait()
        await self._close()

    async def _start_parts(self, supervisor: Supervisor) -> None:
        await self.core.start(supervisor)
        self.core.start_metrics(supervisor, self.settings.submitter_metrics, self.settings.metrics_class)
        supervisor.start(self._taken.run(), name="taken-messages")
        if self.core.schedule_runner is not None:
            supervisor.start(self.core.schedule_runner.run(), name="schedules")
        if self.settings.audit_failure == "closed":
            watch = SinkWatch(self.core.redis, self.core.trail, self.settings.audit_backlog)
            supervisor.start(watch.run(), name="sinks")

    def _fail(self, failure: Exception) -> None:
        """Log why the background parts ended, and stop the process, whose main thread is Celery's."""
        log.critical("submitter.failed", exc_info=failure)
        self.failure = failure
        if not self._started.done():
            self._started.set_exception(failure)
        elif not self._stopping:
            # Only once: a second signal would make Celery drop what it has in progress.
            os.kill(os.getpid(), signal.SIGTERM)

    async def _tracked(self, work: Coroutine[Any, Any, T]) -> T:
        task = asyncio.current_task()
        assert task is not None
        if self._stopping:
            work.close()
            raise asyncio.CancelledError
        self._waiting.add(task)
        try:
            return await work
        finally:
            self._waiting.discard(task)

    def _cancel_waiting(self) -> None:
        for task in self._waiting:
            task.cancel()

    async def _close(self) -> None:
        await cancel_all(self._waiting)
        with suppress(RedisError, OSError):
            await self._taken.put_back(self.run_id)
        await self._redis.aclose()
        await self.core.aclose()
