"""Messages of a session in Redis: entries of the input stream, and what an agent publishes.

An entry of `agent.<id>:input:<exec>` has one field: an offer, or a sealed frame. A message on the channel
`agent.<id>:session:<exec>` begins with a letter for its kind.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from tachikoma.sessions.frames import MAX_DATA_BYTES
from tachikoma.sessions.sealing import OVERHEAD_BYTES

__all__ = [
    "ANSWER_SECONDS",
    "MAX_ENTRY_BYTES",
    "OFFER_SECONDS",
    "Answer",
    "Entry",
    "Notice",
    "Offer",
    "OfferWanted",
    "Sealed",
    "decode_entry",
    "decode_notice",
    "encode_entry",
    "encode_notice",
]

#: Time within which an offer must be accepted.
OFFER_SECONDS = 30
#: Lifetime of the last answer in Redis.
ANSWER_SECONDS = 3600
#: Largest number of bytes of an entry or notice: a full frame of input, or a signed message with its chain.
MAX_ENTRY_BYTES = MAX_DATA_BYTES + OVERHEAD_BYTES + 64 * 1024

_OFFER, _FRAME = b"o", b"f"
_ANSWER, _SEALED, _WANTED = b"A", b"F", b"W"


@dataclass(frozen=True, slots=True)
class Offer:
    """A signed `SessionOffer`, not yet verified."""

    token: str


@dataclass(frozen=True, slots=True)
class Answer:
    """A signed `SessionAnswer`, not yet verified."""

    token: str


@dataclass(frozen=True, slots=True)
class Sealed:
    """A sealed frame, not yet opened."""

    raw: bytes


@dataclass(frozen=True, slots=True)
class OfferWanted:
    """A notice of an agent without keys for the session: its command has just started, or its worker restarted."""


Entry: TypeAlias = Offer | Sealed
Notice: TypeAlias = Answer | Sealed | OfferWanted


def encode_entry(entry: Entry) -> dict[str | bytes, str | bytes | int | float]:
    """Return the fields of an entry of the input stream."""
    return {_OFFER: entry.token.encode()} if isinstance(entry, Offer) else {_FRAME: entry.raw}


def decode_entry(fields: Mapping[bytes, bytes]) -> Entry:
    """Parse an entry of the input stream.

    Raises:
        ValueError: the fields are not those of an entry.
    """
    if len(fields) == 1:
        for name, raw in fields.items():
            if name in (_OFFER, _FRAME) and len(raw) <= MAX_ENTRY_BYTES:
                return Offer(raw.decode("ascii")) if name == _OFFER else Sealed(raw)
    raise ValueError(f"not an entry of a session's input (fields {[name[:20] for name in list(fields)[:5]]})")


def encode_notice(notice: Notice) -> bytes:
    """Return a notice as bytes."""
    match notice:
        case Answer(token):
            return _ANSWER + token.encode()
        case Sealed(raw):
            return _SEALED + raw
        case OfferWanted():
            return _WANTED


def decode_notice(raw: bytes) -> Notice:
    """Parse a notice.

    Raises:
        ValueError: the bytes are not a notice.
    """
    kind, body = raw[:1], raw[1:]
    if len(raw) <= MAX_ENTRY_BYTES:
        if kind == _ANSWER:
            return Answer(body.decode("ascii"))
        if kind == _SEALED:
            return Sealed(body)
        if raw == _WANTED:
            return OfferWanted()
    raise ValueError(f"not a notice of a session ({len(raw)} bytes, kind {kind!r})")
