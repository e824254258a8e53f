"""Conversions of milliseconds to and from datetimes, durations, seconds and texts; no other module does them.

Redis, the signed messages and the agents' journals hold times as whole milliseconds since the epoch (UTC).
"""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

__all__ = [
    "LAST_MS",
    "duration_ms",
    "from_ms",
    "micros_as_ms",
    "micros_since",
    "milliseconds",
    "ms_of_seconds",
    "now_micros",
    "now_ms",
    "optional_from_ms",
    "redis_ms",
    "seconds_of_ms",
    "text_of_ms",
    "to_micros",
    "to_ms",
    "to_ns",
    "whole_seconds_of_ms",
]

#: The last millisecond of the year 9999: the latest time that `datetime` holds.
LAST_MS = 253_402_300_799_999

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)


def from_ms(ms: int) -> datetime:
    """Convert milliseconds since the epoch to a time in UTC, exactly."""
    return _EPOCH + timedelta(milliseconds=ms)


def optional_from_ms(ms: int) -> datetime | None:
    """Convert milliseconds since the epoch to a time in UTC; 0 means never and gives None."""
    return from_ms(ms) if ms else None


def to_ms(moment: datetime) -> int:
    """Convert an aware time to whole milliseconds since the epoch, rounded down."""
    return (moment - _EPOCH) // _MILLISECOND


def to_micros(moment: datetime) -> int:
    """Convert an aware time to microseconds since the epoch."""
    return (moment - _EPOCH) // timedelta(microseconds=1)


def duration_ms(duration: timedelta) -> int:
    """Convert a duration to milliseconds, rounded to the nearest."""
    return round(duration / _MILLISECOND)


def now_ms() -> int:
    """Return the host's current time in milliseconds since the epoch."""
    return time.time_ns() // 1_000_000


def now_micros() -> int:
    """Return the host's current time in microseconds since the epoch."""
    return time.time_ns() // 1000


def micros_as_ms(micros: int) -> int:
    """Convert microseconds to whole milliseconds, rounded down."""
    return micros // 1000


def micros_since(began_ns: int) -> int:
    """Return the microseconds since a time of `time.monotonic_ns`, rounded down."""
    return (time.monotonic_ns() - began_ns) // 1000


def milliseconds(duration: timedelta) -> float:
    """Convert a duration to milliseconds, fractions included."""
    return duration / _MILLISECOND


def seconds_of_ms(ms: int) -> float:
    """Convert milliseconds to seconds, fractions included."""
    return ms / 1000


def whole_seconds_of_ms(ms: int) -> int:
    """Convert milliseconds to whole seconds, rounded down."""
    return ms // 1000


def to_ns(ms: int) -> int:
    """Convert milliseconds since the epoch to nanoseconds since it."""
    return ms * 1_000_000


def ms_of_seconds(seconds: float) -> int:
    """Convert seconds to milliseconds, rounded to the nearest."""
    return round(seconds * 1000)


def redis_ms(seconds: int, micros: int) -> int:
    """Convert the answer to TIME of Redis to milliseconds since the epoch, rounded down."""
    return seconds * 1000 + micros // 1000


def text_of_ms(ms: int) -> str:
    """Return a time in UTC as text with milliseconds: `2026-01-31T12:00:00.000Z`."""
    return f"{from_ms(ms).replace(tzinfo=None).isoformat(timespec='milliseconds')}Z"
