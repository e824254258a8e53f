"""Flower, the real one, as a window: it hears Celery's events from the feed, and can do nothing else.

Flower as it comes asks workers by remote control, looks into the broker's lists, and lets people revoke tasks and stop
workers. Agents take no remote control, and Flower's user in Redis has no right to a single key. So what it would ask
for stands in the events, too: how an agent is, and what waits on its queue.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import signal
import time
from base64 import b64decode
from binascii import Error as Base64Error
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import structlog
from celery import Celery, states
from celery.app.control import Control
from flower.app import Flower
from flower.events import Events, EventsState
from flower.inspector import Inspector
from flower.options import default_options
from flower.urls import settings as flower_settings
from flower.views import BaseHandler
from flower.views.tasks import TasksDataTable
from kombu.utils.encoding import bytes_to_str
from tornado.httputil import HTTPMessageDelegate, HTTPServerRequest
from tornado.ioloop import IOLoop
from tornado.web import RequestHandler, authenticated, url

from tachikoma.errors import ConfigurationError
from tachikoma.redis import celery_broker, keys
from tachikoma.redis.access import RedisAccess
from tachikoma.vocabulary.addresses import HostPort
from tachikoma_orchestrator.flower.celery_events import BEGIN

__all__ = ["serve"]

log = structlog.get_logger(__name__)

#: What may be asked without a password: whether it is there.
OPEN_PATHS = ("/healthcheck",)
#: What is closed: it could change something, or tells what has a place elsewhere (`tachikoma … --output json`, the
#: orchestrator's metrics).
CLOSED_PATHS = ("/api/", "/metrics", "/login", "/logout")
#: How the tasks page asks for its rows.
POSTED_PATH = "/tasks/datatable"
COLUMNS = "uuid,args,state,runtime,received,worker,exception"
#: Longest text in a row; the page of the task has all of it.
MAX_CELL = 64
#: Tasks of one agent that its page lists, of each kind.
MAX_LISTED = 50
#: Tasks that are remembered while it runs; it begins with the latest `feed.RECENT`.
MAX_TASKS = 20_000


class Foreseen(logging.Filter):
    """Makes warnings of what Flower takes for errors: it waits for a Redis that is away."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.levelno, record.levelname = logging.WARNING, "WARNING"
        return True


class EventChannel(celery_broker.QueueChannel):
    """Listens without writing anything: an exchange of the type `fanout` is a channel of Redis, known by its name."""

    def _new_queue(self, queue: str, **_: Any) -> None:
        # Never one that expires or must be deleted; there is nothing of it in Redis.
        return

    def _queue_bind(self, exchange: str, routing_key: str, pattern: str, queue: str) -> None:
        queues: dict[str, tuple[str, str]] = self._fanout_queues  # type: ignore[attr-defined]
        queues[queue] = (exchange, routing_key.replace("#", "*"))

    def _handle_message(self, client: Any, r: Any) -> Any:
        if bytes_to_str(r[0]) == "psubscribe":
            # Now, and not before, nothing is missed. Also after each reconnect.
            with self.conn_or_acquire() as connection:
                connection.publish(keys.EVENTS_WANTED, "1")
        return super()._handle_message(client, r)  # type: ignore[misc]


class EventTransport(celery_broker.BrokerTransport):
    """The transport in Flower's process."""

    Channel = EventChannel


class NoControl(Control):
    """Tells no worker anything: none would listen, and Flower has no right to."""

    def broadcast(self, *_: Any, **__: Any) -> None:
        return


class LedgerState(EventsState):  # type: ignore[misc]
    """What was heard. The feed tells some things twice, and from time to time everything anew."""

    def __init__(self, **bounds: int) -> None:
        super().__init__(**bounds)
        #: Tasks of each worker that run.
        self._running: defaultdict[str, set[str]] = defaultdict(set)

    def event(self, event: dict[str, Any]) -> None:
        kind, name = event["type"], event["hostname"]
        if kind == BEGIN:
            self.clear(ready=False)
            self.counter.clear()
            self._running.clear()
            return
        if kind.startswith("task-"):
            uuid = event["uuid"]
            task = self.tasks.data.get(uuid)
            if task is not None and getattr(task, kind.removeprefix("task-"), None) == event["timestamp"]:
                return
            super().event(event)
            if self.tasks.data[uuid].state == states.STARTED:
                self._running[name].add(uuid)
            else:
                self._running[name].discard(uuid)
        else:
            super().event(event)
        if name in self.workers:
            # By what was told up to now; an agent itself only says it every few seconds.
            self.workers[name].active = len(self._running[name])


