"""Milliseconds since the epoch, and aware times."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tachikoma.vocabulary.clock import (
    LAST_MS,
    duration_ms,
    from_ms,
    micros_since,
    milliseconds,
    ms_of_seconds,
    now_micros,
    now_ms,
    optional_from_ms,
    redis_ms,
    seconds_of_ms,
    text_of_ms,
    to_ms,
    to_ns,
    whole_seconds_of_ms,
)

#: All times that the vocabulary allows: until the year 10000.
MS = st.integers(0, LAST_MS)
ZONES = st.timedeltas(timedelta(hours=-23), timedelta(hours=23)).map(timezone)


@given(MS)
def test_milliseconds_survive_exactly(ms: int) -> None:
    assert to_ms(from_ms(ms)) == ms
    assert from_ms(ms).tzinfo is UTC


@given(st.datetimes(datetime(1970, 1, 2), datetime(9998, 1, 1), timezones=ZONES))  # noqa: DTZ001 (the zone is drawn)
def test_a_time_is_rounded_down_to_its_millisecond(moment: datetime) -> None:
    assert timedelta(0) <= moment - from_ms(to_ms(moment)) < timedelta(milliseconds=1)


def test_nanoseconds_are_a_million_for_each_millisecond() -> None:
    assert to_ns(1_700_000_000_123) == 1_700_000_000_123_000_000


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
    assert now_micros() == 1_769_860_800_123_999


def test_elapsed_microseconds_are_rounded_down(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "monotonic_ns", lambda: 5_000_001_999)
    assert micros_since(5_000_000_000) == 1


def test_the_last_millisecond_is_the_last_that_a_time_holds() -> None:
    assert from_ms(LAST_MS).isoformat() == "9999-12-31T23:59:59.999000+00:00"
    with pytest.raises(OverflowError):
        from_ms(LAST_MS + 1)


@given(MS)
def test_seconds_keep_their_milliseconds(ms: int) -> None:
    assert ms_of_seconds(seconds_of_ms(ms)) == ms
    assert 0 <= ms - ms_of_seconds(whole_seconds_of_ms(ms)) < 1000


@given(st.integers(0, 2**33), st.integers(0, 999_999))
def test_the_time_of_redis_is_rounded_down(seconds: int, micros: int) -> None:
    assert redis_ms(seconds, micros) == to_ms(from_ms(0) + timedelta(seconds=seconds, microseconds=micros))


@given(MS)
def test_a_time_as_text_has_all_its_milliseconds(ms: int) -> None:
    assert to_ms(datetime.fromisoformat(text_of_ms(ms))) == ms
    assert len(text_of_ms(ms)) == len("2026-01-31T12:00:00.000Z")


@pytest.mark.parametrize(("micros", "ms"), [(0, 0), (1, 0.001), (1500, 1.5), (-1_000_000, -1000)])
def test_a_duration_in_milliseconds_keeps_its_fraction(micros: int, ms: float) -> None:
    assert milliseconds(timedelta(microseconds=micros)) == ms
