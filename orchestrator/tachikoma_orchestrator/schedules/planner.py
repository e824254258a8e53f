"""What becomes of a schedule's due times: a pure function of the schedule, of how far it is, and of the time.

Every due time after the last one on record is accounted for, in their order, each by one of

- it runs: it is not too late, or all are and it is the last, where the schedule says that one of them runs;
- it is skipped: the schedule was paused then, is switched off, gone or another one now, or its last run has not ended;
- it is missed.

`docs/decisions/0020` says why.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta

from tachikoma.errors import RecordAltered
from tachikoma.schedules.file import Schedule
from tachikoma.schedules.timing import parse_timing
from tachikoma.vocabulary.model import Model
from tachikoma.vocabulary.schedules import DueOutcome, Missed, Overlap, ScheduledRun

__all__ = ["Entry", "Plan", "State", "account", "plan"]

#: Due times that are accounted for one by one, the newest; those before them are one entry with a count.
MAX_SINGLE = 100
#: How far back due times are counted; what lies before that is let go.
LOOKBACK_MS = 366 * 24 * 3600 * 1000
#: The latest time that can be written down.
MAX_MS = 253_402_300_799_999


@dataclass(frozen=True, slots=True)
class State:
    """How far a schedule is, as Redis has it."""

    #: Changes with every change of it.
    version: int = 0
    #: Up to then due times are accounted for; None where nobody ever looked at it.
    cursor_ms: int | None = None
    #: The rule that due times since then follow; empty for none.
    rule: str = ""
    #: The last pause: since when, until when, by whom, why.
    paused_ms: int | None = None
    resumed_ms: int | None = None
    paused_by: str = ""
    pause_reason: str = ""
    #: The last execution.
    last_exec: str = ""
    #: Runs that are about to be asked for, by their id in the schedule.
    taken: Mapping[str, ScheduledRun] = field(default_factory=dict)

    @classmethod
    def parse(cls, name: str, fields: Mapping[bytes, bytes]) -> State:
        """Read what Redis has of a schedule.

        Raises:
            RecordAltered: it is none that this program wrote.
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
                f"how far the schedule {name} is cannot be read: {str(error)[:200]}", metadata={"schedule": name}
            ) from None
        return state

    @property
    def paused(self) -> bool:
        """Whether it is paused now."""
        return self.paused_ms is not None and self.resumed_ms is None

    def paused_at(self, ms: int) -> bool:
        """Whether it was paused at a time, as far as the last pause tells."""
        return self.paused_ms is not None and self.paused_ms <= ms < (self.resumed_ms or MAX_MS)


def _time(text: str | None) -> int | None:
    if text is None:
        return None
    value = int(text)
    if not 0 <= value <= MAX_MS:
        raise ValueError(f"{text} is no time")
    return value


class Entry(Model):
    """What is put on the record of a due time."""

    due_ms: int
    outcome: DueOutcome
    reason: str = ""
    count: int = 1
    first_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """The next step of accounting. A run is always its last entry."""

    entries: tuple[Entry, ...]
    cursor_ms: int
    rule: str

    @property
    def runs(self) -> bool:
        """Whether its last entry runs; there may then be more after it."""
        return bool(self.entries) and self.entries[-1].outcome is DueOutcome.TAKEN


def plan(schedule: Schedule | None, state: State, now_ms: int, busy: str = "") -> Plan | None:
    """What is to be put on the record next; None where nothing is.

    Args:
        schedule: as it is now; None where it is gone.
        state: how far it is.
        now_ms: by the clock of Redis.
        busy: the execution of its last run, where that has not ended.
    """
    rule = schedule.timing.text if schedule is not None and schedule.enabled else ""
    if state.cursor_ms is None:
        # It begins when somebody first sees it.
        return Plan((), now_ms, rule)
    begin = max(state.cursor_ms, now_ms - LOOKBACK_MS)
    due: list[int] = []
    entries: list[Entry] = []
    if state.rule and begin < now_ms:
        # Up to now it followed the rule on record, whatever the file says by now.
        timing = parse_timing(state.rule)
        due, total = timing.between(begin, now_ms, MAX_SINGLE)
        if total > len(due):
            last = timing.between(begin, due[0] - 1, 1)[0][0]
            older = account(schedule, state, last, now_ms, busy, last=False)
            if older.outcome is DueOutcome.TAKEN:
                older = Entry(due_ms=last, outcome=DueOutcome.MISSED, reason=f"only {MAX_SINGLE} run at once")
            count = {"count": total - len(due), "first_ms": next(timing.after(begin))}
            entries.append(older.model_copy(update=count))
    for at in due:
        entry = account(schedule, state, at, now_ms, busy, last=at == due[-1])
        entries.append(entry)
        if entry.outcome is DueOutcome.TAKEN:
            return Plan(tuple(entries), at, state.rule)
    if rule != state.rule:
        return Plan(tuple(entries), max(state.cursor_ms, now_ms), rule)
    return Plan(tuple(entries), due[-1], rule) if entries else None


def account(schedule: Schedule | None, state: State, due_ms: int, now_ms: int, busy: str, *, last: bool) -> Entry:
    """What becomes of one due time; `last` is whether there is none after it by now."""

    def entry(outcome: DueOutcome, reason: str = "") -> Entry:
        return Entry(due_ms=due_ms, outcome=outcome, reason=reason)

    if state.paused_at(due_ms):
        return entry(DueOutcome.SKIPPED, f"paused: {state.pause_reason}")
    if schedule is None:
        return entry(DueOutcome.SKIPPED, "it is not among the schedules any more")
    if not schedule.enabled:
        return entry(DueOutcome.SKIPPED, "it is switched off")
    if not schedule.timing.between(due_ms - 1, due_ms, 1)[1]:
        # Also what only Redis says was due.
        return entry(DueOutcome.SKIPPED, "it is not due by the schedule as it is now")
    late = timedelta(milliseconds=now_ms - due_ms) > schedule.lateness
    if late and not (last and schedule.missed is Missed.RUN_ONCE):
        return entry(DueOutcome.MISSED, "nobody asked for it in time")
    if busy and schedule.overlap is Overlap.SKIP:
        return entry(DueOutcome.SKIPPED, f"the run before, {busy}, has not ended")
    return entry(DueOutcome.TAKEN)
