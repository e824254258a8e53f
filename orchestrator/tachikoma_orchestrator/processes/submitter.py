"""The submitter: a Celery worker of the orchestrator.

It takes what Celery applications signed and what celery beat says is due, and admits it as the service would, with a
`Core` of its own. A task that waits for its execution's end holds a thread of Celery's pool and a message that is not
acknowledged. kombu keeps such messages under a name of this run of the submitter; when that is not alive any more,
another one, or its next start, puts them back on their queues, and they go on waiting: nothing is run twice by that,
since requests carry their id.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import secrets
import signal
import threading
import time
from collections.abc import Coroutine
from concurrent.futures import CancelledError
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import structlog
from celery import Celery, signals
from celery.exceptions import Ignore, Reject
from kombu import Queue
from pydantic import Field
from redis.exceptions import RedisError

from tachikoma.celery import TASK_NAME
from tachikoma.config.tasks import cancel_all
from tachikoma.errors import ConfigurationError, TachikomaError
from tachikoma.identity.svid import SvidSource
from tachikoma.redis import celery_broker, keys
from tachikoma.redis.access import RedisAccess, connect
from tachikoma.redis.celery_broker import BrokerTransport
from tachikoma.redis.keys import DUE_TASK
from tachikoma.redis.users import SUBMITTER
from tachikoma_orchestrator.audit.positions import SinkPosition
from tachikoma_orchestrator.processes.parts import Core
from tachikoma_orchestrator.processes.settings import OrchestratorSettings
from tachikoma_orchestrator.processes.submission import execute
from tachikoma_orchestrator.store.scripts import Runner, Script

__all__ = ["Submitter", "SubmitterSettings"]

log = structlog.get_logger(__name__)

#: Between two signs of life, and how long without one until a submitter counts as ended.
ALIVE_SECONDS = 2.0
GONE_SECONDS = 15.0
#: kombu would put messages back by their age alone; ours may wait for days.
NEVER_SECONDS = 10 * 365 * 24 * 3600
#: How long a poll of the queues lasts, and so the longest that stopping takes when nothing comes.
POLL_SECONDS = 5
#: How long a result is kept.
RESULT_SECONDS = 24 * 3600
#: A sink of the audit trail that was not heard of for so long is none any more.
SINK_SECONDS = 24 * 3600
#: How long closing may take.
CLOSE_SECONDS = 10.0

#: The task that each queue is for.
TASKS = {keys.SUBMIT: TASK_NAME, keys.BATCH: DUE_TASK}
#: What Celery does after a task that an application may ask for.
EMBEDDED = ("callbacks", "errbacks", "chain", "chord")
HEADERS = ("id", "root_id", "parent_id", "group", "group_index")

T = TypeVar("T")


class SubmitterSettings(OrchestratorSettings):
    """An orchestrator's settings, and the submitter's own."""

    #: Tasks that wait for their execution at once, each in a thread.
    submitter_slots: int = Field(default=100, ge=1, le=10_000)
    #: File with the password of the Redis user `submitter`, as whom Celery takes messages and sends callbacks.
    submitter_password_file: Path | None = None

    def celery(self, identity: SvidSource) -> RedisAccess:
        """How Celery reaches Redis. Raises what `RedisAccess.of` does."""
        if self.submitter_password_file is None and (self.redis_password_file is not None or self.redis_user):
            # Where callbacks go is the applications' word, and must not have the orchestrator's rights.
            raise ConfigurationError(
                "the submitter needs the password of the Redis user `submitter` beside the orchestrator's; "
                "set TACHIKOMA_SUBMITTER_PASSWORD_FILE"
            )
        own = {"redis_user": SUBMITTER, "redis_password_file": self.submitter_password_file}
        given = self.model_copy(update=own) if self.submitter_password_file is not None else self
        return RedisAccess.of(given, identity=identity, user=SUBMITTER)


def plain(message: dict[str, Any], queue: str) -> dict[str, Any]:
    """A message with a task of ours, what it is part of and what is to follow it, and nothing else of another one.

    Raises:
        ValueError, TypeError, KeyError, RecursionError: it is none that an application or beat makes.
    """
    headers = message["headers"]
    if message["content-type"] != "application/json":
        raise ValueError(f"is no JSON: {str(message['content-type'])[:80]!r}")
    if headers["task"] != TASKS[queue]:
        raise ValueError(f"is not for {queue}: {str(headers['task'])[:80]!r}")
    body: Any = message["body"]
    if message["properties"].get("body_encoding") == "base64":
        body = base64.b64decode(body, validate=True)
    args, kwargs, embed = json.loads(body)
    if not (isinstance(args, list) and isinstance(kwargs, dict) and isinstance(embed, dict)):
        raise TypeError("has no arguments")
    kept = {name: headers[name] for name in HEADERS if headers.get(name) is not None}
    if not isinstance(kept["id"], str):
        raise TypeError("has no id")
    if queue == keys.BATCH:
        # Nothing follows a nudge: who may only send those must not have tasks sent with the submitter's rights.
        kept, embed = {"id": kept["id"]}, {}
    return {
        "body": json.dumps([args, kwargs, {name: embed.get(name) for name in EMBEDDED}]),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        # Celery writes a task's arguments into its log, and these hold a whole request.
        "headers": {"task": headers["task"], "lang": "py", "argsrepr": "...", "kwargsrepr": "...", **kept},
        "properties": {
            "delivery_mode": 2,
            "delivery_tag": str(uuid4()),
            "delivery_info": {
                "exchange": "",
                "routing_key": queue,
                # Celery then looks whether the task has succeeded already.
                "redelivered": message["properties"].get("delivery_info", {}).get("redelivered") is True,
            },
        },
    }


class SubmitterTransport(BrokerTransport):
    """Hands on what is plain only."""

    def _deliver(self, message: Any, queue: Any) -> None:
        super()._deliver(plain(message, queue), queue)


class Submitter:
    """The event loop beside Celery, in a thread of its own."""

    def __init__(self, settings: SubmitterSettings) -> None:
        """Wire it. Raises ConfigurationError as `Core` does."""
        self.settings = settings
        self.core = Core(settings, "submitter")
        self.access = settings.celery(self.core.identity)
        self._redis = connect(self.access, name="submitter-queues", max_connections=4)
        self._runner = Runner(self._redis)
        self._resubmit = Script("resubmit")
        #: This run of the submitter.
        self.run_id = secrets.token_hex(8)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="submitter", daemon=True)
        self._background: list[asyncio.Task[Any]] = []
        self._waiting: set[asyncio.Task[Any]] = set()
        #: Celery tasks that wait for something of ours. Their threads change it; each change is atomic in Python.
        self._tasks: set[str] = set()
        self._stopping = False
        #: Why it had to end, if it had to.
        self.failure: BaseException | None = None

    # --- for other threads --------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the loop."""
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result()

    def run(self, task_id: str, work: Coroutine[Any, Any, T]) -> T:
        """Do in the loop what a task asks for, and wait for it.

        Raises:
            Ignore: it is being done already; the message came once more after a connection broke.
            Reject: the submitter stops; the message goes back to its queue.
        """
        if task_id in self._tasks:
            work.close()
            raise Ignore
        self._tasks.add(task_id)
        try:
            return asyncio.run_coroutine_threadsafe(self._tracked(work), self._loop).result()
        except CancelledError:
            raise Reject("the submitter stops", requeue=True) from None
        finally:
            self._tasks.discard(task_id)

    def release(self) -> None:
        """Let all tasks go back to their queues. For signal handlers too."""
        self._stopping = True
        self._loop.call_soon_threadsafe(self._release)

    def stop(self) -> None:
        """Close everything; nothing may be asked of it any more."""
        closed = asyncio.run_coroutine_threadsafe(self._close(), self._loop)
        with suppress(TimeoutError):
            closed.result(CLOSE_SECONDS)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(CLOSE_SECONDS)

    # --- in the loop --------------------------------------------------------------------------------------------------

    async def _start(self) -> None:
        self._background = [
            *await self.core.start(),
            self._loop.create_task(self._stay_alive()),
        ]
        if self.core.schedule_runner is not None:
            self._background.append(self._loop.create_task(self.core.schedule_runner.run()))
        if self.settings.audit_failure == "closed":
            self._background.append(self._loop.create_task(self._watch_sinks()))
        for task in self._background:
            task.add_done_callback(self._background_ended)

    def _background_ended(self, task: asyncio.Task[Any]) -> None:
        if self._stopping or task.cancelled():
            return
        self.failure = task.exception() or RuntimeError("a part of the submitter ended")
        log.error("submitter.failed", exc_info=self.failure)
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

    def _release(self) -> None:
        for task in self._waiting:
            task.cancel()

    async def _close(self) -> None:
        self._stopping = True
        await cancel_all([*self._background, *self._waiting])
        with suppress(RedisError, OSError):
            await self._put_back(self.run_id)
        await self._redis.aclose()
        await self.core.aclose()

    # --- messages that were taken -------------------------------------------------------------------------------------

    async def _stay_alive(self) -> None:
        while True:
            with suppress(RedisError, OSError):
                # By the clock of Redis: those of hosts differ, and nobody alive must count as gone.
                now = (await self._redis.time())[0]
                await self._redis.zadd(keys.SUBMITTERS, {self.run_id: now})
                for run in await self._redis.zrange(keys.SUBMITTERS, 0, now - GONE_SECONDS, byscore=True):
                    await self._put_back(run.decode(errors="replace"))
            await asyncio.sleep(ALIVE_SECONDS)

    async def _put_back(self, run: str) -> None:
        """Put the messages of an ended submitter back on their queues."""
        unacked, index, _ = keys.unacked(run)
        taken: dict[str, list[str]] = {keys.SUBMIT: [], keys.BATCH: []}
        for raw in await self._redis.hvals(unacked):
            try:
                message, _, queue = json.loads(raw)
                message["properties"]["delivery_info"]["redelivered"] = True
                taken[queue].append(json.dumps(message))
            except (ValueError, TypeError, KeyError, RecursionError) as error:
                log.warning("message.unreadable", error=repr(error)[:300])
        call = self._resubmit(
            keys=[keys.SUBMITTERS, unacked, index, *taken],
            args={"run": run, "counts": [len(messages) for messages in taken.values()]},
            payloads=[message for messages in taken.values() for message in messages],
        )
        if await self._runner.run(call):
            log.info("submitter.put_back", run=run, messages=sum(map(len, taken.values())))

    # --- audit --------------------------------------------------------------------------------------------------------

    async def _watch_sinks(self) -> None:
        """Take nothing while too much waits for the sinks that the orchestrators ship to."""
        while True:
            with suppress(RedisError, OSError, ValueError):
                latest = int(await self.core.redis.get(keys.AUDIT_SEQ) or 0)
                behind = ""
                for name, raw in (await self.core.redis.hgetall(keys.AUDIT_SINKS)).items():
                    sink = SinkPosition.read(raw)
                    if sink is None or sink.at <= time.time() - SINK_SECONDS:
                        continue
                    waiting = latest - sink.seq
                    if waiting > self.settings.audit_backlog:
                        told = name.decode(errors="replace")
                        behind = f"{waiting} events of the audit trail wait for {told}"
                self.core.trail.closed_reason = behind
            await asyncio.sleep(ALIVE_SECONDS)


