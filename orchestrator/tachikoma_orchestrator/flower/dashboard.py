"""The real Flower, as a view of the feed's events that can do nothing else.

Stock Flower asks workers by remote control, reads the broker's lists, and lets users revoke tasks and stop workers.
Agents take no remote control, and Flower's user in Redis may read no key. The events therefore contain everything that
Flower would ask for: the state of each agent, and the length of its queue.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import signal
from base64 import b64decode
from binascii import Error as Base64Error
from collections.abc import Callable, Iterable
from typing import Any

import structlog
from flower.app import Flower
from flower.events import Events
from flower.options import default_options
from flower.urls import settings as flower_settings
from flower.views import BaseHandler
from flower.views.tasks import TasksDataTable
from tornado.httputil import HTTPMessageDelegate, HTTPServerRequest
from tornado.ioloop import IOLoop
from tornado.web import RequestHandler, authenticated, url

from tachikoma.errors import ConfigurationError
from tachikoma.redis.access import RedisAccess
from tachikoma.vocabulary.addresses import HostPort
from tachikoma_orchestrator.flower.listener import listening_app
from tachikoma_orchestrator.flower.state import AgentsInspector, LedgerState

__all__ = ["serve"]

log = structlog.get_logger(__name__)

#: Paths that need no password: the health check.
OPEN_PATHS = ("/healthcheck",)
#: Paths that are closed. Some could change something; the content of others is elsewhere
#: (`tachikoma … --output json`, the orchestrator's metrics).
CLOSED_PATHS = ("/api/", "/metrics", "/login", "/logout")
#: Path from which the tasks page gets its rows.
POSTED_PATH = "/tasks/datatable"
COLUMNS = "uuid,args,state,runtime,received,worker,exception"
#: Longest text in a row, in characters; the page of the task has all of it.
MAX_CELL = 64
#: Largest number of tasks in memory; a new process gets the latest `feed.RECENT`.
MAX_TASKS = 20_000


class Foreseen(logging.Filter):
    """Turns Flower's errors about an unavailable Redis into warnings: it waits for Redis."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Change the level of a record, and let it pass."""
        record.levelno, record.levelname = logging.WARNING, "WARNING"
        return True


class RowsView(TasksDataTable):  # type: ignore[misc]
    """The rows of Flower's tasks page, with long texts shortened."""

    def write(self, chunk: Any) -> None:
        """Write rows, given as Flower makes them."""
        for row in chunk["data"]:
            for name in ("args", "exception"):
                text = row[name]
                if text is not None and len(text) > MAX_CELL:
                    row[name] = f"{text[: MAX_CELL - 1]}…"
        super().write(chunk)


class QueuesView(BaseHandler):  # type: ignore[misc]
    """Flower's broker page, with the lengths of the agents' queues from the events."""

    @authenticated
    async def get(self) -> None:
        """Show the page."""
        queues = []
        for _, worker in sorted(self.application.events.state.workers.items()):
            agent = getattr(worker, "tachikoma", None)
            if agent is not None:
                waiting = agent["queued"]
                queues.append(
                    {
                        "name": agent["queue"], "messages": waiting, "messages_ready": waiting,
                        "messages_unacknowledged": 0, "consumers": int(worker.alive),
                    }
                )  # fmt: skip
        self.render("broker.html", broker_url=self.application.broker_uri, queues=queues)


class Refused(RequestHandler):
    """The answer to a request that is not allowed."""

    def initialize(self, status: int, reason: str) -> None:
        """Prepare the answer; called by Tornado with the arguments of `Dashboard._refuse`."""
        self._status, self._refusal = status, reason

    def prepare(self) -> None:
        """Answer the request."""
        self.set_status(self._status)
        if self._status == 401:
            self.set_header("WWW-Authenticate", 'Basic realm="flower"')
        self.set_header("Content-Type", "text/plain; charset=UTF-8")
        self.finish(f"{self._refusal}\n")

    def check_xsrf_cookie(self) -> None:
        """Check nothing: the request is refused anyway."""
        return


class Dashboard(Flower):  # type: ignore[misc]
    """Flower with one gate: each request passes here, or is refused."""

    def find_handler(self, request: HTTPServerRequest, **kwargs: Any) -> HTTPMessageDelegate:
        """Return the handler of a request."""
        authorization = request.headers.get("Authorization", "")
        if request.path not in OPEN_PATHS and not self._known(authorization):
            if authorization:
                log.warning("flower.wrong_password", address=request.remote_ip)
            return self._refuse(request, 401, "a user and a password are required")
        if request.path.startswith(CLOSED_PATHS):
            return self._refuse(request, 403, "this Flower is read-only; use `tachikoma` for everything else")
        if request.method not in ("GET", "HEAD") and (request.method, request.path) != ("POST", POSTED_PATH):
            return self._refuse(request, 403, "this Flower is read-only")
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
        # All are compared, so that the duration reveals nothing.
        matches = [hmac.compare_digest(given, known.encode()) for known in self.options.basic_auth]
        return any(matches)


def _options(users: Iterable[str]) -> Any:
    """Return Flower's options, which the whole process shares. None comes from the environment or a file."""
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
        users: `user:password` of each user.
        certificate: files of the server's certificate and key; None for HTTP.
        ready: called with the URL once Flower listens.

    Raises:
        ConfigurationError: the address or the certificate cannot be used.
    """
    _set_log_levels()
    dashboard = _dashboard(access, listen, users, certificate)
    try:
        port = dashboard.start_http_server()
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"Flower cannot listen on {listen}: {error}") from error
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    # The thread of the events is a daemon: it holds nothing that must be released.
    dashboard.events.start()
    address = f"{'http' if certificate is None else 'https'}://{listen.with_port(port)}"
    log.info("flower.ready", url=address)
    if ready is not None:
        ready(address)
    await stop.wait()
    log.info("flower.stopping")
    dashboard.executor.shutdown(wait=False)


def _set_log_levels() -> None:
    # The feed publishes events of the past, of which Celery would warn each time.
    logging.getLogger("celery.events.state").setLevel(logging.ERROR)
    logging.getLogger("tornado.access").setLevel(logging.ERROR)
    logging.getLogger("flower.events").addFilter(Foreseen())


def _dashboard(
    access: RedisAccess, listen: HostPort, users: Iterable[str], certificate: tuple[str, str] | None
) -> Dashboard:
    """Return Flower's web application, not started yet; arguments as of `serve`."""
    io_loop = IOLoop.current()
    app, options = listening_app(access), _options(users)
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
    return dashboard
