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

from tachikoma.vocabulary.types import Base64, Duration, Identifier, Timestamp

DURATION: TypeAdapter[timedelta] = TypeAdapter(Duration)
BYTES: TypeAdapter[bytes] = TypeAdapter(Base64)
TIME: TypeAdapter[datetime] = TypeAdapter(Timestamp)
ID: TypeAdapter[str] = TypeAdapter(Identifier)

YEARS = timedelta(days=3650)


# --- durations --------------------------------------------------------------------------------------------------------


@given(st.timedeltas(min_value=-YEARS, max_value=YEARS))
def test_a_duration_survives_json(value: timedelta) -> None:
    assert DURATION.validate_json(DURATION.dump_json(value)) == value


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
