"""The decision on a schedule's scheduled times: a pure function of the schedule, its recorded progress and the time.

Every scheduled time after the last recorded one is decided once, in order. Each has one of these outcomes:

- run: the time is not too long ago. If all times are, the last one runs if `missed` of the schedule is `run-once`;
- skipped: the schedule was paused at that time, is disabled, removed or changed, or its last run has not finished;
- missed: the time is too long ago.

`docs/decisions/0020` gives the reasons.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta

from tachikoma.errors import RecordAltered
from tachikoma.schedules.file import Schedule
from tachikoma.schedules.timing import Timing, parse_timing
from tachikoma.vocabulary.clock import LAST_MS, duration_ms
from tachikoma.vocabulary.model import Model
from tachikoma.vocabulary.schedules import DueOutcome, Missed, Overlap, ScheduledRun

__all__ = ["Plan", "PlannedRun", "ScheduleState", "decide", "plan"]

#: Scheduled times that are decided one by one, the newest; all older ones become one entry with a count.
MAX_SINGLE = 100
#: Scheduled times older than this are not counted.
LOOKBACK_MS = duration_ms(timedelta(days=366))


@dataclass(frozen=True, slots=True)
class ScheduleState:
    """The recorded progress of a schedule."""

    #: Changes with every change of the record; 0 if there is no record.
    version: int = 0
    #: Scheduled times up to this one are decided; None if the schedule was never checked.
    cursor_ms: int | None = None
    #: The rule that is active since then; empty if the schedule has no scheduled times.
    rule: str = ""
    #: The last pause: its beginning and end, the operator who paused the schedule, and the reason. The beginning is
    #: None if there was no pause. The end is None if there was none, or the pause has not ended.
    paused_ms: int | None = None
    resumed_ms: int | None = None
    paused_by: str = ""
    pause_reason: str = ""
    #: Id of the last execution; empty if there was none.
    last_exec: str = ""
    #: Runs that are about to be requested, by their id in the schedule.
    taken: Mapping[str, ScheduledRun] = field(default_factory=dict)

    @classmethod
    def parse(cls, name: str, fields: Mapping[bytes, bytes]) -> ScheduleState:
        """Read the record of a schedule.

        Args:
            name: the schedule's name, for messages.
            fields: the hash in Redis.

        Raises:
            RecordAltered: the record was not written by this program.
        """
        try:
            texts = {key.decode(): value.decode() for key, value in fields.items()}
            state = cls(
                version=int(texts.get("version", 0)),
                cursor_ms=_time(texts.get("cursor_ms")),
                rule=texts.get("rule", ""),
                paused_ms=_time(texts.get("paused_ms")),
                resumed_ms=_time(texts.get("resumed_ms")),
                paused_by=texts.get("paused_by", ""),
                pause_reason=texts.get("pause_reason", ""),
                last_exec=texts.get("last_exec", ""),
                taken={
                    key.removeprefix("taken:"): ScheduledRun.model_validate_json(value)
                    for key, value in texts.items()
                    if key.startswith("taken:")
                },
            )
            if state.rule:
                parse_timing(state.rule)
        except ValueError as error:
            raise RecordAltered(
                f"the record of the schedule {name} in Redis cannot be read: {str(error)[:200]}",
                metadata={"schedule": name},
            ) from None
        return state

    @property
    def paused(self) -> bool:
        """True if the schedule is paused now."""
        return self.paused_ms is not None and self.resumed_ms is None

    @property
    def changed_ms(self) -> int:
        """Time of the last pause or resumption; 0 if there was none."""
        return max(self.paused_ms or 0, self.resumed_ms or 0)

    def paused_at(self, ms: int) -> bool:
        """Return True if the last pause contains a time."""
        return self.paused_ms is not None and self.paused_ms <= ms < (self.resumed_ms or LAST_MS)


def _time(text: str | None) -> int | None:
    if text is None:
        return None
    value = int(text)
    if not 0 <= value <= LAST_MS:
        raise ValueError(f"{text} is not a time")
    return value


class PlannedRun(Model):
    """The decision on a scheduled time, or on several that are recorded as one."""

    #: The scheduled time; of several, the last.
    due_ms: int
    outcome: DueOutcome
    reason: str = ""
    #: The number of scheduled times.
    count: int = 1
    #: The first of several; None for a single one.
    first_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """The next change of a schedule's record. A run is always the last of its entries."""

    entries: tuple[PlannedRun, ...]
    #: The new `cursor_ms` and `rule` of the record.
    cursor_ms: int
    rule: str

    @property
    def runs(self) -> bool:
        """True if the last entry runs; more scheduled times may then follow it."""
        return bool(self.entries) and self.entries[-1].outcome is DueOutcome.TAKEN


