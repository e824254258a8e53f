"""The output log's frame: what an agent publishes and appends for each chunk it reads.

A frame is a fixed header and the bytes, unchanged. The same frame goes to pub/sub (live) and into the Stream (replay),
whose entry id is `<seq>-0`: one number for both, and a repeated append is refused by Redis itself. `offset` counts the
bytes of both streams before the frame, so a reader knows how much is missing where numbers do not follow.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

__all__ = ["FIELD", "STDERR", "STDOUT", "Frame", "entry_id", "sequence_of"]

#: The one field of a Stream entry.
FIELD = b"f"
STDOUT = 1
STDERR = 2

#: kind, sequence number, offset in bytes, time in µs since the epoch.
_HEADER = struct.Struct("!BQQQ")


@dataclass(frozen=True, slots=True)
class Frame:
    """One chunk of output."""

    #: STDOUT or STDERR.
    kind: int
    #: From 1, without holes, over both streams.
    seq: int
    #: Bytes of both streams before this chunk.
    offset: int
    #: When it was read, in µs since the epoch.
    time_micros: int
    data: bytes

    def encode(self) -> bytes:
        return _HEADER.pack(self.kind, self.seq, self.offset, self.time_micros) + self.data

    @classmethod
    def decode(cls, raw: bytes) -> Frame:
        """Read a frame.

        Raises:
            ValueError: it is not one.
        """
        if len(raw) < _HEADER.size:
            raise ValueError(f"an output frame of {len(raw)} bytes has no header")
        kind, seq, offset, time_micros = _HEADER.unpack_from(raw)
        if kind not in (STDOUT, STDERR) or seq < 1:
            raise ValueError(f"not an output frame (kind {kind}, number {seq})")
        return cls(kind, seq, offset, time_micros, raw[_HEADER.size :])


def entry_id(seq: int) -> str:
    """The Stream's entry id of a sequence number."""
    return f"{seq}-0"


def sequence_of(entry: bytes) -> int:
    """The sequence number of a Stream entry id."""
    return int(entry.partition(b"-")[0])
