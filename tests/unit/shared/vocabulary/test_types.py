"""Durations, base64, times and ids, as they are read and written."""

from __future__ import annotations

import base64
import json
import math
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from tachikoma.errors import InvalidRequest
from tachikoma.vocabulary.durations import as_duration, format_duration, parse_duration
from tachikoma.vocabulary.types import Base64, Duration, Identifier, Timestamp

DURATION: TypeAdapter[timedelta] = TypeAdapter(Duration)
BYTES: TypeAdapter[bytes] = TypeAdapter(Base64)
TIME: TypeAdapter[datetime] = TypeAdapter(Timestamp)
ID: TypeAdapter[str] = TypeAdapter(Identifier)

YEARS = timedelta(days=3650)


# --- durations --------------------------------------------------------------------------------------------------------


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


@given(st.timedeltas(min_value=-YEARS, max_value=YEARS))
def test_a_duration_survives_json(value: timedelta) -> None:
    assert DURATION.validate_json(DURATION.dump_json(value)) == value


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


@pytest.mark.parametrize(
    ("value", "expected"),
    [(2, timedelta(seconds=2)), (0.25, timedelta(milliseconds=250)), (timedelta(1), timedelta(1))],
)
def test_numbers_are_seconds(value: object, expected: timedelta) -> None:
    assert DURATION.validate_python(value) == expected


@pytest.mark.parametrize("value", [True, False, None, [], {}, b"30s", math.nan, math.inf, -math.inf, 10**400, 1e300])
def test_other_values_are_no_duration(value: object) -> None:
    with pytest.raises(ValidationError):
        DURATION.validate_python(value)


# --- bytes ------------------------------------------------------------------------------------------------------------


@given(st.binary())
def test_bytes_survive_json_as_base64(value: bytes) -> None:
    raw = BYTES.dump_json(value)
    assert json.loads(raw) == base64.b64encode(value).decode()
    assert BYTES.validate_json(raw) == value


@pytest.mark.parametrize("text", ["a", "====", "YQ", "YQ==\n", " YQ==", "Y Q==", "YQ==YQ==", "__--", "ä"])
def test_what_is_no_base64_is_refused(text: str) -> None:
    with pytest.raises(ValidationError):
        BYTES.validate_json(json.dumps(text))


@pytest.mark.parametrize("value", [b"x", bytearray(b"x"), memoryview(b"x")])
def test_bytes_in_any_dress_are_taken(value: object) -> None:
    taken = BYTES.validate_python(value)
    assert type(taken) is bytes
    assert taken == b"x"


@pytest.mark.parametrize("value", ["eA==", "x", 1, None, [120]])
def test_text_is_not_taken_for_bytes_in_python(value: object) -> None:
    with pytest.raises(ValidationError):
        BYTES.validate_python(value)


# --- times ------------------------------------------------------------------------------------------------------------


def test_a_time_is_kept_in_utc() -> None:
    there = datetime(2026, 1, 31, 14, tzinfo=timezone(timedelta(hours=2)))
    kept = TIME.validate_python(there)
    assert kept == there
    assert kept.tzinfo is UTC
    assert TIME.dump_json(kept) == b'"2026-01-31T12:00:00Z"'


def test_a_time_without_a_zone_is_refused() -> None:
    with pytest.raises(ValidationError, match="zone"):
        TIME.validate_python(datetime(2026, 1, 31))  # noqa: DTZ001


@pytest.mark.parametrize("text", ["0001-01-01T00:00:00+05:00", "9999-12-31T23:59:59-05:00"])
def test_a_time_that_utc_cannot_hold_is_refused(text: str) -> None:
    with pytest.raises(ValidationError):
        TIME.validate_json(json.dumps(text))


# --- ids --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["a", "0", "agent-1", "A_b-C", "x" * 63])
def test_an_id_is_taken(value: str) -> None:
    assert ID.validate_python(value) == value


@pytest.mark.parametrize(
    "value",
    [
        *("", "-a", "_a", "a.b", "a:b", "a/b", "a b", "a\n", "\na", "a\0", "x" * 64, "*", "a*", "ä", "a\u200b"),
        # A Cyrillic a, a full width 1.
        *("\u0430", "\uff11"),
    ],
)
def test_what_is_no_id_is_refused(value: Any) -> None:
    with pytest.raises(ValidationError):
        ID.validate_python(value)


@given(st.text(max_size=70))
def test_an_id_holds_nothing_that_has_a_meaning_elsewhere(text: str) -> None:
    try:
        ID.validate_python(text)
    except ValidationError:
        return
    assert 1 <= len(text) <= 63
    assert text.isascii()
    assert all(c.isalnum() or c in "-_" for c in text)
    assert text[0].isalnum()


@pytest.mark.parametrize("value", [timedelta(seconds=90), "90s", "1m30s", 90, 90.0])
def test_a_duration_is_what_callers_write(value: timedelta | str | float) -> None:
    assert as_duration(value, "patience") == timedelta(seconds=90)


@pytest.mark.parametrize("value", ["soon", float("nan"), True, None])
def test_what_is_no_duration_is_refused_with_its_name(value: Any) -> None:
    with pytest.raises(InvalidRequest, match="patience: "):
        as_duration(value, "patience")
