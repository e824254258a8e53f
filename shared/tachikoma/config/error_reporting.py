"""Errors nobody foresaw, sent to Sentry; off without a DSN, and then `sentry_sdk` is not even imported.

What is logged as an error or with an exception, here or by a library, what ends the process or a thread, and what a
Celery task raises becomes one event. An event is not what Sentry collected with the unwanted taken out: it is made anew
(`_event`) from what cannot hold a secret by its kind. These are names that stand in source code, numbers of lines, ids,
and of an exception's text only what comes from a closed list (`_detail`): texts of exceptions quote commands, URLs and
keys. The log has them, and the ids say where.
"""

from __future__ import annotations

import logging
import os
import platform
import re
import sqlite3
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from traceback import walk_tb
from types import FrameType
from typing import Any

import grpc
import structlog
from pydantic import SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from tachikoma.errors import ConfigurationError, TachikomaError
from tachikoma.vocabulary.types import ID_PATTERN

__all__ = ["ErrorReportingSettings", "concerns", "configure", "identify"]

log = structlog.get_logger(__name__)

#: Events of one process in a minute; a fault that comes with every request must not use up what Sentry takes.
EVENTS_PER_MINUTE = 60
#: Events that wait to be sent; more are dropped.
QUEUED_EVENTS = 30
#: How long the end of a process may wait for events that are not sent yet.
SHUTDOWN_SECONDS = 1.0
#: What was logged before, of all executions; an event has at most that, of its own.
MAX_BREADCRUMBS = 100
#: Exceptions of one event: the one that was raised, its causes, those of a group.
MAX_EXCEPTIONS = 10
#: Calls of one exception; the innermost.
MAX_FRAMES = 50

#: These log about the sending itself.
_SILENT = ("sentry_sdk", "urllib3")
#: What a ResponseError of Redis begins with.
_REDIS_CODE = re.compile(
    "BUSY|BUSYGROUP|CLUSTERDOWN|ERR|EXECABORT|LOADING|MASTERDOWN|MISCONF|MOVED|NOAUTH|NOGROUP|NOPERM|NOREPLICAS"
    "|NOSCRIPT"
    "|OOM|READONLY|TRYAGAIN|UNKILLABLE|WRONGPASS|WRONGTYPE"
)
#: What a name in source code looks like, or an id: nothing else becomes a tag.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
_ID = re.compile(ID_PATTERN)
#: Set on an exception that was reported: it may be logged on its way and still end the process.
_REPORTED = "_tachikoma_reported"

#: What the current task or thread is about.
_execution: ContextVar[str] = ContextVar("execution", default="")


class ErrorReportingSettings(BaseSettings):
    """Where errors are reported to: environment variables `TACHIKOMA_SENTRY_…`."""

    model_config = SettingsConfigDict(env_prefix="TACHIKOMA_SENTRY_", frozen=True, extra="ignore")

    #: DSN of the Sentry project; without one nothing is reported. Sentry's own SENTRY_DSN is not read: on a host that
    #: runs other software it may be somebody else's.
    dsn: SecretStr | None = None
    #: File that holds it instead.
    dsn_file: Path | None = None
    #: What Sentry calls this installation.
    environment: str = "production"

    def read_dsn(self) -> str:
        """The DSN, or nothing.

        Raises:
            ConfigurationError: the file cannot be read or is empty.
        """
        if self.dsn_file is None:
            return self.dsn.get_secret_value().strip() if self.dsn is not None else ""
        try:
            found = self.dsn_file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"cannot read the DSN of Sentry in {self.dsn_file}: {error}") from error
        if not found:
            raise ConfigurationError(f"there is no DSN of Sentry in {self.dsn_file}")
        return found


def concerns(execution: str) -> None:
    """Say which execution the current task or thread is about from here on; its errors carry that id."""
    _execution.set(execution)


#: What every event of this process says.
_tags: dict[str, str] = {}


def identify(trust_domain: str) -> None:
    """Tag this process's error reports with its trust domain."""
    _tags["trust_domain"] = trust_domain


