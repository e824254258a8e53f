"""Examples of every command: each command has some, and accepts them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from typing import Any

import pytest

from tachikoma.cli.commands.examples import EXAMPLES, paragraphs
from tachikoma.cli.components import COMPONENTS

#: Longest line of an example: with its margin it fits a terminal of 80 columns in most cases, and never takes three.
LONGEST = 120


def below(path: str, command: Any) -> Iterator[tuple[str, Any]]:
    yield path, command
    for name, found in getattr(command, "commands", {}).items():
        yield from below(f"{path} {name}", found)


COMMANDS = dict(found for component in COMPONENTS for found in below(component.name, component.load()))


def test_each_command_has_examples() -> None:
    assert set(EXAMPLES) == set(COMMANDS)
    assert all(EXAMPLES.values())


@pytest.mark.parametrize(
    ("path", "purpose", "line"),
    [(path, purpose, line) for path, examples in EXAMPLES.items() for purpose, line in examples],
)
def test_an_example_is_accepted_by_its_command(path: str, purpose: str, line: str) -> None:
    assert not purpose.endswith((".", ":"))
    assert len(line) <= LONGEST
    lines = [part for part in re.split(r"[|(]", line) if part.strip().startswith("tachikoma ")]
    assert lines
    for part in lines:
        words = shlex.split(re.split(r"[<>)]", part)[0])[1:]
        parse(words)


def parse(words: list[str]) -> None:
    """Give a command line to the command that it names; wrong options and values raise."""
    path = words.pop(0)
    while words and f"{path} {words[0]}" in COMMANDS:
        path = f"{path} {words.pop(0)}"
    command = COMMANDS[path]
    if path == "cancel" and not words:
        # Of a pipe, whose reader appends the ids.
        words = ["5f3a"]
    context = command.make_context(path, words, resilient_parsing=False)
    assert not getattr(command, "commands", {}) or not context.args


@pytest.mark.parametrize("path", ["exec", "agents", "agents drain", "identity ca issue"])
def test_examples_are_in_the_help(run: Any, path: str) -> None:
    shown = run(*path.split(), "--help").out
    assert "Examples:" in shown
    for _, line in EXAMPLES[path]:
        assert line.split(" -- ")[0][:60].strip() in " ".join(shown.split())


def test_a_command_shows_only_options_of_its_own(run: Any) -> None:
    assert "--install-completion" not in run("batches", "--help").out


def test_lines_of_a_paragraph_are_joined() -> None:
    assert paragraphs("  One\n  two.\n\n\n  Three.\n") == ["One two.", "Three."]
    assert paragraphs("") == []
