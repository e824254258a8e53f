"""Checks the Python of the documentation as its readers would: mypy strict and pyright strict, each snippet by itself.

The snippets are the blocks of ```python in the README and in docs/, and docs/examples; tests/types too.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
SNIPPET = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def write_snippets(folder: Path) -> int:
    """Write each snippet to a file that names its page, and return their number."""
    number = 0
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        for match in SNIPPET.finditer(page.read_text(encoding="utf-8")):
            number += 1
            (folder / f"{page.stem.lower()}_{number}.py").write_text(match.group(1), encoding="utf-8")
    for example in (ROOT / "docs" / "examples").glob("*.py"):
        shutil.copy(example, folder / f"example_{example.name}")
    return number


def main() -> int:
    """Check all and return the exit code."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if not write_snippets(folder):
            print("there is no snippet in the documentation", file=sys.stderr)
            return 1
        settings = {
            "include": [str(folder), str(ROOT / "tests" / "types")],
            "typeCheckingMode": "strict",
            # Each line of tests/types that must be refused is marked.
            "reportUnnecessaryTypeIgnoreComment": True,
            "extraPaths": [str(ROOT / "shared")],
            "pythonVersion": "3.11",
        }
        (folder / "pyrightconfig.json").write_text(json.dumps(settings), encoding="utf-8")
        commands = (
            [BIN / "mypy", "--strict", "--config-file", ROOT / "setup.cfg", *sorted(folder.glob("*.py"))],
            [BIN / "basedpyright", "-p", folder / "pyrightconfig.json", "--pythonpath", sys.executable],
        )
        return max(subprocess.run(list(map(str, command)), cwd=ROOT, check=False).returncode for command in commands)


if __name__ == "__main__":
    sys.exit(main())