def configure(component: str, *, agent: str = "") -> None:
    """Report this process's errors from here on, where a DSN is set. Called once, after `logs.configure`.

    Args:
        component: which command this is.
        agent: the agent it belongs to.

    Raises:
        ConfigurationError: there is a DSN, but it is none of Sentry's, or `sentry-sdk` is not installed.
    """
    settings = ErrorReportingSettings()
    dsn = settings.read_dsn()
    if not dsn:
        return
    try:
        import sentry_sdk
        from sentry_sdk.integrations.atexit import AtexitIntegration
        from sentry_sdk.integrations.celery import CeleryIntegration
        from sentry_sdk.integrations.excepthook import ExcepthookIntegration
    except ImportError as error:
        raise ConfigurationError(
            "TACHIKOMA_SENTRY_DSN is set, but sentry-sdk is not installed; "
            "pip install 'tachikoma-exec[orchestrator]' or 'tachikoma-exec[worker]'"
        ) from error
    try:
        sentry_sdk.init(
            dsn=dsn,
            release=f"tachikoma-exec@{version('tachikoma-exec')}",
            environment=settings.environment,
            server_name=platform.node(),
            before_send=_event,
            # Which integrations there are is said here and nowhere else; gRPC's is not, see `docs/decisions/0018`.
            default_integrations=False,
            auto_enabling_integrations=False,
            integrations=[
                AtexitIntegration(callback=lambda _pending, _timeout: None),
                ExcepthookIntegration(),
                # Messages are ours alone: nothing is added to them.
                CeleryIntegration(propagate_traces=False),
            ],
            shutdown_timeout=SHUTDOWN_SECONDS,
            transport_queue_size=QUEUED_EVENTS,
            # `_event` would drop all of that too; so it is not even collected.
            include_local_variables=False,
            include_source_context=False,
            max_request_body_size="never",
            max_breadcrumbs=0,
            # Nothing is sent but events, and not to anywhere else that other variables of the environment name.
            auto_session_tracking=False,
            send_client_reports=False,
            enable_backpressure_handling=False,
            propagate_traces=False,
            spotlight=False,
            debug=False,
            keep_alive=False,
        )
    except ValueError:
        # Not the text itself: whoever knows a DSN may send events.
        raise ConfigurationError(
            "TACHIKOMA_SENTRY_DSN is no DSN of Sentry; it looks like https://KEY@HOST/PROJECT"
        ) from None
    _tags.update(component=component, agent=agent)
    logging.getLogger().addHandler(_Handler(sentry_sdk.capture_exception, sentry_sdk.capture_message))
    before = threading.excepthook

    def in_thread(args: threading.ExceptHookArgs) -> None:
        if args.exc_value is not None:
            sentry_sdk.capture_exception(args.exc_value)
        before(args)

    threading.excepthook = in_thread
    log.info("errors.reported", environment=settings.environment)


# --- what becomes an event --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Breadcrumb:
    """Something that was logged, by its name."""

    at: datetime
    level: str
    logger: str
    name: str
    execution: str


_breadcrumbs: deque[_Breadcrumb] = deque(maxlen=MAX_BREADCRUMBS)


class _Handler(logging.Handler):
    """Takes what is logged: ours as it is said in `tachikoma`, and the exceptions that libraries log."""

    def __init__(self, exception: Callable[..., Any], message: Callable[..., Any]) -> None:
        super().__init__(logging.INFO)
        self._exception = exception
        self._message = message

    def emit(self, record: logging.LogRecord) -> None:
        if record.name.startswith(_SILENT):
            return
        try:
            self._take(record)
        except Exception:
            self.handleError(record)

    def _take(self, record: logging.LogRecord) -> None:
        fields: Mapping[str, Any] = {}
        # The text of a library's line may hold anything, so its logger stands for it.
        name, given = record.name, record.exc_info
        if isinstance(record.msg, dict) and hasattr(record, "_logger"):
            fields = record.msg
            name, given = str(fields.get("event")), fields.get("exc_info")
        error = _exception(given)
        level = "fatal" if record.levelno >= logging.CRITICAL else record.levelname.lower()
        execution = str(fields.get("id") or _execution.get())
        if record.levelno >= logging.ERROR and (fields or error is not None) and not _budget.spent():
            tags = {"event": name, "execution": execution, "agent": str(fields.get("agent") or "")}
            if error is not None:
                self._exception(error, level=level, tags=tags)
            else:
                self._message(name, level=level, tags=tags)
        if fields:
            _breadcrumbs.append(_Breadcrumb(datetime.now(UTC), level, record.name, name, execution))


def _exception(given: Any) -> BaseException | None:
    """The exception of a log line, in any of the ways it may be given."""
    if given is True:
        given = sys.exc_info()
    if isinstance(given, tuple):
        given = given[1]
    return given if isinstance(given, BaseException) else None


class _Budget:
    """How many events this minute may still have."""

    def __init__(self) -> None:
        self._until = 0.0
        self._left = 0

    def spent(self) -> bool:
        """Whether there can be no more."""
        return self._left < 0 and time.monotonic() < self._until

    def take(self) -> bool:
        """Whether there may be one more."""
        now = time.monotonic()
        if now >= self._until:
            self._until, self._left = now + 60, EVENTS_PER_MINUTE
        self._left -= 1
        if self._left == -1:
            log.warning("errors.limited", per_minute=EVENTS_PER_MINUTE)
        return self._left >= 0


