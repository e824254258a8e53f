"""Milliseconds are converted in one module, so that no place rounds or scales them in its own way."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
CLOCK = ROOT / "shared/tachikoma/vocabulary/clock.py"
#: Factors between seconds, milliseconds and microseconds, and of a minute.
FACTORS = {1000, 0.001, 60_000, 3_600_000, 86_400_000}
OPERATORS = (ast.Mult, ast.Div, ast.FloorDiv)


def sources() -> list[Path]:
    found = [path for package in ("shared", "orchestrator", "worker") for path in (ROOT / package).rglob("*.py")]
    return [path for path in found if path != CLOCK and "_pb2" not in path.name and "build" not in path.parts]


def is_factor(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and type(node.value) in (int, float) and node.value in FACTORS


def conversions(code: str) -> Iterator[int]:
    """Yield the line of each conversion of milliseconds."""
    for node in ast.walk(ast.parse(code)):
        match node:
            case ast.BinOp() if isinstance(node.op, OPERATORS) and (is_factor(node.left) or is_factor(node.right)):
                yield node.lineno
            case ast.AugAssign() if isinstance(node.op, OPERATORS) and is_factor(node.value):
                yield node.lineno
            case ast.Call(func=ast.Name(id="divmod"), args=[_, divisor]) if is_factor(divisor):
                yield node.lineno
            case ast.Call(keywords=keywords) if any(keyword.arg == "milliseconds" for keyword in keywords):
                yield node.lineno


@pytest.mark.slow
def test_milliseconds_are_converted_in_one_module() -> None:
    assert [f"{path}:{line}" for path in sources() for line in conversions(path.read_text(encoding="utf-8"))] == []
    assert len(sources()) > 200


@pytest.mark.parametrize(
    "code",
    [
        "x = seconds * 1000", "x = 1000 * seconds", "x = ms / 1000", "x = ms // 1_000", "x = ms * 0.001",
        "x = ms / 1e3",
        "ms //= 1000", "s, rest = divmod(ms, 1000)", "x = timedelta(milliseconds=ms)", "f'{ms / 1000:g}'",
        "x = minutes * 60_000",
    ],
)  # fmt: skip
def test_a_conversion_is_found(code: str) -> None:
    assert list(conversions(code)) == [1]


@pytest.mark.parametrize("code", ["x = 1000", "x = f(limit=1000)", "x = 1000 + y", "x = y * 1024", "x = ns / 1e9"])
def test_other_numbers_are_no_conversions(code: str) -> None:
    assert list(conversions(code)) == []
