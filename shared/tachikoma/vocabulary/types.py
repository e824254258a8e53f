"""Field types of the vocabulary: durations, bytes, times, ids and networks, with their text forms.

In JSON, durations are text such as `"30s"` or `"1m30s"` (numbers are seconds), bytes are base64 (RFC 4648 section 4)
and times are RFC 3339 in UTC. In Python they are `timedelta`, `bytes` and aware `datetime`.
"""

from __future__ import annotations

import base64
import binascii
import re
from datetime import UTC, datetime, timedelta
from ipaddress import ip_network
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PlainSerializer,
    ValidationInfo,
    WithJsonSchema,
)

from tachikoma.errors import InvalidRequest
from tachikoma.vocabulary.clock import LAST_MS, milliseconds

__all__ = [
    "ID_PATTERN",
    "Base64",
    "Duration",
    "Identifier",
    "Milliseconds",
    "Network",
    "Timestamp",
    "as_duration",
    "format_duration",
    "is_identifier",
    "parse_duration",
]

#: Pattern of the ids of executions and agents. No dot: it separates parts of Redis names and of Celery's task ids.
ID_PATTERN = r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}"

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
        read = _read_duration(value)
    except ValueError as error:
        raise InvalidRequest(f"{name}: {error}") from None
    assert isinstance(read, timedelta)
    return read


def _read_duration(value: Any) -> Any:
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


#: A duration: text such as "1m30s" or a number of seconds in JSON.
Duration = Annotated[
    timedelta,
    BeforeValidator(_read_duration),
    PlainSerializer(format_duration, return_type=str, when_used="json"),
    WithJsonSchema({"type": ["string", "number"], "description": "A duration such as 30s, or seconds."}),
]


def _read_bytes(value: Any, info: ValidationInfo) -> Any:
    if isinstance(value, bytes):
        return value
    if isinstance(value, (bytearray, memoryview)):
        return bytes(value)
    if isinstance(value, str) and info.mode == "json":
        try:
            return base64.b64decode(value, validate=True)
        except binascii.Error as error:
            raise ValueError(f"not base64: {error}") from None
    raise ValueError("must be bytes (in JSON: base64 text)")


#: Bytes: base64 text in JSON (RFC 4648 section 4).
Base64 = Annotated[
    bytes,
    BeforeValidator(_read_bytes),
    PlainSerializer(lambda value: base64.b64encode(value).decode(), return_type=str, when_used="json"),
    WithJsonSchema({"type": "string", "contentEncoding": "base64"}),
]


def _aware(value: datetime) -> datetime:
    if value.tzinfo is None:
        raise ValueError("must have a time zone, for instance 2026-01-31T12:00:00Z")
    try:
        return value.astimezone(UTC)
    except OverflowError:
        raise ValueError("is outside the range of times in UTC") from None


#: An aware time, stored in UTC.
Timestamp = Annotated[datetime, AfterValidator(_aware)]


def is_identifier(value: str) -> bool:
    """Return True if a text has the form of an id of an execution or agent."""
    return re.fullmatch(ID_PATTERN, value) is not None


def _identifier(value: str) -> str:
    if not is_identifier(value):
        raise ValueError(
            f"{value[:80]!r} is not an id: 1 to 63 letters, digits, '-' or '_', beginning with a letter or digit"
        )
    return value


#: The id of an execution or agent.
Identifier = Annotated[
    str, AfterValidator(_identifier), WithJsonSchema({"type": "string", "pattern": f"^{ID_PATTERN}$"})
]
#: A time in milliseconds since the epoch, before the year 10000; 0 means never.
Milliseconds = Annotated[int, Field(ge=0, le=LAST_MS)]


def _network(text: str) -> str:
    try:
        return str(ip_network(text))
    except ValueError:
        pass
    try:
        containing = ip_network(text, strict=False)
    except ValueError:
        raise ValueError(
            f"{text[:80]!r} is not a network; write it like 10.0.0.0/8, 192.0.2.7 or 2001:db8::/32"
        ) from None
    raise ValueError(f"{text!r} is an address in a network; write {containing} for the network")


#: A network of IPv4 or IPv6, or one address.
Network = Annotated[str, AfterValidator(_network)]
