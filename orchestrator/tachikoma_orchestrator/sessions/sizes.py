"""The sizes that a session's terminal has had, each with its place in the output, as the ledger's record holds them."""

from __future__ import annotations

import json
from collections.abc import Iterator

from tachikoma.vocabulary.requests import WindowSize

__all__ = ["SizeHistory"]

#: Sizes that are retained; of more, the oldest are forgotten.
MAX_SIZES = 64
#: Size before the first known one.
DEFAULT = WindowSize(24, 80)


class SizeHistory:
    """Sizes, oldest first."""

    def __init__(self) -> None:
        #: Number of output bytes before the size was changed, and the size.
        self._sizes: list[tuple[int, WindowSize]] = []

    @classmethod
    def parse(cls, text: str) -> SizeHistory:
        """Read a history from a record. Any other text is an empty history, since only a drawing depends on it."""
        history = cls()
        try:
            for offset, rows, columns in json.loads(text or "[]"):
                history.add(int(offset), WindowSize(int(rows), int(columns)))
        except (ValueError, TypeError, OverflowError, RecursionError):
            return cls()
        return history

    def encode(self) -> str:
        """Return the history for a record."""
        return json.dumps([(offset, size.rows, size.columns) for offset, size in self._sizes], separators=(",", ":"))

    def add(self, offset: int, size: WindowSize) -> None:
        """Add a size, unless it is the latest one.

        Args:
            offset: number of output bytes before the change.
            size: the new size.
        """
        size = WindowSize(size.rows or DEFAULT.rows, size.columns or DEFAULT.columns)
        if self._sizes and self._sizes[-1][1] == size:
            return
        self._sizes.append((max(offset, self._sizes[-1][0] if self._sizes else 0), size))
        del self._sizes[:-MAX_SIZES]

    @property
    def first(self) -> WindowSize:
        """The size at the beginning of the output."""
        return self._sizes[0][1] if self._sizes else DEFAULT

    def changes(self) -> Iterator[tuple[int, WindowSize]]:
        """Yield the changes after the first size, each with its place in the output."""
        yield from self._sizes[1:]
