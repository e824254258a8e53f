"""Tables that fit the terminal: a row is one line at every width.

On a terminal, columns that people can do without are left out, and long values end with an ellipsis. In a pipe and with
`--wide` nothing is shortened.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import typer

__all__ = ["Cell", "Column", "columns_of_terminal", "fitted", "printable", "shortened", "table"]

#: Characters between two columns.
GAP = 2
#: Least characters of an id in a table. Each command accepts an unambiguous beginning of an id.
ID_CHARACTERS = 8
#: Characters of a column that may be shortened, before other columns are left out, and after that.
SHORTENED = (24, 8)
#: The last character of a shortened value.
ELLIPSIS = "…"


@dataclass(frozen=True, slots=True)
class Cell:
    """A value of a table, in a colour."""

    text: str
    #: Name of the colour for `typer.style`; empty for none.
    colour: str = ""


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table."""

    name: str
    #: Columns with the greatest number are left out first; one with 0 never is.
    priority: int = 0
    #: Whether its values are execution ids, of which a beginning is enough.
    is_id: bool = False
    #: Whether its values may end with an ellipsis before another column is left out.
    elastic: bool = False


def printable(text: str) -> str:
    """Escape control characters of foreign text, which could otherwise control the terminal."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def columns_of_terminal() -> int | None:
    """Return the width of the terminal on standard output; None if standard output is not a terminal."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def table(columns: Sequence[Column], rows: Iterable[Sequence[str | Cell]], *, wide: bool = False) -> None:
    """Print a table, fitted to the terminal unless `wide`."""
    cells = [[_one_line(cell) for cell in row] for row in rows]
    width = None if wide else columns_of_terminal()
    coloured = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    for number, line in enumerate(fitted(columns, cells, width)):
        texts = [_styled(cell, bold=not number) if coloured else cell.text for cell in line]
        sys.stdout.write("".join(texts).rstrip() + "\n")


def fitted(columns: Sequence[Column], rows: Sequence[Sequence[Cell]], width: int | None) -> list[list[Cell]]:
    """Return the lines of a table with its heading, each cell padded.

    Args:
        columns: the columns, from left to right.
        rows: a cell for each column.
        width: characters of a line; None for no limit.
    """
    grid = [[Cell(column.name) for column in columns], *rows]
    wanted = [max(map(_width, (row[i] for row in grid))) for i in range(len(columns))]
    shown = list(range(len(columns)))
    if width is not None:
        shown, wanted = _fit(columns, grid, wanted, width)
    # A beginning of an id can be copied only as long as it differs from that of all others.
    copied = [
        column.is_id and wanted[i] >= _unambiguous([row[i].text for row in grid[1:]])
        for i, column in enumerate(columns)
    ]
    lines = []
    for row in grid:
        line = [_padded(row[i], wanted[i], is_id=copied[i]) for i in shown[:-1]]
        last = shown[-1]
        lines.append([*line, Cell(_cut(row[last].text, wanted[last], copied[last]), row[last].colour)])
    return lines


def _fit(
    columns: Sequence[Column], grid: Sequence[Sequence[Cell]], natural: Sequence[int], width: int
) -> tuple[list[int], list[int]]:
    """Return the columns to show and the width of each, by the steps that cost a reader the least."""
    shown, wanted = list(range(len(columns))), list(natural)

    def excess() -> int:
        return sum(wanted[i] for i in shown) + GAP * (len(shown) - 1) - width

    def shorten(indices: Iterable[int], least: int) -> None:
        for i in indices:
            wanted[i] -= min(max(excess(), 0), max(wanted[i] - least, 0))

    elastic = [i for i in shown if columns[i].elastic]
    shorten(elastic, SHORTENED[0])
    for i in shown:
        if columns[i].is_id and excess() > 0:
            # Not less than its heading: the list may be empty.
            least = max(len(columns[i].name), _unambiguous([row[i].text for row in grid[1:]]))
            wanted[i] = min(wanted[i], least)
    while excess() > 0 and any(columns[i].priority for i in shown):
        shown.remove(max(reversed(shown), key=lambda i: columns[i].priority))
    shorten([i for i in elastic if i in shown], SHORTENED[1])
    # Long ids that differ only at their end are cut too, for which `--wide` is needed: first to half of the line.
    ids = [i for i in shown if columns[i].is_id]
    shorten(ids, max(ID_CHARACTERS, width // 2))
    shorten([i for i in shown if not columns[i].is_id][::-1], len(ELLIPSIS))
    shorten(ids, ID_CHARACTERS)
    # What was left out may have made room.
    for i in (i for i in shown if columns[i].elastic or columns[i].is_id):
        wanted[i] += min(max(-excess(), 0), natural[i] - wanted[i])
    return shown, wanted


def _unambiguous(ids: Sequence[str]) -> int:
    """Return a length at which the beginnings of ids differ from each other."""
    longest = max(map(len, ids), default=0)
    for length in range(ID_CHARACTERS, longest):
        if len({text[:length] for text in ids}) == len(set(ids)):
            return length
    return longest


def _one_line(cell: str | Cell) -> Cell:
    text, colour = (cell.text, cell.colour) if isinstance(cell, Cell) else (cell, "")
    return Cell(printable(text).replace("\n", r"\n"), colour)


def _width(cell: Cell) -> int:
    return _text_width(cell.text)


def _text_width(text: str) -> int:
    """Return the columns of a terminal that a text takes; wide characters take two."""
    if text.isascii():
        return len(text)
    # Imported here, since the texts of most tables are ASCII and the import is slow.
    from rich.cells import cell_len

    return cell_len(text)


def shortened(text: str, width: int) -> str:
    """Return a text in at most `width` columns of a terminal; a longer one ends with an ellipsis."""
    if _text_width(text) <= width:
        return text
    kept = text[: max(width - 1, 0)]
    while _text_width(kept) > width - 1:
        kept = kept[:-1]
    return kept + ELLIPSIS


def _cut(text: str, width: int, is_id: bool) -> str:
    """Return a value in at most `width` columns. An unambiguous id has no ellipsis, so that it can be copied."""
    return text[:width] if is_id else shortened(text, width)


def _padded(cell: Cell, width: int, *, is_id: bool) -> Cell:
    text = _cut(cell.text, width, is_id)
    return Cell(text + " " * (width - _text_width(text) + GAP), cell.colour)


def _styled(cell: Cell, *, bold: bool) -> str:
    return typer.style(cell.text, fg=cell.colour or None, bold=bold or None) if cell.colour or bold else cell.text
