"""How the CLI shows things: tables for people, JSON for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
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

__all__ = ["Output", "OutputOption", "as_json", "clock", "colour_of", "printable", "short_id", "table"]


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
    """Good green, under way cyan, ended by somebody yellow, the rest red."""
    return _COLOURS.get(state, "red")


def printable(text: str) -> str:
    """Text that came from elsewhere, so that it cannot command the terminal."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def short_id(spiffe_id: str) -> str:
    """The path of a SPIFFE ID, which is what tells people apart; JSON has the whole."""
    return spiffe_id.partition("://")[2].partition("/")[2]


def clock(time: datetime | None) -> str:
    """A time for people, in their own zone; the day only where it is not today."""
    if time is None:
        return "-"
    local = time.astimezone()
    today = datetime.now().astimezone().date() == local.date()
    return local.strftime("%H:%M:%S" if today else "%Y-%m-%d %H:%M:%S")


def as_json(values: Model | Iterable[Model]) -> None:
    """Print values as JSON with the spec's names: one as an object, several as an array."""
    if isinstance(values, Model):
        content: object = values.to_dict()
    else:
        content = [value.to_dict() for value in values]
    sys.stdout.write(json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def table(columns: Sequence[str], rows: Iterable[Sequence[str | Text]]) -> None:
    """Print a table; never cut where a program or a file reads it."""
    console = Console(width=None if sys.stdout.isatty() else 400, highlight=False)
    shown = Table(box=SIMPLE_HEAD if sys.stdout.isatty() else None, pad_edge=False, show_edge=False)
    for column in columns:
        shown.add_column(column, overflow="fold")
    for row in rows:
        shown.add_row(*(cell if isinstance(cell, Text) else Text(printable(cell)) for cell in row))
    console.print(shown)
