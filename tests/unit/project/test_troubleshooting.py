"""Each message that the page of troubleshooting explains is a message of the programs."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
MESSAGES = re.findall(r"^### `(.+)`$", PAGE, re.MULTILINE)
#: The causes of a message, in its table.
CAUSES = re.findall(r"^\| `(.+?)` \|", PAGE, re.MULTILINE)
FOLDERS = ("shared/tachikoma", "orchestrator/tachikoma_orchestrator", "worker/tachikoma_worker")
#: What the page writes for a value.
VALUE = "…"


def texts(tree: ast.AST) -> Iterator[str]:
    """Yield the strings of a module; a value in an f-string or a format string is `…`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield re.sub(r"\{[^{} ]*\}", VALUE, node.value)
        elif isinstance(node, ast.JoinedStr):
            yield "".join(
                part.value if isinstance(part, ast.Constant) and isinstance(part.value, str) else VALUE
                for part in node.values
            )


@cache
def source_texts() -> tuple[str, ...]:
    """Return the strings of all packages."""
    files = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py")) if "_pb2" not in path.name]
    return tuple(text for path in files for text in texts(ast.parse(path.read_text(encoding="utf-8"))))


@pytest.mark.parametrize("message", MESSAGES + CAUSES)
@pytest.mark.slow
def test_a_message_that_is_explained_is_printed_by_a_program(message: str) -> None:
    assert any(message in text for text in source_texts())


def test_each_message_is_explained_once() -> None:
    assert len(MESSAGES) > 30
    assert len(CAUSES) > 10
    assert len({*MESSAGES, *CAUSES}) == len(MESSAGES + CAUSES)


@pytest.mark.parametrize("section", PAGE.split("\n### ")[1:], ids=lambda section: section.partition("\n")[0])
def test_each_message_has_a_cause_and_a_remedy(section: str) -> None:
    text = section.partition("\n")[2].partition("\n## ")[0].strip()
    assert len(text) > 40
    assert text.endswith(".")


def test_values_in_messages_are_found() -> None:
    assert next(texts(ast.parse("f'agent {name!r} of {x}'"))) == "agent … of …"
    assert [*texts(ast.parse("'agent {agent!r} is offline'"))] == ["agent … is offline"]
