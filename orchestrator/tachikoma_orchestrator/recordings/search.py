"""The text of a recording for searches: the lines that its screen had, each with its time.

A search of the raw output would find neither what a full-screen program draws in pieces nor what was typed and
corrected. So the output is drawn on a model of the terminal, and its lines are written down while it changes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import BinaryIO

from tachikoma.vocabulary.requests import WindowSize
from tachikoma_orchestrator.sessions.screen import open_screen

__all__ = ["ScreenText", "matching_lines"]

#: Output that is drawn, in bytes; text after it is not found.
MAX_INDEXED_BYTES = 16 * 1024 * 1024
#: Output that is drawn between two looks at the screen, in bytes.
PIECE_BYTES = 2048
#: Pause in the output, in microseconds, after which the screen is read. So a typed line is found once, not per key.
PAUSE_US = 500_000
#: Sequences that clear the screen.
_CLEARING = (b"\x1b[2J", b"\x1b[J", b"\x1b[0J", b"\x1b[3J", b"\x1b[?1049", b"\x1b[?47", b"\x1bc")


class ScreenText:
    """Writes the lines of a screen while output arrives."""

    def __init__(self, file: BinaryIO, rows: int, columns: int) -> None:
        self._file = file
        self._screen = open_screen(WindowSize(rows, columns), scrollback=0)
        self._rows = max(rows, 1)
        self._left = MAX_INDEXED_BYTES
        #: Ends of lines since the last look, and the time of the latest output.
        self._lines, self._at_us = 0, 0
        self._shown: set[str] = set()

    def feed(self, at_us: int, data: bytes) -> None:
        """Draw the next bytes of output, at a time in microseconds from the beginning."""
        data, self._left = data[: self._left], max(0, self._left - len(data))
        if not data:
            return
        if at_us - self._at_us >= PAUSE_US or any(sequence in data for sequence in _CLEARING):
            self.look()
        self._at_us = at_us
        for begin in range(0, len(data), PIECE_BYTES):
            for piece in _pieces(data[begin : begin + PIECE_BYTES], max(1, self._rows // 2)):
                self._screen.feed(piece)
                self._lines += piece.count(b"\n")
                if self._lines >= self._rows // 2 or len(data) >= PIECE_BYTES:
                    self.look()

    def resize(self, rows: int, columns: int) -> None:
        """Change the size of the screen."""
        self.look()
        self._rows = max(rows, 1)
        self._screen.resize(WindowSize(rows, columns))

    def skip(self) -> None:
        """Record that output is missing."""
        self.look()
        self._screen.skip()

    def look(self) -> None:
        """Write the lines that are new on the screen."""
        self._lines = 0
        lines = [line for line in self._screen.text() if line]
        for line in lines:
            if line not in self._shown:
                self._file.write(f"{self._at_us}\t{line}\n".encode(errors="replace"))
        self._shown = set(lines)


def _pieces(data: bytes, lines: int) -> Iterator[bytes]:
    """Yield data in pieces of at most a number of lines, so that no line leaves the screen before it is read."""
    parts = data.splitlines(keepends=True) if data.count(b"\n") > lines else [data]
    for begin in range(0, len(parts), lines):
        yield b"".join(parts[begin : begin + lines])


def matching_lines(text: Iterable[bytes], wanted: str, limit: int) -> list[tuple[int, str]]:
    """Return the first lines that contain a text, whatever the case of its letters, with their times."""
    found: list[tuple[int, str]] = []
    folded = wanted.casefold()
    for raw in text:
        at_us, _, line = raw.decode(errors="replace").rstrip("\n").partition("\t")
        if folded in line.casefold() and at_us.isdecimal() and (not found or found[-1][1] != line):
            found.append((int(at_us), line))
            if len(found) == limit:
                break
    return found
