"""Values of options that several commands share: durations, pairs, confirmations and reasons."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from datetime import timedelta
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated

import typer

from tachikoma.cli.output import chosen_output, expect_output, report_failure
from tachikoma.errors import InvalidRequest
from tachikoma.vocabulary.pairs import parse_pair, parse_pairs

__all__ = [
    "DetachOption",
    "EnvironmentOption",
    "OutputFolderOption",
    "ReasonOption",
    "YesOption",
    "confirm",
    "duration",
    "environment",
    "interactive",
    "pairs",
    "refuse_option",
    "remote_command",
    "required_reason",
]

#: Exit code of a command line that is wrong.
USAGE = 2

YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")]
DetachOption = Annotated[bool, typer.Option("--detach", "-d", help="Do not wait; print the id.")]
EnvironmentOption = Annotated[
    list[str] | None, typer.Option("--env", "-e", help="NAME=value, or NAME for the value on this host.")
]
OutputFolderOption = Annotated[
    Path | None,
    typer.Option(
        "--output-dir",
        help="Also save stdout, stderr, result and signed receipt of each execution in FOLDER/ID.",
        metavar="FOLDER",
    ),
]
ReasonOption = Annotated[str, typer.Option("--reason", "-r", help="Reason, recorded in the audit trail.")]


def duration(text: str, option: str) -> timedelta:
    """Read a duration such as 1h30m.

    Raises:
        InvalidRequest: the text is not a duration; the message begins with the option.
    """
    # Imported here: with it comes pydantic.
    from tachikoma.vocabulary.durations import parse_duration

    try:
        return parse_duration(text)
    except ValueError as error:
        raise InvalidRequest(f"{option}: {error}") from None


def pairs(given: Iterable[str] | None, option: str) -> dict[str, str]:
    """Read repeated NAME=value.

    Raises:
        InvalidRequest: one is not NAME=value; the message begins with the option.
    """
    try:
        return parse_pairs(given or ())
    except ValueError as error:
        raise InvalidRequest(f"{option}: {error}") from None


def environment(given: Iterable[str]) -> dict[str, str]:
    """Read the variables of `--env`; a name alone takes the value on this host, as with `docker run -e NAME`.

    Raises:
        InvalidRequest: one is not NAME=value, or is not set on this host.
    """
    found: dict[str, str] = {}
    for item in given:
        if "=" not in item:
            if item not in os.environ:
                raise InvalidRequest(f"the variable {item!r} is not set here; write {item}=value")
            found[item] = os.environ[item]
            continue
        try:
            name, value = parse_pair(item)
        except ValueError as error:
            raise InvalidRequest(f"--env: {error}") from None
        found[name] = value
    return found


def remote_command(given: list[str]) -> list[str]:
    """Return the command of another host, without the `--` that may come before it."""
    return given[1:] if given[0] == "--" else given


def refuse_option(context: typer.Context, words: Sequence[str]) -> None:
    """Refuse an option that the command does not have, which would be taken for an agent.

    Args:
        context: of the command.
        words: the first word that is no option of the command, and those after it.

    Raises:
        typer.Exit: the first word is an option.
    """
    if not words or not words[0].startswith("-") or words[0] == "--":
        return
    # The option for output may be among the words.
    expect_output(words, chosen_output())
    option = words[0].partition("=")[0]
    known = [name for parameter in context.command.params for name in parameter.opts if name.startswith("--")]
    close = get_close_matches(option, known, n=1)
    hint = f"did you mean {close[0]}?" if close else f"`tachikoma {context.info_name} --help` lists them"
    text = f"{context.info_name} has no option {option}; {hint}"
    report_failure(text, reason="USAGE", code="INVALID_ARGUMENT", metadata={"command": context.command_path})
    raise typer.Exit(USAGE)


def interactive() -> bool:
    """Return whether a person can answer a question: standard input is a terminal."""
    return sys.stdin is not None and sys.stdin.isatty()


def confirm(question: str, *, yes: bool, instead: str = "--yes to confirm") -> None:
    """Ask for a confirmation, unless `--yes` gave it.

    Args:
        question: the question, without a question mark at its end.
        yes: the value of `--yes`.
        instead: the options that confirm without a terminal.

    Raises:
        InvalidRequest: there is no terminal to ask at.
        typer.Abort: the answer was no.
    """
    if yes:
        return
    if not interactive():
        raise InvalidRequest(f"not a terminal: pass {instead}")
    typer.confirm(f"{question}?", abort=True, err=True)


def required_reason(given: str | None) -> str:
    """Return the reason of the option, or ask for one.

    Raises:
        InvalidRequest: none is given and there is no terminal to ask at.
    """
    if given is not None:
        return given
    if not interactive():
        raise InvalidRequest("not a terminal: pass --reason TEXT")
    return str(typer.prompt("reason", err=True))
