"""Rules of scheduled times: fixed intervals, or a cron expression in a time zone.

Scheduled times are a pure function of the rule, in milliseconds since the epoch. Every process computes the same ones
whenever it does, and nothing is stored between two of them. Intervals are counted from the epoch.

A cron expression has Celery's meaning: a day must match the day of the month, the month *and* the day of the week.
Rules for clock changes:

- a local time that is left out is due when it would have come without the change (02:30 becomes 03:30);
- a local time that comes twice is due the first time; an expression for every hour is due both times.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from calendar import monthrange
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from functools import lru_cache
from itertools import product
from typing import Protocol
from zoneinfo import ZoneInfo

from tachikoma.vocabulary.clock import LAST_MS, duration_ms, from_ms

__all__ = ["UTC_NAME", "Cron", "Every", "Timing", "parse_timing"]

UTC_NAME = "UTC"
#: Shortest and longest interval.
MIN_EVERY_MS = 100
MAX_EVERY_MS = duration_ms(timedelta(days=366))
#: Longest cron expression, in characters.
MAX_CRON = 200
#: Days that are searched for the next scheduled time. The rarest date, 29 February on a given day of the week, comes
#: again after at most 40 years.
HORIZON_DAYS = 41 * 366

_EPOCH = date(1970, 1, 1)
_DAY = timedelta(days=1)
_DAY_MS = duration_ms(_DAY)
#: Latest scheduled time of any rule: three days later must still be a date.
_END_MS = LAST_MS - 3 * _DAY_MS
_MINUTE_MS = duration_ms(timedelta(minutes=1))
_MONTHS = (
    "january", "february", "march", "april", "may", "june",
    "july", "august", "september", "october", "november", "december",
)  # fmt: skip
#: Sunday is 0, and also 7 as in crontab(5).
_WEEKDAYS = ("sunday", "monday", "tuesday", "wednesday", "thursday", "friday", "saturday")
#: Fewest letters of a name.
_NAME_LETTERS = 3
_PART = re.compile(r"(?:(\*)|([0-9]{1,9}|[a-z]+)(?:-([0-9]{1,9}|[a-z]+))?)(?:/([0-9]{1,9}))?")
#: Words for expressions, as in crontab(5).
_NICKNAMES = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
#: Signs of other cron programs that have no meaning here, and what to write instead.
_FOREIGN = (
    (
        re.compile(r"l|l-[0-9]+|lw", re.IGNORECASE),
        "the last day of a month cannot be named; write 28, which each month has",
    ),
    (
        re.compile(r"[0-9a-z]+(?:l|#[0-9])", re.IGNORECASE),
        "write the days of that week, such as 1-7 in the day of the month",
    ),
    (
        re.compile(r"[0-9]+w", re.IGNORECASE),
        "the nearest working day cannot be named; write a day and 1-5 as the days of the week",
    ),
    (re.compile(r"\?"), "write * instead of ?"),
    (re.compile(r"h(?:/[0-9]+)?", re.IGNORECASE), "write a number instead of H"),
)


class Timing(Protocol):
    """A rule of scheduled times. It has no time in the last days of the year 9999, the last year of Python's dates."""

    @property
    def text(self) -> str:
        """The rule as `parse_timing` reads it."""

    def after(self, ms: int) -> Iterator[int]:
        """Return the scheduled times after a time, earliest first."""

    def between(self, after: int, until: int, newest: int) -> tuple[list[int], int]:
        """Return the latest scheduled times between two times.

        Args:
            after, until: the two times; `until` is included.
            newest: largest number of scheduled times to return.

        Returns:
            The latest ones, earliest first, and the number of all between the two times.
        """


@dataclass(frozen=True, slots=True)
class Every:
    """A rule that is due at every multiple of an interval since the epoch."""

    milliseconds: int

    def __post_init__(self) -> None:
        """Check the bounds; raises ValueError."""
        if not MIN_EVERY_MS <= self.milliseconds <= MAX_EVERY_MS:
            raise ValueError(f"an interval is {MIN_EVERY_MS} ms to {MAX_EVERY_MS // _DAY_MS} days long")

    @property
    def text(self) -> str:
        return f"every {self.milliseconds}"

    def after(self, ms: int) -> Iterator[int]:
        due = ms - ms % self.milliseconds + self.milliseconds
        while due <= _END_MS:
            yield due
            due += self.milliseconds

    def between(self, after: int, until: int, newest: int) -> tuple[list[int], int]:
        first, last = after // self.milliseconds + 1, until // self.milliseconds
        total = max(0, last - first + 1)
        begin = max(first, last - newest + 1)
        return [number * self.milliseconds for number in range(begin, last + 1)], total


