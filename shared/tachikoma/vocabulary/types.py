"""Field types of the vocabulary: durations, bytes, times, ids and networks, with their text forms.

In JSON, durations are text such as `"30s"` or `"1m30s"` (numbers are seconds), bytes are base64 (RFC 4648 section 4)
and times are RFC 3339 in UTC. In Python they are `timedelta`, `bytes` and aware `datetime`.
"""

from __future__ import annotations

import base64
import binascii
from datetime import UTC, datetime, timedelta
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Any, TypeAlias

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PlainSerializer,
    ValidationInfo,
    WithJsonSchema,
)

from tachikoma.vocabulary.addresses import identity_place
from tachikoma.vocabulary.clock import LAST_MS
from tachikoma.vocabulary.durations import format_duration, read_duration
from tachikoma.vocabulary.identifiers import ID_PATTERN, is_identifier

__all__ = [
    "Base64",
    "Duration",
    "Identifier",
    "IdentityPlace",
    "Milliseconds",
    "Network",
    "Timestamp",
]

#: A duration: text such as "1m30s" or a number of seconds in JSON.
Duration = Annotated[
    timedelta,
    BeforeValidator(read_duration),
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

#: A setting for the source of an identity: a folder, or `unix:///path` of the SPIFFE Workload API.
IdentityPlace: TypeAlias = Annotated[str | Path, AfterValidator(identity_place)]
