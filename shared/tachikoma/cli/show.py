"""Output of the CLI: tables and facts for people, JSON for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import datetime
from enum import StrEnum
from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tachikoma.vocabulary.model import Model
from tachikoma.vocabulary.states import ExecState

__all__ = [
    "Output",
    "OutputOption",
    "as_json",
    "clock",
    "colour_of",
    "facts",
    "printable",
    "raw_json",
    "short_id",
    "state_text",
    "table",
    "warn",
]

#: Columns of a table that is not read on a terminal; nothing is folded there.
PIPE_COLUMNS = 400


class Output(StrEnum):
    """Values of `--output`."""

    TEXT = "text"
    JSON = "json"


OutputOption = Annotated[Output, typer.Option("--output", "-o", help="text for people, json for programs.")]

_COLOURS = {
    ExecState.SUCCEEDED: "green",
    ExecState.QUEUED: "cyan",
    ExecState.STARTED: "cyan",
    ExecState.PENDING_APPROVAL: "yellow",
    ExecState.CANCELLED: "yellow",
    ExecState.EXPIRED: "yellow",
}


def colour_of(state: ExecState) -> str:
    """Return the colour of a state: success green, open cyan, waiting or stopped yellow, others red."""
    return _COLOURS.get(state, "red")


def state_text(state: ExecState) -> Text:
    """Return a state in its colour."""
    return Text(state, style=colour_of(state))


def printable(text: str) -> str:
    """Escape control characters of foreign text, which could otherwise control the terminal."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def short_id(spiffe_id: str) -> str:
    """Return the path of a SPIFFE ID, which is enough for people; JSON has the whole."""
    return spiffe_id.partition("://")[2].partition("/")[2]


def clock(time: datetime | None) -> str:
    """Format a time in the local time zone, with its date unless that is today."""
    if time is None:
        return "-"
    local = time.astimezone()
    today = datetime.now().astimezone().date() == local.date()
    return local.strftime("%H:%M:%S" if today else "%Y-%m-%d %H:%M:%S")


def as_json(values: Model | Iterable[Model]) -> None:
    """Print values as JSON with the spec's names: one value as an object, several as an array."""
    if isinstance(values, Model):
        raw_json(values.to_dict())
    else:
        raw_json([value.to_dict() for value in values])


def raw_json(content: object) -> None:
    """Print plain data as JSON."""
    sys.stdout.write(json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def warn(text: str) -> None:
    """Print a line to standard error. One that takes no more, for instance a closed terminal, changes no outcome."""
    with suppress(OSError):
        typer.echo(text, err=True)


def facts(rows: Iterable[tuple[str, str]]) -> None:
    """Print names and values, one of each a line, the values aligned."""
    rows = list(rows)
    width = max((len(name) for name, _ in rows), default=0)
    for name, value in rows:
        typer.echo(f"{name:<{width}}  {printable(value)}")


def table(columns: Sequence[str], rows: Iterable[Sequence[str | Text]]) -> None:
    """Print a table; values are folded on a terminal and never shortened."""
    console = Console(width=None if sys.stdout.isatty() else PIPE_COLUMNS, highlight=False)
    shown = Table(box=SIMPLE_HEAD if sys.stdout.isatty() else None, pad_edge=False, show_edge=False)
    for column in columns:
        shown.add_column(column, overflow="fold")
    for row in rows:
        shown.add_row(*(cell if isinstance(cell, Text) else Text(printable(cell)) for cell in row))
    console.print(shown)
