"""Conversions between milliseconds since the epoch and aware datetimes; no other module does them.

Redis, the signed messages and the agents' journals hold times as whole milliseconds since the epoch (UTC).
"""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

__all__ = ["duration_ms", "from_ms", "now_ms", "optional_from_ms", "to_ms"]

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


def duration_ms(duration: timedelta) -> int:
    """Convert a duration to milliseconds, rounded to the nearest."""
    return round(duration / _MILLISECOND)


def now_ms() -> int:
    """Return the host's current time in milliseconds since the epoch."""
    return time.time_ns() // 1_000_000