def make_app(submitter: Submitter) -> Celery:
    """The Celery application of a submitter."""
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
        socket_timeout=POLL_SECONDS + 10,
    )
    app.conf.update(
        **settings,
        # Where a callback goes that names no queue.
        task_default_queue=keys.CALLBACKS,
        task_queues=[Queue(name, routing_key=name) for name in (keys.SUBMIT, keys.BATCH)],
        task_acks_late=True,
        **celery_broker.WORKER,
        result_expires=RESULT_SECONDS,
        result_backend_always_retry=True,
        result_backend_thread_safe=True,
        # Whoever was killed after it had told of an end need not tell, and call back, once more.
        worker_deduplicate_successful_tasks=True,
    )

    @app.task(name=TASK_NAME, bind=True, throws=(TachikomaError,))
    def submit(self: Any, token: Any = None, check: Any = True) -> dict[str, Any]:
        """Run a signed request to its end."""
        response = submitter.run(self.request.id, execute(submitter.core, token))
        return (response.check() if check else response).to_dict()

    # A nudge that is lost with its submitter need not come again: the next one looks by itself.
    @app.task(name=DUE_TASK, bind=True, acks_late=False, ignore_result=True)
    def due(self: Any, *_: Any, **given: Any) -> None:
        """Look at a schedule, of which beat says that it is due."""
        if submitter.core.schedule_runner is not None:
            hint = submitter.core.schedule_runner.hint(given.get("schedule"), given.get("due_ms"))
            submitter.run(self.request.id, hint)

    app.finalize()
    return app