def _number(text: str, names: tuple[str, ...], low: int, high: int) -> int:
    if text.isdecimal():
        number = int(text)
    else:
        found = [at for at, name in enumerate(names) if name.startswith(text) and len(text) >= _NAME_LETTERS]
        if not found:
            allowed = f", nor one of {', '.join(name[:_NAME_LETTERS] for name in names)}" if names else ""
            raise ValueError(f"{text[:40]!r} is not a number{allowed}")
        number = found[0] + low
    if not low <= number <= high:
        raise ValueError(f"{text} is not from {low} to {high}")
    return number


def _numbers(text: str, low: int, high: int, names: tuple[str, ...] = ()) -> tuple[int, ...]:
    """Return the numbers that a field of an expression matches. Raises ValueError."""
    found: set[int] = set()
    for part in text.lower().split(","):
        found.update(_numbers_of_part(part, low, high, names))
    return tuple(sorted(found))


def _numbers_of_part(part: str, low: int, high: int, names: tuple[str, ...]) -> list[int]:
    """Return the numbers of one part of a list, such as 0-30/10. Raises ValueError."""
    match = _PART.fullmatch(part)
    for pattern, hint in _FOREIGN:
        if pattern.fullmatch(part) and not any(name.startswith(part) for name in names if len(part) >= _NAME_LETTERS):
            raise ValueError(f"{part!r} has no meaning here: {hint}")
    if match is None:
        raise ValueError(f"{part[:40]!r} is not one of *, 5, 1-5, */15, 0-30/10, or a list of them")
    star, first, last, step_text = match.groups()
    if step_text is not None and not (star or last):
        raise ValueError(f"{part!r}: a step follows * or a range")
    step = int(step_text or 1)
    if not 1 <= step <= high - low:
        raise ValueError(f"{part!r}: a step is from 1 to {high - low} here")
    if star:
        return list(range(low, high + 1))[::step]
    # Sunday is also the day after Saturday.
    highest = high + 1 if names is _WEEKDAYS else high
    begin = _number(first, names, low, highest)
    end = _number(last, names, low, highest) if last else begin
    if begin > high:
        begin, end = low, low if end > high else end
    # A range such as 22-3 continues after the last number.
    numbers = [*range(begin, end + 1)] if begin <= end else [*range(begin, high + 1), *range(low, end + 1)]
    return [low if number > high else number for number in numbers[::step]]


