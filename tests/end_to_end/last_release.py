"""The packages of the last release, from the history of this repository, for tests that run parts of it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

__all__ = ["TAG", "LastRelease"]

ROOT = Path(__file__).parents[2]
#: The last release, and the commit of its tag. A clone may lack the tag.
TAG, COMMIT = "v0.2.0", "417ef0ff6d22891f4768190ceec37996f61814c1"
#: The folders of its packages.
FOLDERS = ("shared", "orchestrator", "worker")
#: The sources of its spawner.
SPAWNER = ("spawner.c", "child.c", "protocol.c")


def has_history() -> bool:
    """Return whether this is a clone with more than its last commit."""
    counted = subprocess.run(["git", "rev-list", "--count", "HEAD"], cwd=ROOT, capture_output=True, check=False)
    shallow = subprocess.run(
        ["git", "rev-parse", "--is-shallow-repository"], cwd=ROOT, capture_output=True, check=False
    )
    return not counted.returncode and int(counted.stdout) > 1 and shallow.stdout.strip() == b"false"


@dataclass(frozen=True)
class LastRelease:
    """A folder with the packages of the last release and its own spawner."""

    folder: Path

    @classmethod
    def unpack(cls, folder: Path, need: Callable[[bool, str], None]) -> LastRelease:
        """Unpack the release, and build its spawner. Skips the test where there is no history; CI needs a compiler."""
        if not has_history():
            pytest.skip(f"this is no clone with its history, so there is no {TAG}")
        found = subprocess.run(["git", "archive", COMMIT, *FOLDERS], cwd=ROOT, capture_output=True, check=False)
        need(not found.returncode, f"the history of {TAG}")
        need(shutil.which("cc") is not None, "a C compiler")
        subprocess.run(["tar", "-x", "-C", str(folder)], input=found.stdout, check=True)
        sources = [str(folder / "worker" / "spawner" / name) for name in SPAWNER]
        program = folder / "worker" / "tachikoma_worker" / "tachikoma-spawner"
        subprocess.run(["cc", "-std=c11", "-O1", "-o", str(program), *sources], check=True)
        release = cls(folder)
        packages = ("tachikoma", "tachikoma_orchestrator", "tachikoma_worker")
        code = "".join(f"import {package}; print({package}.__file__);" for package in packages)
        assert all(line.startswith(str(folder)) for line in release.ask(code).splitlines())
        return release

    @property
    def environment(self) -> dict[str, str]:
        """The variables with which Python imports the packages of the release, and not those of this tree."""
        return {"PYTHONPATH": ":".join(str(self.folder / name) for name in FOLDERS)}

    def ask(self, code: str) -> str:
        """Return what Python prints with the packages of the release."""
        done = subprocess.run(
            [sys.executable, "-c", code], env=self.environment, capture_output=True, text=True, check=True
        )
        return done.stdout
