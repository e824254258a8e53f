"""Durations, as they are read and written."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tachikoma.errors import InvalidRequest
from tachikoma.vocabulary.durations import as_duration, format_duration, parse_duration

YEARS = timedelta(days=3650)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30s", 30),
        ("5m", 300),
        ("1h", 3600),
        ("1h30m", 5400),
        ("1m30s", 90),
        ("250ms", 0.25),
        ("1.5s", 1.5),
        ("7us", 7e-6),
        ("7µs", 7e-6),
        ("2.5", 2.5),
        ("90", 90),
        ("0s", 0),
        ("  30s\n", 30),
        ("-5m", -300),
        ("168h", 7 * 24 * 3600),
    ],
)
def test_a_duration_is_read_as_people_write_it(text: str, seconds: float) -> None:
    assert parse_duration(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "s", "-", "--5s", "+5s", "5 s", "5x", "5d", "1h30", "30s5", "1e3", "1e3s", "inf", "nan", ".", ".s"),
        *("5..5s", "5S", "0x10", "1_000s", "1,5s", "s30", "30s;id", "9" * 400, "9" * 400 + "h", "999999999999h"),
        # Digits, but not ours: Arabic-Indic and full width.
        *("\u0661s", "\uff15s", "\u0661"),
    ],
)
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="duration"):
        parse_duration(text)


@given(st.text())
def test_reading_a_duration_raises_nothing_but_value_errors(text: str) -> None:
    try:
        value = parse_duration(text)
    except ValueError:
        return
    assert isinstance(value, timedelta)


@given(st.timedeltas(min_value=-YEARS, max_value=YEARS))
def test_a_written_duration_reads_as_the_same(value: timedelta) -> None:
    assert parse_duration(format_duration(value)) == value


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (timedelta(0), "0s"),
        (timedelta(seconds=30), "30s"),
        (timedelta(minutes=5), "5m"),
        (timedelta(hours=1, minutes=30), "1h30m"),
        (timedelta(hours=1, seconds=1), "1h1s"),
        (timedelta(milliseconds=250), "250ms"),
        (timedelta(microseconds=7), "7us"),
        (timedelta(microseconds=999_999), "999.999ms"),
        (timedelta(seconds=1.5), "1.5s"),
        (timedelta(seconds=-90), "-1m30s"),
        (timedelta(days=7), "168h"),
    ],
)
def test_a_duration_is_written_in_its_largest_units(value: timedelta, text: str) -> None:
    assert format_duration(value) == text


@pytest.mark.parametrize("value", [timedelta(seconds=90), "90s", "1m30s", 90, 90.0])
def test_a_duration_is_what_callers_write(value: timedelta | str | float) -> None:
    assert as_duration(value, "patience") == timedelta(seconds=90)


@pytest.mark.parametrize("value", ["soon", float("nan"), True, None])
def test_what_is_no_duration_is_refused_with_its_name(value: Any) -> None:
    with pytest.raises(InvalidRequest, match="patience: "):
        as_duration(value, "patience")