def serve(settings: SubmitterSettings, ready_fd: int | None = None) -> int:
    """Run a submitter until SIGTERM or SIGINT.

    Args:
        settings: where everything is.
        ready_fd: closed once messages are taken.

    Returns:
        The exit code.

    Raises:
        ConfigurationError: something in the settings cannot be used.
    """
    submitter = Submitter(settings)
    app = make_app(submitter)
    worker: Any = app.Worker(
        hostname=f"submitter@{submitter.run_id}",
        pool="threads",
        concurrency=settings.submitter_slots,
        loglevel=settings.log_level.upper(),
        quiet=True,
        without_gossip=True,
        without_mingle=True,
        without_heartbeat=True,
        optimization="fair",
    )

    @signals.worker_ready.connect(weak=False)
    def on_ready(**_: Any) -> None:
        log.info("submitter.ready", pid=os.getpid(), slots=settings.submitter_slots)
        if ready_fd is not None:
            os.close(ready_fd)

    @signals.worker_shutting_down.connect(weak=False)
    def on_shutting_down(**_: Any) -> None:
        submitter.release()

    submitter.start()
    # 1. Celery until it is told to stop; it then takes nothing more, and what it has goes back to its queue.
    worker.start()
    # 2. What serves it.
    submitter.stop()
    return 1 if submitter.failure is not None else int(worker.exitcode or 0)
