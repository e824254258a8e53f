"""`--output`, `--wide` and `--watch`: one form of output for each reader, the same for every command.

`docs/json.md` has the schema of each document, generated from `tachikoma.cli.documents`.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from tachikoma.cli.show import as_json, warn
from tachikoma.cli.tables import printable
from tachikoma.errors import InvalidRequest, TachikomaError

if TYPE_CHECKING:
    from tachikoma.vocabulary.model import Model

__all__ = [
    "INTERRUPTED",
    "Output",
    "OutputOption",
    "WatchOption",
    "WideOption",
    "chosen_output",
    "expect_output",
    "refuse_names",
    "report",
    "report_failure",
    "show_list",
    "show_value",
    "watch",
]

M = TypeVar("M", bound="Model")

#: Exit code after Ctrl-C, and of a cancelled execution; that of a shell after SIGINT.
INTERRUPTED = 130
#: Between two requests with --watch, in seconds.
WATCH_SECONDS = 2.0
#: Moves the cursor to the first column of the first line and clears the screen (ECMA-48).
CLEAR = "\x1b[H\x1b[2J"


#: `--output` with its value, with or without the separator.
_WRITTEN = re.compile(r"(-o|--output)=?(?P<form>text|json|jsonl|name)")


class Output(StrEnum):
    """Values of `--output`."""

    #: For people.
    TEXT = "text"
    #: One JSON document; a stream has one object a line.
    JSON = "json"
    #: One JSON object a line.
    JSONL = "jsonl"
    #: Ids or names, one a line.
    NAME = "name"

    @property
    def for_programs(self) -> bool:
        """True if the output is JSON."""
        return self in (Output.JSON, Output.JSONL)


class _Chosen:
    """The `--output` of the command that runs, by which its error is shown."""

    output = Output.TEXT


def _choose(value: Output) -> Output:
    _Chosen.output = value
    return value


OutputOption = Annotated[
    Output,
    typer.Option(
        "--output",
        "-o",
        callback=_choose,
        help="text for people; json: one document; jsonl: one object a line; name: only ids or names.",
    ),
]
WideOption = Annotated[bool, typer.Option("--wide", help="Show all columns and whole values in any terminal.")]
WatchOption = Annotated[bool, typer.Option("--watch", help="Show the list again every two seconds, until Ctrl-C.")]


def chosen_output() -> Output:
    """Return the `--output` of the command that runs."""
    return _Chosen.output


def expect_output(words: Sequence[str], default: Output = Output.TEXT) -> None:
    """Take the `--output` of a command line that is not parsed yet, for an error before its option is read."""
    _Chosen.output = default
    own = words[: words.index("--")] if "--" in words else words
    # The value may be the next word.
    for text in (*own, *map("".join, pairwise(own))):
        found = _WRITTEN.fullmatch(text)
        if found is not None:
            _Chosen.output = Output(found["form"])


def show_list(
    values: Sequence[M], output: Output, *, name: Callable[[M], str], text: Callable[[Sequence[M]], None]
) -> None:
    """Print a list.

    Args:
        values: the list.
        output: the form.
        name: returns the id or name of a value.
        text: prints the list for people.
    """
    if output is Output.TEXT:
        text(values)
    elif output is Output.JSON:
        as_json(values)
    else:
        for value in values:
            _line(name(value) if output is Output.NAME else value.to_json())


def show_value(value: M, output: Output, *, text: Callable[[M], None], name: Callable[[M], str] | None = None) -> None:
    """Print one value.

    Args:
        value: the value.
        output: the form.
        text: prints the value for people.
        name: returns its id or name; None if it has none.

    Raises:
        InvalidRequest: the form is `name`, and the value has none.
    """
    if output is Output.TEXT:
        text(value)
    elif output is Output.JSON:
        as_json(value)
    elif output is Output.JSONL:
        _line(value.to_json())
    elif name is not None:
        _line(name(value))
    else:
        refuse_names(output)


def refuse_names(output: Output) -> None:
    """Refuse `-o name` for output without names. Raises InvalidRequest."""
    if output is Output.NAME:
        raise InvalidRequest("-o name: the output of this command has no names; use -o json")


def watch(show: Callable[[Output], None], output: Output, *, again: bool) -> None:
    """Show something once, or repeatedly until Ctrl-C.

    Args:
        show: prints the current state in a form.
        output: the form. What is shown again is no single document, so json becomes jsonl.
        again: the value of `--watch`.

    Raises:
        typer.Exit: Ctrl-C ended it.
    """
    if not again:
        show(output)
        return
    output = Output.JSONL if output is Output.JSON else output
    redraw = output is Output.TEXT and sys.stdout.isatty()
    try:
        while True:
            if redraw:
                sys.stdout.write(CLEAR)
            show(output)
            sys.stdout.flush()
            time.sleep(WATCH_SECONDS)
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None


def report(error: TachikomaError) -> None:
    """Print the error that ends a command to standard error: a line, or a JSON object with `-o json`."""
    report_failure(
        str(error), reason=error.reason, code=error.code, metadata=error.metadata, retry=error.retry_after_seconds
    )


def report_failure(
    text: str, *, reason: str, code: str, metadata: Mapping[str, str] | None = None, retry: float | None = None
) -> None:
    """Print a failure as `report` does.

    Args:
        text: the message.
        reason: stable name of its kind.
        code: the gRPC status code that fits best.
        metadata: facts for programs.
        retry: delay after which a retry may succeed, in seconds; None if a retry does not help.
    """
    if not _Chosen.output.for_programs:
        warn(f"tachikoma: {printable(text)}")
        return
    content = {
        "reason": reason, "code": code, "message": text, "metadata": dict(metadata or {}), "retryAfterSeconds": retry,
    }  # fmt: skip
    warn(json.dumps({"error": content}, ensure_ascii=False))


def _line(text: str) -> None:
    sys.stdout.write(text + "\n")
