"""Prints sizes of the house: `make measure`. Give it another work tree to compare: `tools/measure.py /path/to/tree`.

It needs nothing but Python, so it also measures a commit whose packages are not installed:

    git worktree add /tmp/before COMMIT && python tools/measure.py /tmp/before
"""

from __future__ import annotations

import ast
import statistics
import sys
import tokenize
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

#: Folder of each import package.
PACKAGES = ("shared/tachikoma", "orchestrator/tachikoma_orchestrator", "worker/tachikoma_worker")
#: Lines that a function may have before it counts as long.
LONG_FUNCTION = 40
#: Files beside the modules that do not count as an entry of their level.
NO_ENTRY = ("__init__.py", "py.typed", "__pycache__", "tachikoma-spawner")


@dataclass(frozen=True, slots=True)
class Function:
    """A function or method, with its place and its lines."""

    place: str
    lines: int


def modules(tree: Path) -> list[Path]:
    """Return every module of the packages, without generated code."""
    return sorted(
        path
        for package in PACKAGES
        for path in (tree / package).rglob("*.py")
        if not path.stem.endswith(("_pb2", "_grpc"))
    )


def entries(folder: Path) -> list[str]:
    """Return the modules and sub-packages at one level, without generated code and data."""
    return sorted(
        path.name
        for path in folder.iterdir()
        if path.name not in NO_ENTRY
        and (path.is_dir() or path.suffix in (".py", ".lua"))
        and not path.stem.endswith(("_pb2", "_grpc"))
    )


def levels(tree: Path) -> dict[str, int]:
    """Return how many entries each folder of the packages has."""
    folders = [tree / package for package in PACKAGES]
    folders += [path for top in folders for path in top.rglob("*") if path.is_dir() and path.name != "__pycache__"]
    return {str(folder.relative_to(tree)): len(entries(folder)) for folder in sorted(folders)}


def functions(tree: Path) -> Iterator[Function]:
    """Yield every function of the packages with its lines, docstring included."""
    for path in modules(tree):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.end_lineno is not None:
                place = f"{path.relative_to(tree)}:{node.lineno} {node.name}"
                yield Function(place, node.end_lineno - node.lineno + 1)


def untyped(tree: Path) -> tuple[int, int]:
    """Return how many `type: ignore` comments and how many uses of `Any` the packages have."""
    ignores = anys = 0
    for path in modules(tree):
        with path.open("rb") as file:
            for token in tokenize.tokenize(file.readline):
                ignores += token.type == tokenize.COMMENT and "type: ignore" in token.string
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            anys += isinstance(node, ast.Name) and node.id == "Any"
    return ignores, anys


def fan_out(tree: Path) -> Counter[str]:
    """Return how many other modules of the packages each module imports."""
    tops = {Path(package).name for package in PACKAGES}
    found: Counter[str] = Counter()
    for path in modules(tree):
        imported = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            imported |= {name for name in names if name.partition(".")[0] in tops}
        found[str(path.relative_to(tree))] = len(imported)
    return found


def report(tree: Path) -> str:
    """Return the measurements of a work tree, as text."""
    sizes = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in modules(tree)}
    lines = {path: size for path, size in sizes.items() if path.name != "__init__.py"}
    largest = sorted(lines.items(), key=lambda item: -item[1])[:5]
    long = sorted((found for found in functions(tree) if found.lines > LONG_FUNCTION), key=lambda found: -found.lines)
    level = sorted(levels(tree).items(), key=lambda item: -item[1])
    ignores, anys = untyped(tree)
    text = [
        f"modules                  {len(lines)}, {sum(sizes.values()):,} lines",
        f"median module            {statistics.median(lines.values()):.0f} lines",
        "largest modules          " + ", ".join(f"{path.relative_to(tree)} {size}" for path, size in largest),
        "most entries at a level  " + ", ".join(f"{name} {count}" for name, count in level[:5]),
        f"functions over {LONG_FUNCTION} lines  {len(long)}",
        *(f"    {found.lines:4d}  {found.place}" for found in long[:10]),
        "busiest importers        " + ", ".join(f"{name} {count}" for name, count in fan_out(tree).most_common(5)),
        f"type: ignore             {ignores}",
        f"Any                      {anys}",
    ]
    return "\n".join(text)


if __name__ == "__main__":
    print(report(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1]))
