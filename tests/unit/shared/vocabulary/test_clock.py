"""Milliseconds since the epoch, and aware times."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tachikoma.vocabulary.clock import duration_ms, from_ms, now_ms, optional_from_ms, to_ms

#: All times that the vocabulary allows: until the year 10000.
MS = st.integers(0, 253_402_300_799_999)
ZONES = st.timedeltas(timedelta(hours=-23), timedelta(hours=23)).map(timezone)


@given(MS)
def test_milliseconds_survive_exactly(ms: int) -> None:
    assert to_ms(from_ms(ms)) == ms
    assert from_ms(ms).tzinfo is UTC


@given(st.datetimes(datetime(1970, 1, 2), datetime(9998, 1, 1), timezones=ZONES))  # noqa: DTZ001 (the zone is drawn)
def test_a_time_is_rounded_down_to_its_millisecond(moment: datetime) -> None:
    assert timedelta(0) <= moment - from_ms(to_ms(moment)) < timedelta(milliseconds=1)


def test_zero_means_never_only_where_that_is_asked_for() -> None:
    assert optional_from_ms(0) is None
    assert optional_from_ms(1) == from_ms(1) == datetime(1970, 1, 1, 0, 0, 0, 1000, tzinfo=UTC)
    assert from_ms(0) == datetime(1970, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(("micros", "ms"), [(0, 0), (499, 0), (501, 1), (1_000_000, 1000), (-1600, -2)])
def test_a_duration_is_rounded_to_the_nearest_millisecond(micros: int, ms: int) -> None:
    assert duration_ms(timedelta(microseconds=micros)) == ms


def test_now_is_the_clock_of_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time_ns", lambda: 1_769_860_800_123_999_999)
    assert now_ms() == 1_769_860_800_123
