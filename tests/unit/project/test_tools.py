"""The programs in tools/, and the version that everything is built with."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]


def tool(name: str) -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "tools" / name))


# --- the version ------------------------------------------------------------------------------------------------------


def test_the_command_prints_the_version_that_is_installed() -> None:
    done = subprocess.run([sys.executable, "-m", "tachikoma", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"tachikoma {version('tachikoma-exec')}\n"


def test_no_version_is_written_down() -> None:
    """It comes from the tag (docs/releasing.md)."""
    assert "\nversion =" not in (ROOT / "setup.cfg").read_text(encoding="utf-8")
    assert "[tool.setuptools_scm]" in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


# --- releases ---------------------------------------------------------------------------------------------------------

CHANGELOG = """# Changelog

## Unreleased

## 1.2.0 - 2026-11-29

### Added
- A thing.

## 1.1.0 - 2026-10-01

## 1.0.0

- Without a date.
"""


def test_the_section_of_a_release_ends_where_the_next_begins() -> None:
    assert tool("release_check.py")["changelog_section"](CHANGELOG, "1.2.0") == "### Added\n- A thing."


@pytest.mark.parametrize("release", ["1.1.0", "1.0.0", "1.3.0", "1x2.0"])
def test_a_release_without_a_dated_section_with_text_is_none(release: str) -> None:
    found = tool("release_check.py")
    with pytest.raises(found["Failure"], match="has no section"):
        found["changelog_section"](CHANGELOG, release)


@pytest.mark.parametrize(
    ("text", "is_release"),
    [("1.2.0", True), ("1.2.0rc1", True), ("1.2.1.dev3+g4f1c0de", False), ("0.0.0+unknown", False), ("1.2", False)],
)
def test_a_release_has_three_numbers_and_nothing_of_a_commit(text: str, is_release: bool) -> None:
    assert bool(tool("release_check.py")["RELEASE"].fullmatch(text)) is is_release


def test_every_file_that_a_release_must_have_is_in_the_tree() -> None:
    assert [name for name in tool("release_check.py")["IN_SDIST"] if not (ROOT / name).is_file()] == []


# --- coverage ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "room"),
    [
        ("shared/tachikoma/errors.py", "tachikoma"),
        ("shared/tachikoma/policy/decide.py", "tachikoma.policy"),
        ("orchestrator/tachikoma_orchestrator/audit/sinks/file.py", "tachikoma_orchestrator.audit"),
        (".tox/py/lib/python3.11/site-packages/tachikoma_worker/pool.py", "tachikoma_worker"),
    ],
)
def test_a_file_is_counted_in_its_room(file: str, room: str) -> None:
    assert tool("coverage_table.py")["room_of"](file) == room


def test_rooms_are_summed_and_shown_with_branches() -> None:
    def file(lines: int, executed: int, branches: int, taken: int) -> dict[str, Any]:
        names = ("num_statements", "covered_lines", "num_branches", "covered_branches")
        return {"summary": dict(zip(names, (lines, executed, branches, taken), strict=True))}

    report = {
        "files": {
            "shared/tachikoma/policy/decide.py": file(60, 60, 8, 4),
            "shared/tachikoma/policy/file.py": file(40, 20, 2, 1),
            "worker/tachikoma_worker/pool.py": file(10, 0, 0, 0),
            "/tmp/copy/worker/tachikoma_worker/pool.py": file(10, 10, 0, 0),
        }
    }
    lines = [line.split() for line in tool("coverage_table.py")["table"](json.loads(json.dumps(report))).splitlines()]
    assert lines[1:] == [
        ["tachikoma.policy", "100", "80.0", "%", "10", "50.0", "%"],
        ["tachikoma_worker", "10", "0.0", "%", "0", "-"],
        ["all", "110", "72.7", "%", "10", "50.0", "%"],
    ]


# --- sizes ------------------------------------------------------------------------------------------------------------


def test_sizes_of_a_tree_are_measured(tmp_path: Path) -> None:
    found = tool("measure.py")
    for package in found["PACKAGES"]:
        (tmp_path / package).mkdir(parents=True)
        (tmp_path / package / "__init__.py").write_text("")
    room = tmp_path / found["PACKAGES"][0] / "room"
    room.mkdir()
    body = "    pass\n" * 41
    (room / "one.py").write_text(f"from typing import Any\nimport tachikoma.other\ndef long(x: Any) -> None:\n{body}")
    (room / "two_pb2.py").write_text("x: int = 1  # type: ignore\n")
    (room / "query.lua").write_text("")
    (room / "data.json").write_text("{}")
    assert found["levels"](tmp_path)["shared/tachikoma/room"] == 2
    assert [function.lines for function in found["functions"](tmp_path)] == [42]
    assert found["untyped"](tmp_path) == (0, 1)
    assert found["fan_out"](tmp_path).most_common(1) == [("shared/tachikoma/room/one.py", 1)]
    assert "functions over 40 lines  1\n" in found["report"](tmp_path)


def test_every_snippet_of_the_documentation_is_checked(tmp_path: Path) -> None:
    """`make types` checks them."""
    number = tool("check_snippets.py")["write_snippets"](tmp_path)
    written = sorted(path.name for path in tmp_path.iterdir())
    assert number >= 3
    assert {"readme_1.py", "example_reports.py"} <= set(written)
    assert "from tachikoma import Client" in (tmp_path / "readme_1.py").read_text(encoding="utf-8")
