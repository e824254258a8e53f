"""The contents of sealed frames: input, window sizes, signals and acknowledgements of a session.

The first byte of a frame is its kind; numbers are in network order. Every kind has a fixed length, except input data
and signal names. Offsets count the bytes of a whole session, so that a repeated frame changes nothing.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias

from tachikoma.vocabulary.requests import WindowSize

__all__ = [
    "INPUT_CREDIT_BYTES",
    "MAX_DATA_BYTES",
    "Accepted",
    "Acknowledge",
    "Close",
    "Data",
    "Detach",
    "End",
    "Frame",
    "Resize",
    "Signal",
    "SignalName",
    "decode",
    "encode",
]

#: Largest number of bytes of input in one frame.
MAX_DATA_BYTES = 252 * 1024
#: Largest number of bytes of input that the agent has not accepted; an orchestrator sends no more.
INPUT_CREDIT_BYTES = 4 * 1024 * 1024

_OFFSET = struct.Struct("!Q")
_SIZE = struct.Struct("!HHHH")
_ACCEPTED = struct.Struct("!QB")
#: Bits of an `Accepted` frame.
_ECHO, _CANONICAL, _ENDED = 1, 2, 4


class SignalName(StrEnum):
    """The signals that a caller may send to the foreground processes of a session."""

    INT = "INT"
    TERM = "TERM"
    HUP = "HUP"
    QUIT = "QUIT"
    USR1 = "USR1"
    USR2 = "USR2"
    TSTP = "TSTP"
    CONT = "CONT"


@dataclass(frozen=True, slots=True)
class Data:
    """Bytes of input."""

    #: Number of input bytes before these.
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class End:
    """The end of input."""

    #: Number of input bytes before the end.
    offset: int


@dataclass(frozen=True, slots=True)
class Resize:
    """A new size of the caller's window."""

    size: WindowSize


@dataclass(frozen=True, slots=True)
class Signal:
    """A signal for the foreground processes."""

    name: SignalName


@dataclass(frozen=True, slots=True)
class Acknowledge:
    """A report of the caller's progress in reading output."""

    #: Number of output bytes, of both streams, that the caller has written to its terminal.
    output: int


@dataclass(frozen=True, slots=True)
class Detach:
    """The end of the attachment; the session continues without a caller."""


@dataclass(frozen=True, slots=True)
class Close:
    """The end of the session: the agent hangs up."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """The agent's report of its progress in writing input. The last one replaces all before."""

    #: Number of input bytes that the command's terminal or pipe has taken.
    offset: int
    #: True if the terminal echoes what is typed.
    echo: bool = False
    #: True if the terminal edits lines (ICANON).
    canonical: bool = False
    #: True if input has ended: the end was delivered, or the command reads no more.
    ended: bool = False


Frame: TypeAlias = Data | End | Resize | Signal | Acknowledge | Detach | Close | Accepted


def encode(frame: Frame) -> bytes:
    """Return a frame as bytes."""
    match frame:
        case Data(offset, data):
            return b"\x01" + _OFFSET.pack(offset) + data
        case End(offset):
            return b"\x02" + _OFFSET.pack(offset)
        case Resize(size):
            return b"\x03" + _SIZE.pack(size.rows, size.columns, size.x_pixels, size.y_pixels)
        case Signal(name):
            return b"\x04" + name.value.encode()
        case Acknowledge(output):
            return b"\x05" + _OFFSET.pack(output)
        case Detach():
            return b"\x06"
        case Close():
            return b"\x07"
        case Accepted(offset, echo, canonical, ended):
            return b"\x10" + _ACCEPTED.pack(offset, _ECHO * echo | _CANONICAL * canonical | _ENDED * ended)


def decode(raw: bytes) -> Frame:
    """Parse a frame.

    Raises:
        ValueError: the bytes are not a frame.
    """
    parser = _PARSERS.get(raw[0]) if raw else None
    if parser is None:
        raise ValueError(f"not a frame of a session (kind {raw[0] if raw else None})")
    try:
        return parser(raw[1:])
    except struct.error as error:
        raise ValueError(f"a frame of kind {raw[0]} has a wrong length: {error}") from None


def _data(body: bytes) -> Data:
    if len(body) - _OFFSET.size > MAX_DATA_BYTES:
        raise ValueError(f"input of {len(body) - _OFFSET.size} bytes in a frame; at most {MAX_DATA_BYTES} are allowed")
    return Data(_OFFSET.unpack_from(body)[0], body[_OFFSET.size :])


def _resize(body: bytes) -> Resize:
    rows, columns, x_pixels, y_pixels = _SIZE.unpack(body)
    return Resize(WindowSize(rows, columns, x_pixels, y_pixels))


def _accepted(body: bytes) -> Accepted:
    offset, flags = _ACCEPTED.unpack(body)
    if flags & ~(_ECHO | _CANONICAL | _ENDED):
        raise ValueError(f"an acknowledgement with unknown flags {flags:#x}")
    return Accepted(offset, bool(flags & _ECHO), bool(flags & _CANONICAL), bool(flags & _ENDED))


def _empty(frame: Frame) -> Callable[[bytes], Frame]:
    def parse(body: bytes) -> Frame:
        if body:
            raise ValueError(f"a frame without content has {len(body)} bytes of it")
        return frame

    return parse


_PARSERS: dict[int, Callable[[bytes], Frame]] = {
    0x01: _data,
    0x02: lambda body: End(_OFFSET.unpack(body)[0]),
    0x03: _resize,
    0x04: lambda body: Signal(SignalName(body.decode("ascii"))),
    0x05: lambda body: Acknowledge(_OFFSET.unpack(body)[0]),
    0x06: _empty(Detach()),
    0x07: _empty(Close()),
    0x10: _accepted,
}