def plan(schedule: Schedule | None, state: ScheduleState, now_ms: int, busy: str = "") -> Plan | None:
    """Decide on the scheduled times since the last recorded one, up to the first that runs.

    Args:
        schedule: the schedule as it is now; None if it was removed.
        state: its recorded progress.
        now_ms: the time by the clock of Redis.
        busy: id of the last execution if that has not finished; else empty.

    Returns:
        The next change of the record, or None if there is nothing to change.
    """
    rule = schedule.timing.text if schedule is not None and schedule.enabled else ""
    if state.cursor_ms is None:
        # A new schedule counts from the first look at it.
        return Plan((), now_ms, rule)
    entries: list[PlannedRun] = []
    begin_ms = max(state.cursor_ms, now_ms - LOOKBACK_MS)
    if state.rule and begin_ms < now_ms:
        # Until now the recorded rule was active, also if the file has another one by now.
        timing = parse_timing(state.rule)
        due, total = timing.between(begin_ms, now_ms, MAX_SINGLE)
        if total > len(due):
            entries.append(_summary(schedule, state, timing, begin_ms, due[0], total - len(due), now_ms, busy))
        for at in due:
            entries.append(decide(schedule, state, at, now_ms, busy, last=at == due[-1]))
            if entries[-1].outcome is DueOutcome.TAKEN:
                return Plan(tuple(entries), at, state.rule)
    if rule != state.rule:
        return Plan(tuple(entries), max(state.cursor_ms, now_ms), rule)
    return Plan(tuple(entries), entries[-1].due_ms, rule) if entries else None


def _summary(
    schedule: Schedule | None, state: ScheduleState, timing: Timing, begin_ms: int, until_ms: int, count: int,
    now_ms: int, busy: str,
) -> PlannedRun:  # fmt: skip
    """Decide on all scheduled times after `begin_ms` and before `until_ms` as one entry."""
    last_ms = timing.between(begin_ms, until_ms - 1, 1)[0][0]
    entry = decide(schedule, state, last_ms, now_ms, busy, last=False)
    if entry.outcome is DueOutcome.TAKEN:
        entry = PlannedRun(due_ms=last_ms, outcome=DueOutcome.MISSED, reason=f"at most {MAX_SINGLE} run at once")
    return entry.model_copy(update={"count": count, "first_ms": next(timing.after(begin_ms))})


def decide(
    schedule: Schedule | None, state: ScheduleState, due_ms: int, now_ms: int, busy: str, *, last: bool
) -> PlannedRun:
    """Decide on one scheduled time; arguments as in `plan`.

    Args:
        due_ms: the scheduled time.
        last: True if no other scheduled time has come since.
    """

    def decision(outcome: DueOutcome, reason: str = "") -> PlannedRun:
        return PlannedRun(due_ms=due_ms, outcome=outcome, reason=reason)

    if state.paused_at(due_ms):
        return decision(DueOutcome.SKIPPED, f"the schedule was paused: {state.pause_reason}")
    if schedule is None:
        return decision(DueOutcome.SKIPPED, "the schedule was removed")
    if not schedule.enabled:
        return decision(DueOutcome.SKIPPED, "the schedule is disabled")
    if not schedule.timing.between(due_ms - 1, due_ms, 1)[1]:
        # The schedule was changed, or an attacker wrote the rule into Redis.
        return decision(DueOutcome.SKIPPED, "the schedule as it is now is not due at this time")
    late = now_ms - due_ms > duration_ms(schedule.lateness)
    if late and not (last and schedule.missed is Missed.RUN_ONCE):
        return decision(DueOutcome.MISSED, "no submitter was running at the scheduled time")
    if busy and schedule.overlap is Overlap.SKIP:
        return decision(DueOutcome.SKIPPED, f"the previous run {busy} has not finished")
    return decision(DueOutcome.TAKEN)
