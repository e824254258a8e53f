"""The place of work in a distributed trace, as W3C Trace Context writes it (https://w3.org/TR/trace-context)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Self

__all__ = ["METADATA_KEY", "TRACEPARENT", "TraceParent"]

#: Name of the variable that contains a `traceparent`, as OpenTelemetry passes it to processes.
TRACEPARENT = "TRACEPARENT"
#: Key of the `traceparent` in the metadata of a gRPC call.
METADATA_KEY = "traceparent"

_FORM = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.ASCII | re.DOTALL)
#: Flags that this version knows: sampled, and a random trace id.
_KNOWN_FLAGS = 0x03
#: Longest text that is read; the form of version 00 has 55 characters.
_MAX_CHARS = 256


@dataclass(frozen=True, slots=True)
class TraceParent:
    """A span that other spans belong under."""

    #: 32 hexadecimal digits, not all zero.
    trace_id: str
    #: 16 hexadecimal digits, not all zero.
    span_id: str
    #: Bit 0 says that the trace is recorded.
    flags: int

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Return the span that a `traceparent` names, or None if the text has not the form of section 3.2.2.

        Flags that this version does not know are cleared. A later version may append fields, which are ignored.
        """
        match = _FORM.fullmatch(text) if len(text) <= _MAX_CHARS else None
        if match is None:
            return None
        version, trace_id, span_id, flags, more = match.groups()
        if version == "ff" or (version == "00" and more) or not int(trace_id, 16) or not int(span_id, 16):
            return None
        return cls(trace_id, span_id, int(flags, 16) & _KNOWN_FLAGS)

    def __str__(self) -> str:
        return f"00-{self.trace_id}-{self.span_id}-{self.flags:02x}"
