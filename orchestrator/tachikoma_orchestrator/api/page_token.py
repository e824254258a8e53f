"""The opaque text with which a caller requests the next page of a list."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tachikoma.errors import InvalidRequest

__all__ = ["PageToken"]

#: Scores in Redis are doubles: an altered index can contain any of them, and the list must still advance past it.
_FORM = re.compile(r"(-?[0-9]{1,400}):([0-9]{1,12})")


@dataclass(frozen=True, slots=True)
class PageToken:
    """A position in a list that is sorted by time, newest first: directly after the last execution of a page."""

    #: Time of that execution, in milliseconds since the epoch.
    at_ms: int
    #: Number of executions of the same millisecond up to and including it.
    seen: int

    @classmethod
    def parse(cls, text: str) -> PageToken | None:
        """Read a token; the empty text is the beginning of the list and gives None.

        Raises:
            InvalidRequest: the text is not a token of this server.
        """
        if not text:
            return None
        found = _FORM.fullmatch(text)
        if found is None:
            raise InvalidRequest(f"{text[:80]!r} is not a page token; use the nextPageToken of the previous page")
        return cls(int(found[1]), int(found[2]))

    def __str__(self) -> str:
        """Return the form that `parse` reads."""
        return f"{self.at_ms}:{self.seen}"

    @property
    def position(self) -> tuple[int, int]:
        """The position as `Ledger.newest` takes it."""
        return self.at_ms, self.seen

    @classmethod
    def after(cls, previous: PageToken | None, at_ms: int) -> PageToken:
        """Return the position after an execution of the given time that follows the previous position."""
        seen = previous.seen if previous is not None and previous.at_ms == at_ms else 0
        return cls(at_ms, seen + 1)
