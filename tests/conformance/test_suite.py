"""The suite itself: it knows nothing of the engine that it tests."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from border import Border

TESTS = Path(__file__).parents[1]


def imported(path: Path) -> set[str]:
    """Return the names of all modules that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def test_the_page_of_the_border_names_the_settings_of_an_engine() -> None:
    page = (TESTS.parent / "docs/engine.md").read_text(encoding="utf-8")
    border = Border(None)
    try:
        given = set(border.make_engine()._environment)
    finally:
        border.remove()
    assert given <= set(re.findall(r"`(TACHIKOMA_\w+)`", page))


def test_no_module_of_the_worker_is_imported() -> None:
    """Neither by the suite nor by the helpers of other tests that it uses."""
    waiting, seen = sorted(Path(__file__).parent.glob("*.py")), set[Path]()
    assert len(waiting) > 4
    while waiting:
        path = waiting.pop()
        seen.add(path)
        names = imported(path)
        assert not {name for name in names if name.partition(".")[0] == "tachikoma_worker"}, path
        folders = (Path(__file__).parent, TESTS, TESTS / "end_to_end")
        helpers = {folder / f"{name}.py" for folder in folders for name in names}
        waiting += [helper for helper in helpers if helper.is_file() and helper not in seen]
    assert {path.name for path in seen} >= {"border.py", "relay.py", "authority.py", "support.py"}