@dataclass(frozen=True, slots=True)
class Cron:
    """A rule by a cron expression, in a time zone."""

    expression: str
    timezone: str = UTC_NAME
    _minutes: tuple[int, ...] = field(init=False, repr=False, compare=False)
    _hours: tuple[int, ...] = field(init=False, repr=False, compare=False)
    _days: tuple[int, ...] = field(init=False, repr=False, compare=False)
    _months: tuple[int, ...] = field(init=False, repr=False, compare=False)
    _weekdays: tuple[int, ...] = field(init=False, repr=False, compare=False)
    _zone: ZoneInfo = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Read the expression; raises ValueError."""
        fields = _NICKNAMES.get(self.expression.strip().lower(), self.expression).split()
        if self.expression.strip().startswith("@") and len(fields) != 5:
            raise ValueError(f"{self.expression[:40]!r} is not one of {', '.join(_NICKNAMES)}")
        if len(fields) != 5 or len(self.expression) > MAX_CRON:
            raise ValueError(
                "a cron expression has five fields: minute, hour, day of the month, month, day of the week"
            )
        kinds = (
            ("minute", 0, 59, ()), ("hour", 0, 23, ()), ("day of the month", 1, 31, ()),
            ("month", 1, 12, _MONTHS), ("day of the week", 0, 6, _WEEKDAYS),
        )  # fmt: skip
        for text, slot, (kind, low, high, names) in zip(
            fields, ("_minutes", "_hours", "_days", "_months", "_weekdays"), kinds, strict=True
        ):
            try:
                object.__setattr__(self, slot, _numbers(text, low, high, names))
            except ValueError as error:
                raise ValueError(f"the {kind}: {error}") from None
        if not any(day <= monthrange(2000, month)[1] for day, month in product(self._days, self._months)):
            raise ValueError("none of these days exists in any of these months")
        object.__setattr__(self, "_zone", zone(self.timezone))

    @property
    def text(self) -> str:
        return f"cron {self.timezone} {self.expression}"

    @property
    def restricts_both_days(self) -> bool:
        """True if the expression restricts both the day of the month and the day of the week."""
        return len(self._days) < 31 and len(self._weekdays) < 7

    def after(self, ms: int) -> Iterator[int]:
        day, last = (from_ms(min(at, _END_MS)).astimezone(self._zone).date() for at in (ms, _END_MS))
        for _ in range(HORIZON_DAYS):
            times = _times(self, day)
            yield from times[bisect_right(times, ms) :]
            if day >= last:
                return
            day += _DAY

    def between(self, after: int, until: int, newest: int) -> tuple[list[int], int]:
        found: deque[int] = deque(maxlen=newest)
        total = 0
        day, last = (from_ms(min(at, _END_MS)).astimezone(self._zone).date() for at in (after, until))
        while day <= last:
            times = _times(self, day)
            times = times[bisect_right(times, after) : bisect_right(times, until)]
            found.extend(times)
            total += len(times)
            day += _DAY
        return list(found), total

    def of_day(self, day: date) -> tuple[int, ...]:
        """Return the scheduled times of a local day, earliest first."""
        start, end = self._midnight(day), self._midnight(day + _DAY)
        if end - start == start - self._midnight(day - _DAY) == _DAY_MS:
            # No clock change is near.
            if not self._is_day(day):
                return ()
            return tuple(start + (60 * hour + minute) * _MINUTE_MS for hour in self._hours for minute in self._minutes)
        # A time that the day before left out may be due on this day.
        found = {
            due
            for local in (day - _DAY, day)
            if self._is_day(local)
            for hour, minute in product(self._hours, self._minutes)
            for due in self._moments(local, hour, minute)
        }
        return tuple(sorted(due for due in found if start <= due < end))

    def _is_day(self, day: date) -> bool:
        return (
            day.day in self._days and day.month in self._months and day.isoweekday() % 7 in self._weekdays
        )  # fmt: skip

    def _moments(self, day: date, hour: int, minute: int) -> Iterator[int]:
        first, second = (self._moment(day, hour, minute, fold) for fold in (0, 1))
        yield first
        # If the local time is left out, the second moment is before the first: it uses the later offset.
        if second > first and len(self._hours) == 24:
            yield second

    def _moment(self, day: date, hour: int = 0, minute: int = 0, fold: int = 0) -> int:
        offset = datetime(day.year, day.month, day.day, hour, minute, tzinfo=self._zone, fold=fold).utcoffset()
        assert offset is not None
        local = ((day - _EPOCH).days * 24 + hour) * 60 + minute
        return local * _MINUTE_MS - duration_ms(offset)

    def _midnight(self, day: date) -> int:
        return self._moment(day)


@lru_cache(maxsize=256)
def _times(cron: Cron, day: date) -> tuple[int, ...]:
    return cron.of_day(day)


def zone(name: str) -> ZoneInfo:
    """Return a time zone by its name, such as `Europe/Berlin`.

    Raises:
        ValueError: this host knows no zone of that name.
    """
    try:
        return ZoneInfo(name)
    # A name such as `Europe` is a folder of zones.
    except (OSError, ValueError, KeyError):
        raise ValueError(f"{name[:80]!r} is not a time zone; write it like Europe/Berlin, or UTC") from None


def parse_timing(text: str) -> Timing:
    """Read a rule from its `text`.

    Raises:
        ValueError: the text is not a rule.
    """
    kind, _, rest = text.partition(" ")
    if kind == "every" and rest.isdecimal():
        return Every(int(rest))
    if kind == "cron":
        timezone, _, expression = rest.partition(" ")
        return Cron(expression, timezone)
    raise ValueError(f"{text[:80]!r} is not a rule of scheduled times")