class AgentsInspector(Inspector):  # type: ignore[misc]
    """What Flower's page of a worker shows, out of the events instead of by asking it."""

    def __init__(self, io_loop: IOLoop, capp: Celery, state: LedgerState) -> None:
        super().__init__(io_loop, capp, timeout=0)
        self._state = state

    def inspect(self, workername: str | None = None) -> asyncio.Future[None]:
        # Of all at once nobody needs it.
        if workername is not None:
            worker = self._state.workers.get(workername)
            if worker is None or not hasattr(worker, "tachikoma"):
                self.workers.pop(workername, None)
            else:
                self.workers[workername] = self._about(workername, worker)
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        done.set_result(None)
        return done

    def _about(self, name: str, worker: Any) -> dict[str, Any]:
        said = worker.tachikoma
        tasks = [task for _, task in self._state.tasks.items() if task.worker and task.worker.hostname == name]
        by_state: dict[str, list[dict[str, Any]]] = {states.STARTED: [], states.RECEIVED: [], states.REVOKED: []}
        for task in reversed(tasks):
            listed = by_state.get(task.state)
            if listed is not None and len(listed) < MAX_LISTED:
                listed.append(
                    {
                        "name": task.name, "id": task.uuid, "args": task.args, "kwargs": task.kwargs,
                        "acknowledged": True, "worker_pid": None,
                    }
                )  # fmt: skip
        queue = {
            "name": said["queue"], "exchange": "", "routing_key": said["queue"], "exclusive": False, "durable": True,
            "no_ack": True, "alias": None, "queue_arguments": None, "binding_arguments": None, "auto_delete": False,
        }  # fmt: skip
        return {
            "timestamp": time.time(),
            "stats": {
                "pool": {"implementation": "tachikoma", "max-concurrency": said["slots"]},
                "broker": {"transport": "redis", "queue": said["queue"], "waiting": said["queued"]},
                "total": Counter(task.name for task in tasks),
                "rusage": {
                    "load average": worker.loadavg,
                    "memory used": f"{said['memory_used']:.0%}",
                    "disk used": f"{said['disk_used']:.0%}",
                },
                "agent": said["agent"],
                "host": said["host"],
                "version": worker.sw_ver,
                "labels": ", ".join(f"{label}={value}" for label, value in sorted(said["labels"].items())),
                "not enforced": "; ".join(said["warnings"]),
            },
            "active_queues": [queue],
            "active": by_state[states.STARTED],
            "reserved": by_state[states.RECEIVED],
            "scheduled": [],
            "revoked": [task["id"] for task in by_state[states.REVOKED]],
            "registered": [],
            "conf": {},
        }


class RowsView(TasksDataTable):  # type: ignore[misc]
    """Rows of Flower's page of tasks, with texts of a length that fits there."""

    def write(self, chunk: Any) -> None:
        for row in chunk["data"]:
            for name in ("args", "exception"):
                text = row[name]
                if text is not None and len(text) > MAX_CELL:
                    row[name] = f"{text[: MAX_CELL - 1]}…"
        super().write(chunk)


class QueuesView(BaseHandler):  # type: ignore[misc]
    """Flower's page of the broker, with what the events say of the agents' queues."""

    @authenticated
    async def get(self) -> None:
        queues = []
        for _, worker in sorted(self.application.events.state.workers.items()):
            said = getattr(worker, "tachikoma", None)
            if said is not None:
                waiting = said["queued"]
                queues.append(
                    {
                        "name": said["queue"], "messages": waiting, "messages_ready": waiting,
                        "messages_unacknowledged": 0, "consumers": int(worker.alive),
                    }
                )  # fmt: skip
        self.render("celery_broker.html", broker_url=self.application.broker_uri, queues=queues)


class Refused(RequestHandler):
    """The answer to whatever the door does not let through."""

    def initialize(self, status: int, reason: str) -> None:
        self._status, self._why = status, reason

    def prepare(self) -> None:
        self.set_status(self._status)
        if self._status == 401:
            self.set_header("WWW-Authenticate", 'Basic realm="flower"')
        self.set_header("Content-Type", "text/plain; charset=UTF-8")
        self.finish(f"{self._why}\n")

    def check_xsrf_cookie(self) -> None:
        return


