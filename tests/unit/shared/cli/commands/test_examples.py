"""Examples of every command: each command has some, and accepts them."""

from __future__ import annotations

import re
import shlex
from typing import Any

import pytest

from documents import COMMANDS, accept
from tachikoma.cli.commands.examples import EXAMPLES, paragraphs

#: Longest line of an example: with its margin it fits a terminal of 80 columns in most cases, and never takes three.
LONGEST = 120


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
        accept(words)


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
