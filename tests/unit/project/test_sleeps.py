"""No test waits for luck: it waits for a condition in a loop, or says why it lets time pass."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[2]


def sleeps(source: str) -> Iterator[tuple[int, bool]]:
    """Yield the line of each sleep that is in no loop with a condition, and whether it has a reason: a comment."""
    lines = source.splitlines()

    def found(node: ast.AST, *, waits: bool) -> Iterator[tuple[int, bool]]:
        waits = waits or isinstance(node, ast.While)
        if isinstance(node, ast.Call) and not waits and node.args:
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            turn = isinstance(node.args[0], ast.Constant) and node.args[0].value == 0
            if name == "sleep" and not turn:
                above = lines[node.lineno - 2].strip()
                yield node.lineno, above.startswith("#")
        for child in ast.iter_child_nodes(node):
            yield from found(child, waits=waits)

    yield from found(ast.parse(source), waits=False)


@pytest.mark.slow
def test_a_sleep_waits_for_a_condition_or_has_a_reason() -> None:
    without = [
        f"{path.relative_to(TESTS)}:{line}"
        for path in sorted(TESTS.rglob("*.py"))
        for line, reason in sleeps(path.read_text(encoding="utf-8"))
        if not reason
    ]
    assert without == []


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("x\ntime.sleep(1)\n", [(2, False)]),
        ("# Why.\nsleep(1)\n", [(2, True)]),
        ("while not done():\n    sleep(1)\n", []),
        ("x\nawait asyncio.sleep(0)\n", []),
        ("x\nfor _ in range(3):\n    sleep(delay)\n", [(3, False)]),
    ],
)
def test_sleeps_are_found(source: str, expected: list[tuple[int, bool]]) -> None:
    if "await" in source:
        source = "async def f():\n    " + source.splitlines()[1] + "\n"
    assert list(sleeps(source)) == expected