class Dashboard(Flower):  # type: ignore[misc]
    """Flower behind one door: every request is let through here or not at all."""

    def find_handler(self, request: HTTPServerRequest, **kwargs: Any) -> HTTPMessageDelegate:
        """What answers a request."""
        authorization = request.headers.get("Authorization", "")
        if request.path not in OPEN_PATHS and not self._known(authorization):
            if authorization:
                log.warning("flower.wrong_password", address=request.remote_ip)
            return self._refuse(request, 401, "a user and a password are needed")
        if request.path.startswith(CLOSED_PATHS):
            return self._refuse(request, 403, "this Flower only shows; `tachikoma` is for everything else")
        if request.method not in ("GET", "HEAD") and (request.method, request.path) != ("POST", POSTED_PATH):
            return self._refuse(request, 403, "this Flower only shows")
        found: HTTPMessageDelegate = super().find_handler(request, **kwargs)
        return found

    def _refuse(self, request: HTTPServerRequest, status: int, reason: str) -> HTTPMessageDelegate:
        refused: HTTPMessageDelegate = self.get_handler_delegate(request, Refused, {"status": status, "reason": reason})
        return refused

    def _known(self, authorization: str) -> bool:
        scheme, _, encoded = authorization.partition(" ")
        if scheme.lower() != "basic":
            return False
        try:
            given = b64decode(encoded, validate=True)
        except (Base64Error, ValueError):
            return False
        # All are compared, so that time tells nothing.
        matches = [hmac.compare_digest(given, known.encode()) for known in self.options.basic_auth]
        return any(matches)


def _application(access: RedisAccess) -> Celery:
    celery_broker.install(EventTransport)
    app = Celery("tachikoma", set_as_current=True, control=NoControl)
    app.conf.update(
        **celery_broker.settings(access, client_name="flower"),
        task_default_queue="none",
        timezone=None,
    )
    app.finalize()
    return app


def _options(users: Iterable[str]) -> Any:
    """Flower's own options, which are one for the whole process. None is taken from the environment or a file."""
    options = default_options
    options.basic_auth = list(users)
    options.read_only = True
    options.enable_events = False
    options.tasks_columns = COLUMNS
    options.max_tasks = MAX_TASKS
    return options


async def serve(
    access: RedisAccess,
    *,
    listen: HostPort,
    users: Iterable[str],
    certificate: tuple[str, str] | None,
    ready: Callable[[str], None] | None = None,
) -> None:
    """Run Flower until SIGTERM or SIGINT. It starts without Redis, too, and waits for it.

    Args:
        access: Redis, as the user `flower`.
        listen: address of the web server; port 0 takes a free one.
        users: `user:password` of everybody who may look.
        certificate: files of the certificate and key it shows; without them it speaks HTTP.
        ready: called with the URL once it listens.

    Raises:
        ConfigurationError: address or certificate cannot be used.
    """
    # Old times are what the feed tells anew.
    logging.getLogger("celery.events.state").setLevel(logging.ERROR)
    logging.getLogger("tornado.access").setLevel(logging.ERROR)
    logging.getLogger("flower.events").addFilter(Foreseen())
    io_loop = IOLoop.current()
    app, options = _application(access), _options(users)
    options.address, options.port = listen.host, listen.port
    bounds = {"max_workers_in_memory": options.max_workers, "max_tasks_in_memory": options.max_tasks}
    events = Events(app, io_loop, enable_events=False, **bounds)
    events.state = LedgerState(**bounds)
    settings = dict(flower_settings)
    if certificate is not None:
        settings["ssl_options"] = {"certfile": certificate[0], "keyfile": certificate[1]}
    dashboard = Dashboard(options=options, capp=app, events=events, io_loop=io_loop, **settings)
    dashboard.add_handlers(r".*", [url(r"/broker", QueuesView), url(POSTED_PATH, RowsView)])
    dashboard.inspector = AgentsInspector(io_loop, app, events.state)
    try:
        taken = dashboard.start_http_server()
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"Flower cannot listen on {listen}: {error}") from error
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    # Its thread is a daemon: it holds nothing that must be let go of.
    events.start()
    scheme = "http" if certificate is None else "https"
    where = f"{scheme}://{listen.with_port(taken)}"
    log.info("flower.ready", url=where)
    if ready is not None:
        ready(where)
    await stop.wait()
    log.info("flower.stopping")
    dashboard.executor.shutdown(wait=False)
