"""Converters of single fields between the vocabulary and protobuf, and the table of fields that converts a message."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import Enum, StrEnum
from functools import cached_property
from typing import Any, Generic, TypeVar

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from pydantic import ValidationError

from tachikoma.errors import InvalidRequest, ServerError
from tachikoma.vocabulary.model import Model, describe_validation_error

__all__ = [
    "DURATION",
    "HEX",
    "HEX_LIST",
    "MAP",
    "SAME",
    "TIMESTAMP",
    "TUPLE",
    "Converter",
    "Presence",
    "WireField",
    "WireFormat",
    "enumeration",
    "many",
    "nested",
    "optional",
    "plain",
    "repeated",
]

V = TypeVar("V")
W = TypeVar("W")
E = TypeVar("E", bound=StrEnum)
N = TypeVar("N", bound=int)
M = TypeVar("M", bound=Model)
P = TypeVar("P", bound=Message)


@dataclass(frozen=True, slots=True)
class Converter(Generic[V, W]):
    """A pair of functions between a value of the vocabulary and the value of a protobuf field."""

    #: From the vocabulary to protobuf; never called with None.
    to_wire: Callable[[V], W]
    #: From protobuf to the vocabulary. Raises ValueError or OverflowError for a value that cannot be read.
    from_wire: Callable[[W], V]


def _unchanged(value: Any) -> Any:
    return value


def _timestamp_to_wire(value: datetime) -> Timestamp:
    message = Timestamp()
    message.FromDatetime(value)
    return message


def _duration_to_wire(value: timedelta) -> Duration:
    message = Duration()
    message.FromTimedelta(value)
    return message


#: A scalar that is the same in both; pydantic checks it.
SAME: Converter[Any, Any] = Converter(_unchanged, _unchanged)
#: A repeated scalar.
TUPLE: Converter[Iterable[Any], Iterable[Any]] = Converter(_unchanged, tuple)
#: A map of strings.
MAP: Converter[Mapping[str, str], Mapping[str, str]] = Converter(_unchanged, dict)
#: An aware time, in UTC, to the microsecond.
TIMESTAMP: Converter[datetime, Timestamp] = Converter(_timestamp_to_wire, lambda value: value.ToDatetime(tzinfo=UTC))
#: A duration, to the microsecond.
DURATION: Converter[timedelta, Duration] = Converter(_duration_to_wire, lambda value: value.ToTimedelta())
#: Bytes, in hexadecimal in the vocabulary.
HEX: Converter[str, bytes] = Converter(bytes.fromhex, bytes.hex)


def repeated(one: Converter[V, W]) -> Converter[Iterable[V], Iterable[W]]:
    """Make the converter of a repeated field from that of one value."""
    return Converter(
        lambda values: [one.to_wire(value) for value in values],
        lambda values: tuple(one.from_wire(value) for value in values),
    )


#: Repeated bytes, each in hexadecimal in the vocabulary.
HEX_LIST: Converter[Iterable[str], Iterable[bytes]] = repeated(HEX)


def enumeration(kind: type[E], number_of: Callable[[str], N], prefix: str) -> Converter[E, N]:
    """Make the converter of an enum.

    Args:
        kind: the enum of the vocabulary.
        number_of: returns the number of a name of the protobuf enum; its `Value`.
        prefix: names in protobuf are `<prefix>_<name>`.
    """
    numbers = {member: number_of(f"{prefix}_{member}") for member in kind}
    members = {number: member for member, number in numbers.items()}

    def from_wire(number: N) -> E:
        try:
            return members[number]
        except KeyError:
            raise ValueError(f"{number} is no {kind.__name__}") from None

    return Converter(numbers.__getitem__, from_wire)


class Presence(Enum):
    """Meaning of a protobuf field that a message does not set."""

    #: Unset is the field's zero value, which is an ordinary value.
    ALWAYS = "always"
    #: Unset is the default of the model, None for most fields. Needs a field that protobuf tracks (`HasField`).
    OPTIONAL = "optional"
    #: The zero value is the default of the model, for fields that protobuf does not track.
    NONZERO = "nonzero"


@dataclass(frozen=True, slots=True)
class WireField:
    """One row of a message's table."""

    #: Name of the field in protobuf.
    name: str
    converter: Converter[Any, Any] = SAME
    presence: Presence = Presence.ALWAYS
    #: Name of the model's attribute; empty where it is the same as `name`.
    renamed: str = ""

    @property
    def attribute(self) -> str:
        """Name of the model's attribute."""
        return self.renamed or self.name


