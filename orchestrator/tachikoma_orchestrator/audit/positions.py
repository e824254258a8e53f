"""The positions of the sinks in the audit trail, as `orch:audit:sinks` contains them."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from tachikoma.vocabulary.audit import MAX_NUMBER

__all__ = ["SinkPosition", "cursor_order"]


def cursor_order(cursor: str) -> tuple[int, int]:
    """Return the sort key of a place in a Redis stream."""
    time_ms, _, number = cursor.partition("-")
    return int(time_ms), int(number or 0)


@dataclass(frozen=True, slots=True)
class SinkPosition:
    """The progress of one sink."""

    #: Place in the trail of the last event that the sink took, and the number of that event.
    cursor: str
    seq: int
    #: Time of the last update, in seconds since the epoch.
    at: int

    @classmethod
    def read(cls, raw: bytes) -> SinkPosition | None:
        """Read a position; return None if it was not written by this program."""
        try:
            content = json.loads(raw)
            position = cls(content["cursor"], content["seq"], content["at"])
            if type(position.seq) is not int or type(position.at) is not int or abs(position.seq) > MAX_NUMBER:
                return None
            if not re.fullmatch("[0-9]{1,20}-[0-9]{1,20}", position.cursor):
                return None
            return position if max(cursor_order(position.cursor)) < 2**64 else None
        except (ValueError, TypeError, KeyError, RecursionError):
            return None

    def to_json(self) -> str:
        """Return the text that `read` takes."""
        return json.dumps({"cursor": self.cursor, "seq": self.seq, "at": self.at})
