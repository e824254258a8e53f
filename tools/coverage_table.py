"""Prints the coverage of each room from the JSON report of coverage.py: `make coverage`."""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path, PurePath

#: Folders and installed packages in which the import packages are.
TOPS = ("tachikoma", "tachikoma_orchestrator", "tachikoma_worker")


@dataclass(slots=True)
class Room:
    """What was executed of a package, and of how much."""

    lines: int = 0
    executed_lines: int = 0
    branches: int = 0
    executed_branches: int = 0

    def add(self, summary: dict[str, int]) -> None:
        """Count the summary of one file."""
        self.lines += summary["num_statements"]
        self.executed_lines += summary["covered_lines"]
        self.branches += summary["num_branches"]
        self.executed_branches += summary["covered_branches"]


def room_of(file: str) -> str:
    """Return the package of a file with at most one level below the import package: `tachikoma.policy`."""
    parts = PurePath(file).with_suffix("").parts
    start = next(index for index, part in enumerate(parts) if part in TOPS)
    return ".".join(parts[start : start + 2][: len(parts) - start - 1] or parts[start : start + 1])


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:6.1f} %" if whole else "       -"


def table(report: dict[str, object]) -> str:
    """Return lines and branches of each room, and of all, as text."""
    rooms: defaultdict[str, Room] = defaultdict(Room)
    files = report["files"]
    assert isinstance(files, dict)
    for file, content in files.items():
        if PurePath(file).is_absolute():
            # A copy that a test built and installed somewhere else.
            continue
        rooms[room_of(file)].add(content["summary"])
        rooms["all"].add(content["summary"])
    text = [f"{'room':40}{'lines':>8}{'executed':>11}{'branches':>10}{'taken':>11}"]
    for name in sorted(rooms, key=lambda name: (name == "all", name)):
        room = rooms[name]
        text.append(
            f"{name:40}{room.lines:8,}{_percent(room.executed_lines, room.lines):>11}{room.branches:10,}"
            f"{_percent(room.executed_branches, room.branches):>11}"
        )
    return "\n".join(text)


if __name__ == "__main__":
    print(table(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))))
