"""What is told of schedules: how they stand, and what became of their due times."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from tachikoma.vocabulary.model import Model
from tachikoma.vocabulary.states import ExecState
from tachikoma.vocabulary.types import Identifier, Timestamp

__all__ = ["DueOutcome", "Missed", "Overlap", "ScheduleStatus", "ScheduledRun"]


class Missed(StrEnum):
    """What becomes of a due time at which nobody was there."""

    #: It is put on the record, and no more.
    SKIP = "skip"
    #: The last one of them runs as soon as somebody is there, unless one is due just then.
    RUN_ONCE = "run-once"


class Overlap(StrEnum):
    """What becomes of a due time while the run before it has not ended."""

    ALLOW = "allow"
    SKIP = "skip"


class DueOutcome(StrEnum):
    """What became of a due time."""

    #: It is about to be asked for.
    TAKEN = "TAKEN"
    #: It was asked for and accepted: there is an execution.
    RUN = "RUN"
    #: It was asked for and refused: by policy, a limit, or because there is nobody to run it.
    REFUSED = "REFUSED"
    #: Nobody asked for it in time.
    MISSED = "MISSED"
    #: It was not to run: the schedule was paused or switched off, or the run before had not ended.
    SKIPPED = "SKIPPED"


class ScheduledRun(Model):
    """A due time of a schedule, or a run somebody asked for, on the record."""

    #: When it was due, or asked for; of several, the last.
    due: Timestamp
    #: When that was put on the record, by the clock of Redis.
    time: Timestamp
    outcome: DueOutcome
    #: Its execution; empty where there is none.
    id: str = ""
    agent_id: str = ""
    #: Where that stands; None where the ledger does not know it.
    state: ExecState | None = None
    reason: str = ""
    #: How many due times it stands for, and the first of them, where it is not one.
    count: Annotated[int, Field(ge=1)] = 1
    first: Timestamp | None = None
    #: SPIFFE ID of who asked for it beside its due times; else empty.
    requested_by: str = ""


class ScheduleStatus(Model):
    """A schedule, and how it stands."""

    name: Identifier
    #: Its rule: `every 15m`, or cron expression and time zone.
    when: str
    agent_id: Identifier
    #: The argv with secrets taken out.
    command: tuple[str, ...]
    enabled: bool = True
    missed: Missed = Missed.SKIP
    overlap: Overlap = Overlap.ALLOW
    #: Whether it is paused; the SPIFFE ID of who paused it, when and why.
    paused: bool = False
    paused_by: str = ""
    paused_at: Timestamp | None = None
    pause_reason: str = ""
    #: None where it is switched off.
    next_due: Timestamp | None = None
    last: ScheduledRun | None = None
