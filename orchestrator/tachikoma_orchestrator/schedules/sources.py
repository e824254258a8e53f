"""Where schedules come from: YAML files, or Celery's own `beat_schedule` of an application written in Python.

An entry of `beat_schedule` is a schedule of ours where its task is `tachikoma.schedule`:

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

from celery import Celery
from celery.schedules import crontab
from celery.schedules import schedule as interval
from pydantic import ValidationError

from tachikoma.errors import ConfigurationError
from tachikoma.schedules.file import MAX_SCHEDULES, Schedule, ScheduleSet, ScheduleWatch
from tachikoma.vocabulary.model import describe_validation_error

__all__ = ["ENTRY_TASK", "SchedulesInForce", "from_beat_schedule", "open_schedules"]

#: The task of an entry of `beat_schedule` that is one of ours. It is only a name: beat sends no such task.
ENTRY_TASK = "tachikoma.schedule"
_MODULE = re.compile(r"([A-Za-z_][\w.]*):([A-Za-z_]\w*)")


class SchedulesInForce(Protocol):
    """The schedules in force, and what is wrong with newer ones."""

    current: ScheduleSet
    since: datetime
    error: str

    def reload(self) -> bool:
        """Look whether there are newer ones. Returns whether something changed."""


class _Fixed:
    """Schedules of a Python module: they change when the process is started again."""

    def __init__(self, schedules: ScheduleSet) -> None:
        self.current = schedules
        self.since = datetime.now(UTC)
        self.error = ""

    def reload(self) -> bool:
        return False


def open_schedules(place: str) -> SchedulesInForce:
    """The schedules at a place: a file, a folder of files, or `module:app`.

    Raises:
        ConfigurationError: they cannot be read, or are wrong; each mistake is named with its place.
    """
    match = _MODULE.fullmatch(place)
    if match is None or Path(place).exists():
        return ScheduleWatch(Path(place))
    module, name = match.groups()
    # As `celery -A` does it.
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        app = getattr(importlib.import_module(module), name)
    # It is somebody else's program; whatever it raises, schedules cannot be had from it.
    except (Exception, SystemExit) as error:
        raise ConfigurationError(f"cannot import schedules from {place}: {error!r}") from error
    if not isinstance(app, Celery):
        raise ConfigurationError(f"{place} is no Celery application")
    return _Fixed(from_beat_schedule(app, place))


def from_beat_schedule(app: Celery, place: str) -> ScheduleSet:
    """The entries of an application's `beat_schedule` that are ours; those of other tasks are for the
    application's own beat.

    Raises:
        ConfigurationError: one of them is wrong, or there are none.
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
        mistakes.append(f"{place}: there are {len(schedules)} schedules; at most {MAX_SCHEDULES} are taken")
    if mistakes:
        raise ConfigurationError("\n".join(mistakes))
    canonical = json.dumps([schedule.to_dict() for _, schedule in sorted(schedules.items())], sort_keys=True)
    return ScheduleSet(dict(sorted(schedules.items())), hashlib.sha256(canonical.encode()).hexdigest())


def _schedule(name: str, entry: Mapping[str, Any], app: Celery) -> Schedule:
    unknown = entry.keys() - {"task", "schedule", "kwargs"}
    if unknown:
        raise ValueError(f"{', '.join(sorted(unknown))} cannot be given; what is to run stands in kwargs")
    kwargs = dict(entry.get("kwargs") or {})
    taken = kwargs.keys() & {"name", "cron", "timezone", "every"}
    if taken:
        raise ValueError(f"kwargs: {', '.join(sorted(taken))} is said by the entry itself")
    made = Schedule(name=name, **_when(entry.get("schedule"), app), **kwargs)
    made.exec_request("check")
    return made


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
