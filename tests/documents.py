"""The blocks of code in documents, and the command lines in them, for the tests that check and run them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from textwrap import dedent
from typing import Any

from tachikoma.cli.components import COMPONENTS

__all__ = [
    "COMMANDS", "PAGES", "WRAPPERS", "Block", "accept", "blocks", "command_lines", "command_path", "redirections",
    "simple_commands",
]  # fmt: skip

ROOT = Path(__file__).parents[1]
#: Pages with blocks. The examples of `cli.md` are those of the help, which have their own test.
PAGES = sorted({*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")} - {ROOT / "docs/cli.md", ROOT / "CHANGELOG.md"})
_FENCED = re.compile(r"^( *)```(\S*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
#: What separates commands of a line.
_SEPARATORS = {";", "|", "||", "&&", "&"}
_REDIRECTIONS = {"<", ">", ">>"}
#: Programs that run a command of `tachikoma` as another user or in a container.
WRAPPERS = re.compile(r"^(runuser .* --|docker compose .* exec \w+) ")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: Path
    #: Line of the page on which it begins, from 1.
    line: int
    #: Its language; empty if none is named.
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"


def blocks(*languages: str) -> list[Block]:
    """Return the blocks of all pages in one of the languages; without languages, all."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in _FENCED.finditer(text):
            if not languages or match[2] in languages:
                line = text.count("\n", 0, match.start()) + 1
                found.append(Block(page, line, match[2], dedent(match[3])))
    return found


def command_lines(block: Block) -> list[str]:
    """Return what a reader types: the lines after a prompt, joined where a backslash continues them."""
    joined = re.sub(r"\\\n\s*", "", block.text)
    return re.findall(r"^[$#] (\S.*)$", joined, re.MULTILINE)


def _tokens(line: str) -> Iterator[str]:
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    return iter(lexer)


def simple_commands(line: str) -> Iterator[list[str]]:
    """Yield the words of each command of a line, without redirections and comments."""
    words: list[str] = []
    skip = False
    for word in _tokens(line):
        if word in _SEPARATORS:
            yield words
            words = []
        elif word in _REDIRECTIONS:
            skip = True
        elif skip:
            skip = False
        else:
            words.append(word)
    if words:
        yield words


def redirections(line: str) -> dict[str, str]:
    """Return the file after each sign of a redirection: `<`, `>` or `>>`."""
    words = [*_tokens(line)]
    return {sign: file for sign, file in pairwise(words) if sign in _REDIRECTIONS}


def _below(path: str, command: Any) -> Iterator[tuple[str, Any]]:
    yield path, command
    for name, found in getattr(command, "commands", {}).items():
        yield from _below(f"{path} {name}", found)


#: Each command of `tachikoma` by its words.
COMMANDS = dict(found for component in COMPONENTS for found in _below(component.name, component.load()))


def command_path(words: list[str]) -> tuple[str, list[str]]:
    """Split a command line, without `tachikoma`, into the command that it names and its arguments."""
    path, *words = words
    while words and f"{path} {words[0]}" in COMMANDS:
        path = f"{path} {words.pop(0)}"
    return path, words


def accept(words: list[str]) -> None:
    """Give a command line, without `tachikoma`, to the command that it names.

    Raises:
        click.UsageError: an option, an argument or a value is wrong.
        KeyError: there is no such command.
    """
    path, words = command_path(words)
    command = COMMANDS[path]
    if path == "cancel" and not words:
        # Of a pipe, whose reader appends the ids.
        words = ["5f3a"]
    context = command.make_context(path, words, resilient_parsing=False)
    assert not getattr(command, "commands", {}) or not context.args
