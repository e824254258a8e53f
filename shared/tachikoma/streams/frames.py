"""The output log's frame: what an agent publishes and appends for each chunk it reads.

A frame is a fixed header and the bytes, unchanged. The same frame goes to pub/sub (live) and into the Stream (replay),
whose entry id is `<seq>-0`: one number for both, and a repeated append is refused by Redis itself. `offset` counts the
bytes of both streams before the frame, so a reader knows how much is missing where numbers do not follow.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass

from tachikoma.vocabulary.results import ExecOutput, ExecResponse, OutputKind

__all__ = ["FIELD", "STDERR", "STDOUT", "Frame", "OutputCheck", "entry_id", "sequence_of"]

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


class OutputCheck:
    """Holds what a reader got of an output against the digests that its agent signed.

    Chunks travel unsigned, which costs nothing; the receipt closes them. So whoever can write to Redis can add to an
    output, or change it, but not without its being found at the end.
    """

    def __init__(self, *, from_start: bool) -> None:
        """Prepare a check; without the beginning nothing can be told."""
        self._whole = from_start
        #: Bytes that came or were told to be missing; None where those before are not known.
        self._accounted: int | None = 0 if from_start else None
        self._digests = {OutputKind.STDOUT: hashlib.sha256(), OutputKind.STDERR: hashlib.sha256()}

    def add(self, output: ExecOutput) -> None:
        """Take the next message."""
        if self._accounted is not None:
            self._accounted += len(output.data) + output.missing_bytes
        if output.kind is OutputKind.GAP:
            self._whole = False
        elif self._whole and output.kind in self._digests:
            self._digests[output.kind].update(output.data)

    def missing(self, result: ExecResponse) -> int:
        """Bytes that neither came nor were told to be missing, where that is known."""
        total = result.stdout_summary.total_bytes + result.stderr_summary.total_bytes
        return max(0, total - self._accounted) if self._accounted is not None else 0

    def altered(self, result: ExecResponse) -> str:
        """The stream that is not as the agent wrote it; empty where both are, or it cannot be told."""
        if not self._whole:
            return ""
        told = {OutputKind.STDOUT: result.stdout_summary, OutputKind.STDERR: result.stderr_summary}
        for kind, summary in told.items():
            if summary.sha256 and summary.sha256 != self._digests[kind].hexdigest():
                return str(kind)
        return ""
