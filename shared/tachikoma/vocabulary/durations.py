"""Durations and their text form, such as `1h30m`."""

from __future__ import annotations

import re
from datetime import timedelta

from tachikoma.errors import InvalidRequest
from tachikoma.vocabulary.clock import milliseconds

__all__ = ["as_duration", "format_duration", "parse_duration", "read_duration"]

#: Seconds of each unit.
_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6}
_DURATION = re.compile(r"(?:[0-9]+(?:\.[0-9]+)?(?:h|ms|us|µs|m|s))+")
_DURATION_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?)(h|ms|us|µs|m|s)")


def parse_duration(text: str) -> timedelta:
    """Parse a duration such as `"30s"`, `"1h30m"`, `"250ms"` or `"2.5"` (seconds).

    Raises:
        ValueError: the text is not a duration, or too long a one.
    """
    text = text.strip()
    sign = -1.0 if text.startswith("-") else 1.0
    body = text.removeprefix("-")
    if re.fullmatch(r"[0-9]+(?:\.[0-9]+)?", body):
        seconds = float(body)
    elif _DURATION.fullmatch(body):
        seconds = sum(float(number) * _UNITS[unit] for number, unit in _DURATION_PART.findall(body))
    else:
        raise ValueError(f"{text!r} is not a duration; write it like 30s, 5m, 1h30m or 250ms")
    try:
        return timedelta(seconds=sign * seconds)
    except OverflowError:
        raise ValueError(f"{text!r} is too long for a duration") from None


def format_duration(value: timedelta) -> str:
    """Return a duration in its largest whole units: `1h30m`, `30s`, `250ms`, `1.5s`."""
    micros = round(value.total_seconds() * 1e6)
    if micros == 0:
        return "0s"
    sign, micros = ("-", -micros) if micros < 0 else ("", micros)
    if micros < 1000:
        return f"{sign}{micros}us"
    if micros < 1_000_000:
        return f"{sign}{milliseconds(timedelta(microseconds=micros)):g}ms"
    seconds, fraction = divmod(micros, 1_000_000)
    hours, rest = divmod(seconds, 3600)
    minutes, seconds = divmod(rest, 60)
    text = (f"{hours}h" if hours else "") + (f"{minutes}m" if minutes else "")
    if fraction:
        text += f"{seconds}.{fraction:06d}".rstrip("0") + "s"
    elif seconds or not text:
        text += f"{seconds}s"
    return sign + text


def as_duration(value: timedelta | str | float, name: str) -> timedelta:
    """Return a duration that a caller wrote: a timedelta, text such as `"30s"`, or a number of seconds.

    Raises:
        InvalidRequest: the value is not a duration; the message begins with the name of the argument.
    """
    try:
        return read_duration(value)
    except ValueError as error:
        raise InvalidRequest(f"{name}: {error}") from None


def read_duration(value: object) -> timedelta:
    """Return a duration from text, a number of seconds, or a timedelta.

    Raises:
        ValueError: the value is not a duration.
    """
    if isinstance(value, str):
        return parse_duration(value)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            return timedelta(seconds=value)
        except (OverflowError, ValueError):
            raise ValueError(f"{value!r} seconds is not a usable duration") from None
    if isinstance(value, timedelta):
        return value
    raise ValueError("must be text such as '30s', a number of seconds, or a timedelta")
