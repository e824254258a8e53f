"""Output of the CLI: facts for people, JSON for programs, and times as people read them."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import typer

from tachikoma.cli.tables import Cell, printable
from tachikoma.vocabulary.states import ExecState

if TYPE_CHECKING:
    from tachikoma.vocabulary.model import Model

__all__ = ["age", "as_json", "clock", "colour_of", "facts", "moment", "raw_json", "short_id", "state_cell", "warn"]

_COLOURS = {
    ExecState.SUCCEEDED: "green",
    ExecState.QUEUED: "cyan",
    ExecState.STARTED: "cyan",
    ExecState.PENDING_APPROVAL: "yellow",
    ExecState.CANCELLED: "yellow",
    ExecState.EXPIRED: "yellow",
}

#: Units of an age and their seconds, from the largest.
_UNITS = (("d", 86_400), ("h", 3600), ("m", 60), ("s", 1))


def colour_of(state: ExecState) -> str:
    """Return the colour of a state: success green, open cyan, waiting or stopped yellow, others red."""
    return _COLOURS.get(state, "red")


def state_cell(state: ExecState) -> Cell:
    """Return a state in its colour."""
    return Cell(state, colour_of(state))


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


def age(time: datetime | None) -> str:
    """Format a time as its distance from now in one unit: `5m ago`, `in 2h`."""
    if time is None:
        return "-"
    distance = datetime.now(UTC) - time
    seconds = int(abs(distance).total_seconds())
    unit, size = next(((unit, size) for unit, size in _UNITS if seconds >= size), ("s", 1))
    amount = f"{seconds // size}{unit}"
    return f"in {amount}" if distance < -timedelta(seconds=1) else f"{amount} ago"


def moment(time: datetime | None) -> str:
    """Format a time for people, local and relative: `12:00:00 (5m ago)`."""
    return "-" if time is None else f"{clock(time)} ({age(time)})"


def as_json(values: Model | Iterable[Model]) -> None:
    """Print values as JSON with the spec's names: one value as an object, several as an array."""
    from tachikoma.vocabulary.model import Model

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
        typer.echo(f"{name:<{width}}  {printable(value)}".rstrip(" "))
