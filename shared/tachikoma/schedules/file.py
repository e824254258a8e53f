"""Schedules: commands and the times at which they run, from a file.

schedules:
  - name: nightly-backup
    cron: 30 2 * * *
    timezone: Europe/Berlin
    agentId: db-1
    request: {command: [/usr/local/bin/backup, --all], timeout: 2h}
    missed: run-once
    overlap: skip
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from tachikoma.config.yaml_files import Document, digest, dotted, read_document, read_files
from tachikoma.errors import ConfigurationError, NotFound
from tachikoma.schedules.timing import UTC_NAME, Cron, Every, Timing, zone
from tachikoma.vocabulary.batches import (
    DEFAULT_DEADLINE,
    DEFAULT_PARALLEL,
    MAX_EXPRESSIONS,
    BatchRequest,
    HealthGate,
    StopCause,
)
from tachikoma.vocabulary.clock import duration_ms, milliseconds
from tachikoma.vocabulary.durations import format_duration
from tachikoma.vocabulary.limits import ResourceLimits
from tachikoma.vocabulary.model import Model
from tachikoma.vocabulary.request_rules import MAX_TIMEOUT
from tachikoma.vocabulary.requests import ExecRequest
from tachikoma.vocabulary.schedules import Missed, Overlap
from tachikoma.vocabulary.shares import Share
from tachikoma.vocabulary.types import Duration, Identifier

__all__ = [
    "BatchRules",
    "Schedule",
    "ScheduleFile",
    "ScheduleSet",
    "ScheduledRequest",
]

#: Largest number of schedules.
MAX_SCHEDULES = 1000


class ScheduledRequest(Model):
    """The request of each run: fields of an `ExecRequest`."""

    command: Annotated[tuple[str, ...], Field(min_length=1)]
    work_dir: str = ""
    environment: dict[str, str] = Field(default_factory=dict)
    timeout: Duration | None = None
    user: str = ""
    limits: ResourceLimits | None = None

    @field_validator("command", mode="before")
    @classmethod
    def _not_one_string(cls, value: Any) -> Any:
        if isinstance(value, str):
            raise ValueError("is a list of arguments, not one string")
        return value


class BatchRules(Model):
    """The rules by which the batch of each run proceeds and stops: fields of a `BatchRequest`."""

    parallel: Share = DEFAULT_PARALLEL
    canary: Annotated[int, Field(ge=0, le=MAX_EXPRESSIONS)] = 0
    wave: Share | None = None
    pause: Duration = timedelta(0)
    gate: HealthGate | None = None
    stop_after: Share | None = None
    stop_on: tuple[StopCause, ...] = ()
    deadline: Duration = DEFAULT_DEADLINE


class Schedule(Model):
    """A command, its agent or targets, and the rule of its scheduled times."""

    #: The requester of its runs is `spiffe://<trust domain>/schedule/<name>`.
    name: Identifier
    #: Minute, hour, day of the month, month, day of the week; None if the rule is `every`.
    cron: str | None = None
    #: Time zone of `cron`.
    timezone: str = UTC_NAME
    #: Due at every multiple of this duration, counted from 1970-01-01 UTC; None if the rule is `cron`.
    every: Duration | None = None
    #: The agent; None if each run is a batch on `targets`.
    agent_id: Identifier | None = None
    #: Target expressions, resolved at each run; empty if each run is on `agent_id`.
    targets: Annotated[tuple[str, ...], Field(max_length=MAX_EXPRESSIONS)] = ()
    #: The rules of the batches; only with `targets`.
    batch: BatchRules = Field(default_factory=BatchRules)
    request: ScheduledRequest
    enabled: bool = True
    missed: Missed = Missed.SKIP
    overlap: Overlap = Overlap.ALLOW
    #: A run that could not be requested for this long after its scheduled time is missed.
    lateness: Duration = timedelta(seconds=60)

    @field_validator("targets", mode="before")
    @classmethod
    def _list_of_targets(cls, value: Any) -> Any:
        if isinstance(value, str):
            raise ValueError("is a list of target expressions, not one string")
        return value

    @field_validator("cron")
    @classmethod
    def _expression(cls, value: str | None) -> str | None:
        if value is not None:
            Cron(value)
        return value

    @field_validator("timezone")
    @classmethod
    def _known(cls, value: str) -> str:
        zone(value)
        return value

    @field_validator("every")
    @classmethod
    def _interval(cls, value: timedelta | None) -> timedelta | None:
        if value is not None:
            if not milliseconds(value).is_integer():
                raise ValueError("an interval is a whole number of milliseconds")
            Every(duration_ms(value))
        return value

    @field_validator("lateness")
    @classmethod
    def _bounded(cls, value: timedelta) -> timedelta:
        if not timedelta(seconds=1) <= value <= MAX_TIMEOUT:
            raise ValueError(f"must be 1 second to {MAX_TIMEOUT.days} days")
        return value

    @model_validator(mode="after")
    def _one_rule(self) -> Self:
        if (self.cron is None) == (self.every is None):
            raise ValueError("needs either cron or every")
        if self.every is not None and "timezone" in self.model_fields_set:
            raise ValueError("timezone is for cron; every is counted in UTC")
        if (self.agent_id is None) == (not self.targets):
            raise ValueError("needs either agentId or targets")
        if self.agent_id is not None and "batch" in self.model_fields_set:
            raise ValueError("batch is for targets, not for one agent")
        return self

    @property
    def timing(self) -> Timing:
        """The rule of its scheduled times."""
        if self.every is not None:
            return Every(duration_ms(self.every))
        assert self.cron is not None
        return Cron(self.cron, self.timezone)

    @property
    def when(self) -> str:
        """The rule of its scheduled times, for people."""
        if self.every is not None:
            return f"every {format_duration(self.every)}"
        return f"{self.cron} {self.timezone}"

    def exec_request(self, exec_id: str) -> ExecRequest:
        """Return the request of one of its runs on one agent.

        Raises:
            pydantic.ValidationError: a bound of requests is broken.
        """
        assert self.agent_id is not None
        wanted = self.request
        # With the field names of the file, which the messages about mistakes use.
        return ExecRequest.model_validate(
            {
                "id": exec_id, "agentId": self.agent_id, "command": wanted.command, "workDir": wanted.work_dir,
                "environment": wanted.environment, "timeout": wanted.timeout, "user": wanted.user,
                "limits": wanted.limits,
            }
        )  # fmt: skip

    def batch_request(self, batch_id: str) -> BatchRequest:
        """The request of one of its runs as a batch.

        Raises:
            pydantic.ValidationError: a bound of requests is broken.
        """
        rules = {name: getattr(self.batch, name) for name in BatchRules.model_fields}
        content = {name: getattr(self.request, name) for name in ScheduledRequest.model_fields}
        return BatchRequest.model_validate({"id": batch_id, "targets": self.targets, **content, **rules})

    def check(self) -> None:
        """Raise pydantic.ValidationError if no run could be requested because a bound is broken."""
        if self.targets:
            self.batch_request("check")
        else:
            self.exec_request("check")


class ScheduleFile(Model):
    """The content of a file of schedules."""

    schedules: Annotated[tuple[Schedule, ...], Field(max_length=MAX_SCHEDULES)]


@dataclass(frozen=True, slots=True, eq=False)
class ScheduleSet:
    """All schedules. Immutable: a changed file results in a new set."""

    schedules: dict[str, Schedule]
    #: SHA-256 over the files, in hexadecimal.
    digest: str
    #: Warnings about rules that are valid and probably not intended.
    warnings: tuple[str, ...] = ()

    @classmethod
    def load(cls, path: Path) -> ScheduleSet:
        """Read a file, or all files of a folder that end in .yaml or .yml, but not in .test.yaml.

        Raises:
            ConfigurationError: a file cannot be read or has a mistake; the message names the file, line, column and
                field of each mistake.
        """
        return cls.parse_all(read_files(path, "file of schedules"))

    @classmethod
    def parse(cls, text: str, name: str) -> ScheduleSet:
        """Build a set from the text of a file; `name` is for messages. Raises as `load` does."""
        return cls.parse_all([(name, text)])

    @classmethod
    def parse_all(cls, texts: Sequence[tuple[str, str]]) -> ScheduleSet:
        """Build a set from the names and texts of files. Raises as `load` does."""
        mistakes: list[str] = []
        warnings: list[str] = []
        found: dict[str, tuple[Schedule, str]] = {}
        for name, text in texts:
            try:
                document = read_document(text, name, ScheduleFile)
            except ConfigurationError as error:
                mistakes.append(str(error))
                continue
            for index, schedule in enumerate(document.content.schedules):
                position = document.position(("schedules", index, "name"))
                if schedule.name in found:
                    first = found[schedule.name][1]
                    mistakes.append(f"{position}: name: {schedule.name!r} is used twice, first at {first}")
                found.setdefault(schedule.name, (schedule, position))
                mistakes += _request_mistakes(schedule, document, index)
                if warning := _warning(schedule):
                    warnings.append(f"{position}: {schedule.name}: {warning}")
        if len(found) > MAX_SCHEDULES:
            mistakes.append(f"there are {len(found)} schedules; at most {MAX_SCHEDULES} are allowed")
        if mistakes:
            raise ConfigurationError("\n".join(mistakes))
        schedules = {name: schedule for name, (schedule, _) in sorted(found.items())}
        return cls(schedules, digest(texts), tuple(warnings))

    def get(self, name: str) -> Schedule:
        """Return a schedule by its name.

        Raises:
            NotFound: the file has no schedule of this name.
        """
        schedule = self.schedules.get(name)
        if schedule is None:
            raise NotFound(f"there is no schedule {name[:80]!r}; `tachikoma schedule ls` lists all schedules")
        return schedule


def _request_mistakes(schedule: Schedule, document: Document[ScheduleFile], index: int) -> list[str]:
    """Return the mistakes that would prevent every run."""
    try:
        schedule.check()
    except ValidationError as error:
        mistakes = []
        for item in error.errors(include_url=False, include_context=False, include_input=False):
            location: tuple[str | int, ...] = ("schedules", index)
            if item["loc"] or not schedule.targets:
                location = (*location, "request", *item["loc"])
            problem = item["msg"].removeprefix("Value error, ")
            mistakes.append(f"{document.position(location)}: {dotted(location)}: {problem}")
        return mistakes
    return []


def _warning(schedule: Schedule) -> str:
    """Return a warning about a rule that is probably not intended, or an empty text."""
    timing = schedule.timing
    if isinstance(timing, Cron) and timing.restricts_both_days:
        return "cron names days of the month and of the week: it is due on days that are both, not either"
    return ""