def plain(*names: str) -> tuple[WireField, ...]:
    """Make rows of scalars that are always read."""
    return tuple(WireField(name) for name in names)


def optional(*names: str, converter: Converter[Any, Any] = SAME) -> tuple[WireField, ...]:
    """Make rows of fields that may be unset; an unset field is None."""
    return tuple(WireField(name, converter, Presence.OPTIONAL) for name in names)


@dataclass(frozen=True)
class WireFormat(Generic[M, P]):
    """The protobuf form of a model: one row for each field."""

    model: type[M]
    message: type[P]
    fields: tuple[WireField, ...]

    def to_pb(self, value: M) -> P:
        """Convert a value to its protobuf message; fields that are None are left unset."""
        return self.message(**self.contents(value))

    def contents(self, value: M) -> dict[str, Any]:
        """Return the fields of the protobuf message by name, without those that are None."""
        contents = {}
        for field in self.fields:
            content = getattr(value, field.attribute)
            if content is not None:
                contents[field.name] = field.converter.to_wire(content)
        return contents

    def from_pb(self, message: P, **more: Any) -> M:
        """Read a message that a server sent.

        Args:
            message: the protobuf message.
            more: attributes of the model that the message does not carry.

        Raises:
            ServerError: a value has no meaning for this client, which is then older than the server.
        """
        try:
            return self.read(message, **more)
        except (ValueError, OverflowError) as error:
            name = self.message.DESCRIPTOR.name
            raise ServerError(f"the server sent {name} with values that this client cannot read: {error}") from None

    def from_caller(self, message: P) -> M:
        """Read a message that a caller sent.

        Raises:
            InvalidRequest: a bound is broken.
        """
        try:
            return self.read(message)
        except ValidationError as error:
            raise InvalidRequest(f"invalid request: {describe_validation_error(error)}") from None
        except (ValueError, OverflowError) as error:
            raise InvalidRequest(f"invalid request: {error}") from None

    def read(self, message: P, **more: Any) -> M:
        """Read a message from either side.

        Raises:
            ValueError: a value is wrong; a pydantic.ValidationError names the field.
            OverflowError: a time or a duration is beyond what Python can hold.
        """
        for attribute, name, from_wire in self._rows[Presence.ALWAYS]:
            more[attribute] = from_wire(getattr(message, name))
        for attribute, name, from_wire in self._rows[Presence.OPTIONAL]:
            if message.HasField(name):
                more[attribute] = from_wire(getattr(message, name))
        for attribute, name, from_wire in self._rows[Presence.NONZERO]:
            if value := getattr(message, name):
                more[attribute] = from_wire(value)
        # Not the constructor, whose errors are for callers in Python.
        return self.model.model_validate(more)

    @cached_property
    def _rows(self) -> dict[Presence, list[tuple[str, str, Callable[[Any], Any]]]]:
        """The rows for reading, by their presence; each request passes here, so they are looked up once."""
        rows: dict[Presence, list[tuple[str, str, Callable[[Any], Any]]]] = {presence: [] for presence in Presence}
        for field in self.fields:
            rows[field.presence].append((field.attribute, field.name, field.converter.from_wire))
        return rows


def nested(form: WireFormat[M, P]) -> Converter[M, P]:
    """Make the converter of a field that holds a message."""
    return Converter(form.to_pb, form.read)


def many(form: WireFormat[M, P]) -> Converter[Iterable[M], Iterable[P]]:
    """Make the converter of a repeated field of messages."""
    return repeated(nested(form))
