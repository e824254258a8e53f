"""Values that need no conversion are the same with and without pydantic."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer

from tachikoma.cli.plain_values import keep_plain_values


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


def application(shown: list[Any]) -> Any:
    app = typer.Typer()

    @app.command()
    def command(
        name: str,
        words: Annotated[list[str] | None, typer.Argument()] = None,
        text: str | None = None,
        default: str = "d",
        many: Annotated[list[str] | None, typer.Option()] = None,
        colour: Colour = Colour.RED,
        other: Colour | None = None,
        loose: Annotated[Colour | None, typer.Option(case_sensitive=False)] = None,
        number: int | None = None,
        part: float = 0.5,
        path: Path | None = None,
        flag: bool = False,
        least: Annotated[int, typer.Option(min=3)] = 3,
    ) -> None:
        shown.append((name, words, text, default, many, colour, other, loose, number, part, path, flag, least))

    return typer.main.get_command(app)


def keep_all(command: Any) -> None:
    for parameter in command.get_params(command.context_class(command)):
        keep_plain_values(parameter)


def run(prepare: Callable[[Any], None], line: list[str]) -> tuple[int, str, list[Any]]:
    shown: list[Any] = []
    command = application(shown)
    prepare(command)
    code, told = invoke(command, line)
    return code, told, shown


def invoke(command: Any, line: list[str]) -> tuple[int, str]:
    try:
        command.main(line, standalone_mode=False)
    except typer.Exit as end:
        return end.exit_code, ""
    except typer.TyperException as error:
        return 2, f"{type(error).__name__}: {error.format_message()}"
    return 0, ""


@pytest.mark.parametrize(
    "line",
    [
        ["a"], ["a", "b", "-c"], ["a", "--text", ""], ["a", "--text", "x", "--default", "\udc80"],
        ["a", "--many", "1", "--many", "2"], ["a", "--colour", "blue"], ["a", "--other", "red"],
        ["a", "--colour", "BLUE"], ["a", "--colour", "green"], ["a", "--loose", "BLUE"], ["a", "--loose", "blue"],
        ["a", "--number", "5"], ["a", "--number", "x"], ["a", "--part", "1e3"], ["a", "--path", "/tmp/x"],
        ["a", "--flag"], ["a", "--least", "2"], ["a", "--least", "4"], [], ["a", "--nothing"], ["", "", ""],
    ],
)  # fmt: skip
def test_a_command_line_has_the_same_values_or_the_same_error(line: list[str]) -> None:
    assert run(keep_all, line) == run(lambda _: None, line)


def test_a_typer_that_converts_otherwise_is_left_alone() -> None:
    class Other:
        """A parameter of another version."""

    other = Other()
    keep_plain_values(other)
    assert vars(other) == {}