_budget = _Budget()


# --- what an event holds ----------------------------------------------------------------------------------------------


def _event(collected: Any, hint: dict[str, Any]) -> Any:
    """Sentry's `before_send`: the event in place of the one that Sentry collected, or None."""
    error: BaseException | None = (hint.get("exc_info") or (None, None, None))[1]
    if error is not None:
        # Not what somebody asked for with Ctrl-C.
        if not isinstance(error, Exception) or getattr(error, _REPORTED, False):
            return None
        # A class that takes no attributes may be reported twice.
        with suppress(AttributeError):
            setattr(error, _REPORTED, True)
    if not _budget.take():
        return None
    told = collected.get("tags") or {}
    tags = {"execution": _execution.get(), **_tags}
    tags |= {name: told[name] for name in ("event", "execution", "agent", "celery_task_id") if told.get(name)}
    tags = {name: value for name, value in tags.items() if _known(name, value)}
    event = {
        name: collected[name]
        for name in ("event_id", "timestamp", "platform", "level", "release", "environment", "server_name", "sdk")
        if name in collected
    }
    event["tags"] = tags
    event["contexts"] = {"runtime": {"name": platform.python_implementation(), "version": platform.python_version()}}
    event["breadcrumbs"] = {"values": [_crumb(crumb) for crumb in _relevant(tags.get("execution", ""))]}
    if error is None:
        event["message"] = tags.get("event", "")
        return event
    values = [_described(one) for one in _chain(error)]
    handled = [
        value["mechanism"] for value in (collected.get("exception") or {}).get("values") or () if "mechanism" in value
    ]
    if handled:
        values[0]["mechanism"] = {"type": handled[-1].get("type", "generic"), "handled": handled[-1].get("handled")}
    # The one that was raised stands last.
    event["exception"] = {"values": values[::-1]}
    return event


def _known(name: str, value: Any) -> bool:
    pattern = _ID if name in ("execution", "agent") else _NAME
    return isinstance(value, str) and pattern.fullmatch(value) is not None


def _relevant(execution: str) -> list[_Breadcrumb]:
    """What was logged of the same execution, or of none."""
    return [crumb for crumb in list(_breadcrumbs) if crumb.execution in ("", execution)]


def _crumb(crumb: _Breadcrumb) -> dict[str, Any]:
    return {
        "timestamp": crumb.at.isoformat(),
        "level": crumb.level,
        "category": crumb.logger,
        "message": crumb.name if _NAME.fullmatch(crumb.name) else "",
    }


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An exception and where it comes from, the nearest first; bounded, and each once."""
    waiting, seen = [error], set[int]()
    while waiting and len(seen) < MAX_EXCEPTIONS:
        one = waiting.pop(0)
        if id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        if one.__cause__ is not None:
            waiting.append(one.__cause__)
        elif one.__context__ is not None and not one.__suppress_context__:
            waiting.append(one.__context__)
        if isinstance(one, BaseExceptionGroup):
            waiting += one.exceptions


def _described(error: BaseException) -> dict[str, Any]:
    frames = [_frame(frame, line) for frame, line in walk_tb(error.__traceback__)]
    described: dict[str, Any] = {
        "type": type(error).__name__,
        "module": type(error).__module__,
        "value": _detail(error),
    }
    if frames:
        described["stacktrace"] = {"frames": frames[-MAX_FRAMES:]}
    return described


def _frame(frame: FrameType, line: int) -> dict[str, Any]:
    code = frame.f_code
    module = str(frame.f_globals.get("__name__") or "")
    package = module.partition(".")[0]
    _, found, rest = code.co_filename.rpartition(f"/{package}/")
    return {
        "function": code.co_qualname,
        "module": module,
        # Not where it is installed.
        "filename": f"{package}/{rest}" if found else Path(code.co_filename).name,
        "lineno": line,
        "in_app": package.startswith("tachikoma"),
    }


def _detail(error: BaseException) -> str:
    """What of an exception's text is from a closed list."""
    if isinstance(error, TachikomaError):
        return error.reason
    if isinstance(error, sqlite3.Error):
        return str(getattr(error, "sqlite_errorname", ""))
    if isinstance(error, grpc.RpcError):
        code = error.code() if hasattr(error, "code") else None
        return code.name if isinstance(code, grpc.StatusCode) else ""
    if type(error).__module__.startswith("redis."):
        word = str(error).partition(" ")[0]
        return word if _REDIS_CODE.fullmatch(word) else ""
    if isinstance(error, OSError) and error.errno and type(error).__module__ == "builtins":
        return f"[Errno {error.errno}] {os.strerror(error.errno)}"
    return ""
