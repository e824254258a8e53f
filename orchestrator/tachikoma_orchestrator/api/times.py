"""Times and durations in the messages of callers, which may hold more than any of ours."""

from __future__ import annotations

from datetime import timedelta

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from tachikoma.errors import InvalidRequest

__all__ = ["duration_of", "milliseconds_of"]


def milliseconds_of(message: Timestamp, field: str) -> int:
    """Return a time in milliseconds since the epoch.

    Args:
        message: the time.
        field: name of the request's field, for the message of an error.

    Raises:
        InvalidRequest: it is outside of the years 1 to 9999, as the type allows.
    """
    try:
        return message.ToMilliseconds()
    except (ValueError, OverflowError):
        raise InvalidRequest(f"{field} is not a time of the years 1 to 9999") from None


def duration_of(message: Duration, field: str) -> timedelta:
    """Return a duration.

    Args:
        message: the duration.
        field: name of the request's field, for the message of an error.

    Raises:
        InvalidRequest: it is longer than any `timedelta`, as the type allows.
    """
    try:
        return message.ToTimedelta()
    except (ValueError, OverflowError):
        raise InvalidRequest(f"{field} is longer than any duration") from None
