"""Recordings of terminals in the formats of asciinema: asciicast version 3, and version 2 for older players.

Sources: https://docs.asciinema.org/manual/asciicast/v3/ and https://docs.asciinema.org/manual/asciicast/v2/. A file has
a header and one event in each line. Times here are whole microseconds from the beginning of the recording, so intervals
of version 3 have no rounding error.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

__all__ = ["EXIT", "INPUT", "MARKER", "OUTPUT", "RESIZE", "CastEvent", "CastHeader", "encode_event", "read_cast"]

#: Codes of events: output, input, a marker with a text, a size as `columns x rows`, the exit code (version 3 only).
OUTPUT, INPUT, MARKER, RESIZE, EXIT = "o", "i", "m", "r", "x"
#: Longest time that a file may contain: a year.
MAX_US = 366 * 24 * 3600 * 1_000_000


class CastEvent(NamedTuple):
    """One event."""

    #: Microseconds from the beginning of the recording.
    at_us: int
    #: `OUTPUT`, `INPUT`, `MARKER`, `RESIZE` or `EXIT`; a reader ignores others.
    code: str
    data: str


@dataclass(frozen=True, slots=True)
class CastHeader:
    """The first line of a recording."""

    columns: int
    rows: int
    #: Second since the epoch at which the recording began; 0 if unknown.
    timestamp: int = 0
    #: Value of TERM; empty if unknown.
    term: str = ""
    #: The command; empty if unknown.
    command: str = ""

    def encode(self, version: int = 3) -> str:
        """Return the line, without its end, for version 2 or 3."""
        fields: dict[str, object] = {"version": version}
        if version == 2:
            fields |= {"width": self.columns, "height": self.rows}
        else:
            fields["term"] = {"cols": self.columns, "rows": self.rows} | ({"type": self.term} if self.term else {})
        if self.timestamp:
            fields["timestamp"] = self.timestamp
        if self.command:
            fields["command"] = self.command
        if version == 2 and self.term:
            fields["env"] = {"TERM": self.term}
        return json.dumps(fields, ensure_ascii=False)


def encode_event(event: CastEvent, since_us: int = 0) -> str:
    """Return the line of an event, without its end.

    Args:
        event: the event.
        since_us: time of the event before it, for version 3; 0 for version 2, whose times are absolute.
    """
    seconds, micros = divmod(event.at_us - since_us, 1_000_000)
    return f"[{seconds}.{micros:06d}, {json.dumps(event.code)}, {json.dumps(event.data, ensure_ascii=False)}]"


def read_cast(lines: Iterable[bytes]) -> tuple[CastHeader, Iterator[CastEvent]]:
    """Read a recording of version 2 or 3.

    Args:
        lines: its lines; they are read as the events are.

    Returns:
        The header, and the events. Reading an event raises ValueError if its line is none.

    Raises:
        ValueError: the first line is no header.
    """
    remaining = iter(lines)
    try:
        fields = json.loads(next(remaining))
        version = fields["version"]
        if version == 3:
            size, term = (fields["term"]["cols"], fields["term"]["rows"]), fields["term"].get("type", "")
        elif version == 2:
            size, term = (fields["width"], fields["height"]), fields.get("env", {}).get("TERM", "")
        else:
            raise ValueError(f"version {str(version)[:20]} is not known")
        texts = (str(term), str(fields.get("command", "")))
        header = CastHeader(int(size[0]), int(size[1]), int(fields.get("timestamp", 0)), *texts)
    except StopIteration:
        raise ValueError("the recording is empty") from None
    except (KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError(f"the first line is no header of a recording: {error!r}") from None
    return header, _events(remaining, absolute=version == 2)


def _events(lines: Iterator[bytes], *, absolute: bool) -> Iterator[CastEvent]:
    now_us = 0
    for line in lines:
        if not line.strip() or line.startswith(b"#"):
            continue
        try:
            seconds, code, data = json.loads(line)
            if not math.isfinite(seconds):
                raise ValueError("its time is no number")
            micros = round(min(max(seconds, 0), MAX_US / 1_000_000) * 1_000_000)
        except (ValueError, TypeError, OverflowError, RecursionError) as error:
            raise ValueError(f"a line is no event of a recording: {error}") from None
        now_us = max(now_us, micros) if absolute else now_us + micros
        yield CastEvent(now_us, str(code), str(data))
