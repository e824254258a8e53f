"""The frames of the output log: one for each chunk of output that an agent reads.

A frame is a fixed header and the bytes, unchanged. The same frame goes to pub/sub (live) and into the stream (replay)
with the entry id `<seq>-0`. So both use one number, and Redis itself refuses a repeated append. `offset` counts the
bytes of both output streams before the frame, so a reader knows the number of missing bytes in a gap.
"""

from __future__ import annotations

import hashlib
import re
import struct
from dataclasses import dataclass

from tachikoma.vocabulary.messages import Message, OutputKind, Result

__all__ = [
    "FIELD", "MODES", "READER_LEFT", "STDERR", "STDOUT", "Frame", "OutputCheck", "entry_id", "parse_reader_position",
    "reader_position", "sequence_of",
]  # fmt: skip

#: Name of the field of a stream entry that contains the frame.
FIELD = b"f"
#: Name of its other field, in some entries of a terminal's output: the modes before the frame, as
#: `tachikoma.sessions.modes.Modes.checkpoint` returns them.
MODES = b"m"
#: Kinds of frames.
STDOUT = 1
STDERR = 2
#: The value of the key `tachikoma.redis.keys.read` after an attached caller has left.
READER_LEFT = b"left"
#: Number of a chunk, and the nonce of the reader.
_READER_POSITION = re.compile(rb"([0-9]{1,18})(?:\.[0-9a-f]{8})?")

#: Kind, sequence number, offset in bytes, time in µs since the epoch.
_HEADER = struct.Struct("!BQQQ")


@dataclass(frozen=True, slots=True)
class Frame:
    """One chunk of output."""

    #: STDOUT or STDERR.
    kind: int
    #: Sequence number over both output streams, from 1 and without gaps.
    seq: int
    #: Number of bytes of both output streams before this chunk.
    offset: int
    #: Time at which the agent read the chunk, in µs since the epoch.
    time_micros: int
    #: The bytes, unchanged.
    data: bytes

    def encode(self) -> bytes:
        """Return the frame as bytes."""
        return _HEADER.pack(self.kind, self.seq, self.offset, self.time_micros) + self.data

    @classmethod
    def decode(cls, raw: bytes) -> Frame:
        """Parse a frame.

        Raises:
            ValueError: the bytes are not a frame.
        """
        if len(raw) < _HEADER.size:
            raise ValueError(f"an output frame of {len(raw)} bytes has no header")
        kind, seq, offset, time_micros = _HEADER.unpack_from(raw)
        if kind not in (STDOUT, STDERR) or seq < 1:
            raise ValueError(f"not an output frame (kind {kind}, number {seq})")
        return cls(kind, seq, offset, time_micros, raw[_HEADER.size :])


def reader_position(seq: int, nonce: str) -> bytes:
    """Return the report of a reader: the number of the last chunk that it read, and 8 hexadecimal digits of its own."""
    return f"{seq}.{nonce}".encode()


def parse_reader_position(raw: bytes) -> int | None:
    """Return the number in a reader's report, with or without a nonce; None for any other value."""
    found = _READER_POSITION.fullmatch(raw)
    return int(found[1]) if found else None


def entry_id(seq: int) -> str:
    """Return the stream's entry id of a sequence number."""
    return f"{seq}-0"


def sequence_of(entry: bytes) -> int:
    """Return the sequence number of a stream's entry id."""
    return int(entry.partition(b"-")[0])


class OutputCheck:
    """A comparison of the output that a reader received with the digests that the agent signed.

    Chunks are not signed, which saves time; the receipt contains digests of all of them. An attacker who can write to
    Redis can change an output or add to it, but the change is detected at the end.
    """

    def __init__(self, *, from_start: bool) -> None:
        """Prepare a check.

        Args:
            from_start: True if the reader receives the output from its beginning; else no change can be detected.
        """
        self._whole = from_start
        #: Number of bytes that were received or reported as missing; None if the reader did not begin at the start.
        self._accounted: int | None = 0 if from_start else None
        self._digests = {OutputKind.STDOUT: hashlib.sha256(), OutputKind.STDERR: hashlib.sha256()}

    def add(self, output: Message) -> None:
        """Add the next message."""
        if output.kind is OutputKind.SCREEN:
            # It replaces all bytes before its place, so they cannot be compared.
            self._accounted, self._whole = output.offset, False
            return
        if self._accounted is not None:
            self._accounted += len(output.data) + output.missing_bytes
        if output.kind is OutputKind.GAP:
            self._whole = False
        elif self._whole and output.kind in self._digests:
            self._digests[output.kind].update(output.data)

    def missing(self, result: Result) -> int:
        """Return the number of bytes that were neither received nor reported as missing; 0 if it is unknown."""
        total = result.stdout_summary.total_bytes + result.stderr_summary.total_bytes
        return max(0, total - self._accounted) if self._accounted is not None else 0

    def altered(self, result: Result) -> str:
        """Return the name of an output stream that was changed; "" if none was, or the check is not possible."""
        if not self._whole:
            return ""
        signed = {OutputKind.STDOUT: result.stdout_summary, OutputKind.STDERR: result.stderr_summary}
        for kind, summary in signed.items():
            if summary.sha256 and summary.sha256 != self._digests[kind].hexdigest():
                return str(kind)
        return ""
