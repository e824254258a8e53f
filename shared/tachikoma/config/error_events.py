"""The content of error reports.

An event is built from parts that cannot contain a secret: names in source code, line numbers, ids. Of an exception's
text only the part from a closed list is taken (`_detail`), since such texts quote commands, URLs and keys. The log
contains the texts, and the ids lead to it.
"""

from __future__ import annotations

import os
import platform
import re
import sqlite3
import time
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from traceback import walk_tb
from types import FrameType
from typing import Any

import grpc

from tachikoma.config.logs import get_logger
from tachikoma.errors import TachikomaError
from tachikoma.vocabulary.identifiers import ID_PATTERN

__all__ = ["Breadcrumb", "Budget", "before_send", "breadcrumbs", "budget", "execution", "process_tags"]

log = get_logger(__name__)

#: Largest number of events of one process in a minute, so that an error in every request does not use up Sentry's
#: quota.
EVENTS_PER_MINUTE = 60
#: Largest number of log lines that are remembered; an event contains those of its own execution.
MAX_BREADCRUMBS = 100
#: Largest number of exceptions of one event: the raised one, its causes, the members of a group.
MAX_EXCEPTIONS = 10
#: Largest number of calls of one exception, the innermost ones.
MAX_FRAMES = 50

#: Parts of Sentry's own event that are copied.
_COPIED = ("event_id", "timestamp", "platform", "level", "release", "environment", "server_name", "sdk")
#: First words of Redis's error replies.
_REDIS_CODE = re.compile(
    "BUSY|BUSYGROUP|CLUSTERDOWN|ERR|EXECABORT|LOADING|MASTERDOWN|MISCONF|MOVED|NOAUTH|NOGROUP|NOPERM|NOREPLICAS"
    "|NOSCRIPT|OOM|READONLY|TRYAGAIN|UNKILLABLE|WRONGPASS|WRONGTYPE"
)
#: Form of names in source code and of ids; no other text becomes a tag.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
_ID = re.compile(ID_PATTERN)
#: Attribute of an exception that was reported: it may be logged first and then end the process.
_REPORTED = "_tachikoma_reported"

#: Id of the execution that the current task or thread works on; empty for none.
execution: ContextVar[str] = ContextVar("execution", default="")
#: Tags of every event of this process.
process_tags: dict[str, str] = {}


@dataclass(frozen=True, slots=True)
class Breadcrumb:
    """A log line, without its text."""

    #: Time of the line.
    at: datetime
    #: Its level, as Sentry names it.
    level: str
    #: Its logger.
    logger: str
    #: Its event, such as `redis.subscribed`.
    name: str
    #: Id of the execution that it concerns; empty if it concerns none.
    execution: str


#: The latest log lines of this process.
breadcrumbs: deque[Breadcrumb] = deque(maxlen=MAX_BREADCRUMBS)


class Budget:
    """The number of events that may still be sent in the current minute."""

    def __init__(self) -> None:
        self._until = 0.0
        self._left = 0

    def spent(self) -> bool:
        """Return True if no event may be sent before the minute ends."""
        return self._left < 0 and time.monotonic() < self._until

    def take(self) -> bool:
        """Count one event, and return True if it may be sent."""
        now = time.monotonic()
        if now >= self._until:
            self._until, self._left = now + 60, EVENTS_PER_MINUTE
        self._left -= 1
        if self._left == -1:
            log.warning("errors.limited", per_minute=EVENTS_PER_MINUTE)
        return self._left >= 0


#: Of this process.
budget = Budget()


def before_send(collected: Any, hint: dict[str, Any]) -> Any:
    """Return the event to send in place of the one that Sentry collected, or None to send nothing.

    Args:
        collected: the event that Sentry collected.
        hint: the exception of the event, as Sentry passes it.
    """
    error: BaseException | None = (hint.get("exc_info") or (None, None, None))[1]
    if (error is not None and not _to_be_reported(error)) or not budget.take():
        return None
    tags = _tags_of(collected)
    event = {name: collected[name] for name in _COPIED if name in collected}
    event["tags"] = tags
    event["contexts"] = {"runtime": {"name": platform.python_implementation(), "version": platform.python_version()}}
    event["breadcrumbs"] = {"values": [_crumb(crumb) for crumb in _relevant(tags.get("execution", ""))]}
    if error is None:
        event["message"] = tags.get("event", "")
    else:
        event["exception"] = {"values": _exceptions(error, collected)}
    return event


def _to_be_reported(error: BaseException) -> bool:
    """Return True for an exception that was not reported before. Ctrl-C and exits are no errors."""
    if not isinstance(error, Exception) or getattr(error, _REPORTED, False):
        return False
    # A class that takes no attributes may be reported twice.
    with suppress(AttributeError):
        setattr(error, _REPORTED, True)
    return True


def _tags_of(collected: Any) -> dict[str, str]:
    given = collected.get("tags") or {}
    found = {"execution": execution.get(), **process_tags}
    found |= {name: given[name] for name in ("event", "execution", "agent", "celery_task_id") if given.get(name)}
    return {name: value for name, value in found.items() if _is_name(name, value)}


def _exceptions(error: BaseException, collected: Any) -> list[dict[str, Any]]:
    """Describe an exception and its causes; the raised exception is the last."""
    values = [_described(item) for item in _chain(error)]
    mechanisms = [
        value["mechanism"] for value in (collected.get("exception") or {}).get("values") or () if "mechanism" in value
    ]
    if mechanisms:
        last = mechanisms[-1]
        values[0]["mechanism"] = {"type": last.get("type", "generic"), "handled": last.get("handled")}
    return values[::-1]


def _is_name(name: str, value: Any) -> bool:
    pattern = _ID if name in ("execution", "agent") else _NAME
    return isinstance(value, str) and pattern.fullmatch(value) is not None


def _relevant(exec_id: str) -> list[Breadcrumb]:
    """Return the log lines of an execution, and those of none."""
    return [crumb for crumb in list(breadcrumbs) if crumb.execution in ("", exec_id)]


def _crumb(crumb: Breadcrumb) -> dict[str, Any]:
    return {
        "timestamp": crumb.at.isoformat(),
        "level": crumb.level,
        "category": crumb.logger,
        "message": crumb.name if _NAME.fullmatch(crumb.name) else "",
    }


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an exception and its causes, the nearest first: at most MAX_EXCEPTIONS, each once."""
    waiting, seen = [error], set[int]()
    while waiting and len(seen) < MAX_EXCEPTIONS:
        item = waiting.pop(0)
        if id(item) in seen:
            continue
        seen.add(id(item))
        yield item
        if item.__cause__ is not None:
            waiting.append(item.__cause__)
        elif item.__context__ is not None and not item.__suppress_context__:
            waiting.append(item.__context__)
        if isinstance(item, BaseExceptionGroup):
            waiting += item.exceptions


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
        # Without the folder of the installation.
        "filename": f"{package}/{rest}" if found else Path(code.co_filename).name,
        "lineno": line,
        "in_app": package.startswith("tachikoma"),
    }


def _detail(error: BaseException) -> str:
    """Return the part of an exception's text that comes from a closed list."""
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
