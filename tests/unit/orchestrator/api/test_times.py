"""Times and durations of callers, up to the ends of their types."""

from __future__ import annotations

from datetime import timedelta

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from tachikoma.errors import InvalidRequest
from tachikoma_orchestrator.api.times import duration_of, milliseconds_of


@pytest.mark.parametrize(
    ("seconds", "nanos", "expected"),
    [(0, 0, 0), (5, 999_999_999, 5999), (-5, 0, -5000), (253_402_300_799, 0, 253_402_300_799_000)],
)
def test_a_time_is_read_to_the_millisecond(seconds: int, nanos: int, expected: int) -> None:
    assert milliseconds_of(Timestamp(seconds=seconds, nanos=nanos), "since") == expected


@pytest.mark.parametrize("seconds", [253_402_300_800, -(2**62), 2**63 - 1, -(2**63)])
def test_a_time_outside_of_the_calendar_is_refused(seconds: int) -> None:
    with pytest.raises(InvalidRequest, match="since is not a time"):
        milliseconds_of(Timestamp(seconds=seconds), "since")


@pytest.mark.parametrize(("seconds", "nanos", "expected"), [(0, 0, 0), (5, 500_000_000, 5.5), (-5, 0, -5)])
def test_a_duration_is_read(seconds: int, nanos: int, expected: float) -> None:
    assert duration_of(Duration(seconds=seconds, nanos=nanos), "ttl") == timedelta(seconds=expected)


@pytest.mark.parametrize(("seconds", "nanos"), [(2**63 - 1, 0), (-(2**63), 0), (10**15, 0)])
def test_a_duration_beyond_any_is_refused(seconds: int, nanos: int) -> None:
    with pytest.raises(InvalidRequest, match="ttl is longer than any duration"):
        duration_of(Duration(seconds=seconds, nanos=nanos), "ttl")
