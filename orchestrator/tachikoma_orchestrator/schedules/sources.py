"""The sources of schedules: YAML files, or Celery's own `beat_schedule` of an application written in Python.

An entry of `beat_schedule` is a schedule if its task is `tachikoma.schedule`:

    app.conf.timezone = "Europe/Berlin"
    app.conf.beat_schedule = {
        "nightly-backup": {
            "task": "tachikoma.schedule",
            "schedule": crontab(hour=2, minute=30),
            "kwargs": {"agent_id": "db-1", "request": {"command": ["/usr/local/bin/backup"]}, "missed": "run-once"},
        },
    }
"""

from __future__ import annotations

import hashlib
import importlib
import json
import re
import sys
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Protocol

import structlog
from celery import Celery
from celery.schedules import crontab
from celery.schedules import schedule as interval
from pydantic import ValidationError

from tachikoma.errors import ConfigurationError
from tachikoma.schedules.file import MAX_SCHEDULES, Schedule, ScheduleSet
from tachikoma.schedules.watch import ScheduleWatch
from tachikoma.vocabulary.model import describe_validation_error

__all__ = ["ENTRY_TASK", "ActiveSchedules", "from_beat_schedule", "log_reload", "open_schedules"]

log = structlog.get_logger(__name__)

#: The task of an entry of `beat_schedule` that is a schedule. It is only a name: beat never sends such a task.
ENTRY_TASK = "tachikoma.schedule"
_MODULE = re.compile(r"([A-Za-z_][\w.]*):([A-Za-z_]\w*)")


class ActiveSchedules(Protocol):
    """The active schedules of a process."""

    current: ScheduleSet
    #: Time since which they are active.
    since: datetime
    #: The mistake in a newer version, which keeps the previous one active; empty for none.
    error: str

    def reload(self) -> bool:
        """Check for a newer version. Returns True if `current` or `error` changed."""


class _ModuleSchedules:
    """Schedules of a Python module: they change only with a restart of the process."""

    def __init__(self, schedules: ScheduleSet) -> None:
        self.current = schedules
        self.since = datetime.now(UTC)
        self.error = ""

    def reload(self) -> bool:
        return False


def log_reload(schedules: ActiveSchedules) -> None:
    """Log the result of a `reload` that returned True."""
    digest = schedules.current.digest[:12]
    if schedules.error:
        log.error("schedules.previous_retained", reason=schedules.error, active=digest)
    else:
        log.info("schedules.changed", digest=digest)


def open_schedules(place: str) -> ActiveSchedules:
    """Load schedules from a file, a folder of files, or a Celery application given as `module:app`.

    Raises:
        ConfigurationError: they cannot be read or have mistakes; the message names the place of each mistake.
    """
    match = _MODULE.fullmatch(place)
    if match is None or Path(place).exists():
        return ScheduleWatch(Path(place))
    module, name = match.groups()
    # `celery -A` finds modules in the current folder too.
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        app = getattr(importlib.import_module(module), name)
    # The module is the user's program and may raise anything.
    except (Exception, SystemExit) as error:
        raise ConfigurationError(f"cannot import schedules from {place}: {error!r}") from error
    if not isinstance(app, Celery):
        raise ConfigurationError(f"{place} is not a Celery application")
    return _ModuleSchedules(from_beat_schedule(app, place))


def from_beat_schedule(app: Celery, place: str) -> ScheduleSet:
    """Read the schedules among an application's `beat_schedule`; other entries are for the application's own beat.

    Args:
        app: the application.
        place: its place as `module:app`, for messages.

    Raises:
        ConfigurationError: an entry has a mistake, or no entry is a schedule.
    """
    entries: Mapping[str, Any] = app.conf.beat_schedule or {}
    schedules: dict[str, Schedule] = {}
    mistakes: list[str] = []
    for name, entry in entries.items():
        task = str(entry.get("task"))
        if task != ENTRY_TASK:
            if task.startswith("tachikoma."):
                mistakes.append(f"{place}: {name}: there is no task {task}; it is {ENTRY_TASK}")
            continue
        try:
            schedules[name] = _schedule(name, entry, app)
        except ValidationError as error:
            mistakes.append(f"{place}: {name}: {describe_validation_error(error)}")
        except ValueError as error:
            mistakes.append(f"{place}: {name}: {error}")
    if not schedules and not mistakes:
        mistakes.append(f"{place}: no entry of its beat_schedule has the task {ENTRY_TASK}")
    if len(schedules) > MAX_SCHEDULES:
        mistakes.append(f"{place}: there are {len(schedules)} schedules; at most {MAX_SCHEDULES} are allowed")
    if mistakes:
        raise ConfigurationError("\n".join(mistakes))
    canonical = json.dumps([schedule.to_dict() for _, schedule in sorted(schedules.items())], sort_keys=True)
    return ScheduleSet(dict(sorted(schedules.items())), hashlib.sha256(canonical.encode()).hexdigest())


def _schedule(name: str, entry: Mapping[str, Any], app: Celery) -> Schedule:
    unknown = entry.keys() - {"task", "schedule", "kwargs"}
    if unknown:
        raise ValueError(f"{', '.join(sorted(unknown))} cannot be given; the request is given in kwargs")
    kwargs = dict(entry.get("kwargs") or {})
    taken = kwargs.keys() & {"name", "cron", "timezone", "every"}
    if taken:
        raise ValueError(f"kwargs: {', '.join(sorted(taken))} is given by the entry itself")
    schedule = Schedule(name=name, **_when(entry.get("schedule"), app), **kwargs)
    schedule.check()
    return schedule


def _when(rule: Any, app: Celery) -> dict[str, Any]:
    kind = type(rule)
    if issubclass(kind, crontab):
        fields = (
            (rule.minute, 60), (rule.hour, 24), (rule.day_of_month, 31), (rule.month_of_year, 12),
            (rule.day_of_week, 7),
        )  # fmt: skip
        texts = ("*" if len(numbers) == size else ",".join(map(str, sorted(numbers))) for numbers, size in fields)
        return {"cron": " ".join(texts), "timezone": str(app.conf.timezone or "UTC")}
    if issubclass(kind, interval):
        rule = rule.run_every
    if isinstance(rule, (int, float)) and not isinstance(rule, bool):
        rule = timedelta(seconds=rule)
    if isinstance(rule, timedelta):
        return {"every": rule}
    raise ValueError(f"its schedule is a crontab, a timedelta or a number of seconds, not {kind.__name__}")
