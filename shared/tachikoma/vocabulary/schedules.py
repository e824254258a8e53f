"""Schedules as clients see them: their state, and the outcome of each scheduled time."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field

from tachikoma.vocabulary.batches import BatchState
from tachikoma.vocabulary.model import OMITTED_IF_NONE, Model
from tachikoma.vocabulary.states import ExecState
from tachikoma.vocabulary.types import Identifier, Timestamp

__all__ = ["DueOutcome", "Missed", "Overlap", "ScheduleStatus", "ScheduledRun"]


class Missed(StrEnum):
    """The rule for scheduled times at which no submitter was running."""

    #: They are recorded as missed.
    SKIP = "skip"
    #: The last of them runs as soon as a submitter is running, unless another scheduled time has just come.
    RUN_ONCE = "run-once"


class Overlap(StrEnum):
    """The rule for a scheduled time while the previous run has not finished."""

    #: Both run.
    ALLOW = "allow"
    #: The scheduled time is skipped.
    SKIP = "skip"


class DueOutcome(StrEnum):
    """The outcome of a scheduled time."""

    #: The run is about to be requested.
    TAKEN = "TAKEN"
    #: The run was requested and accepted: an execution or a batch exists.
    RUN = "RUN"
    #: The run was requested and refused: by policy, by a limit, or because the agent is unavailable.
    REFUSED = "REFUSED"
    #: The run was not requested in time.
    MISSED = "MISSED"
    #: No run was requested: the schedule was paused or disabled, or the previous run had not finished.
    SKIPPED = "SKIPPED"


class ScheduledRun(Model):
    """The record of a scheduled time, or of a run that an operator requested."""

    #: The scheduled time, or the time of the operator's request. If the record has several scheduled times, the last.
    due: Timestamp
    #: Time at which the outcome was recorded, by the clock of Redis.
    time: Timestamp
    #: The outcome.
    outcome: DueOutcome
    #: Id of the execution, or of the batch; empty if there is none.
    id: str = ""
    #: The agent; empty for a batch.
    agent_id: str = ""
    #: State of the execution; None if the ledger has no record of it.
    state: ExecState | None = None
    #: State of the batch; None if the ledger has no record of it.
    batch_state: Annotated[BatchState | None, OMITTED_IF_NONE] = None
    #: Why it has this outcome, for people; empty if there is nothing to explain.
    reason: str = ""
    #: Number of scheduled times in this record.
    count: Annotated[int, Field(ge=1)] = 1
    #: The first of several scheduled times; None if the record has only one.
    first: Timestamp | None = None
    #: SPIFFE ID of the operator who requested the run; empty for a scheduled time.
    requested_by: str = ""

    @property
    def is_batch(self) -> bool:
        """True if the run is a batch."""
        return bool(self.id) and not self.agent_id


class ScheduleStatus(Model):
    """A schedule with its state."""

    #: Name of the schedule.
    name: Identifier
    #: Its rule, for people: `every 15m`, or cron expression and time zone.
    when: str
    #: The agent; empty if each run is a batch.
    agent_id: Identifier | Literal[""] = ""
    #: Target expressions of the batches; empty if each run is on one agent.
    targets: tuple[str, ...] = ()
    #: The argv with secrets masked.
    command: tuple[str, ...]
    #: False if its file disables it.
    enabled: bool = True
    #: The rule for scheduled times at which no submitter was running.
    missed: Missed = Missed.SKIP
    #: The rule for a scheduled time while the previous run has not finished.
    overlap: Overlap = Overlap.ALLOW
    #: True if an operator paused it.
    paused: bool = False
    #: SPIFFE ID of the operator who paused it; empty if it is not paused.
    paused_by: str = ""
    #: Time of the pause; None if it is not paused.
    paused_at: Timestamp | None = None
    #: The operator's reason; empty if it is not paused.
    pause_reason: str = ""
    #: The next scheduled time; None if the schedule is disabled.
    next_due: Timestamp | None = None
    #: The latest recorded run; None if there is none.
    last: ScheduledRun | None = None
