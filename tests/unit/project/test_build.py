"""Building the spawner with the package: with a compiler and without."""

from __future__ import annotations

import os
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tachikoma.errors import ConfigurationError
from tachikoma_worker.confinement import launch, spawner

ROOT = Path(__file__).parents[3]


def build(target: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    folder = target / "source"
    shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(".*", "build", "docs", "tests", "*.egg-info"))
    return subprocess.run(
        [sys.executable, "setup.py", "--quiet", "build_ext", "--build-lib", str(target / "lib")],
        cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.slow
def test_the_spawner_is_built_and_says_how_it_is_used(tmp_path: Path, need: Callable[[bool, str], None]) -> None:
    need(shutil.which("cc") is not None, "a C compiler")
    done = build(tmp_path)
    assert done.returncode == 0, done.stderr
    said = subprocess.run([tmp_path / "lib/tachikoma_worker/tachikoma-spawner"], capture_output=True, check=False)
    assert (said.returncode, b"usage: tachikoma-spawner" in said.stderr) == (2, True)


def test_a_static_program_is_told_from_a_dynamic_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("setuptools.setup", lambda **_: None)
    is_static = runpy.run_path(str(ROOT / "setup.py"))["is_static"]
    assert is_static(launch.PROGRAM)
    assert not is_static(Path(sys.executable).resolve())
    assert not is_static(Path(__file__))


@pytest.mark.slow
@pytest.mark.parametrize("compiler", ["/nowhere/cc", "false"])
def test_without_a_compiler_the_package_is_built_without_it_and_says_so(tmp_path: Path, compiler: str) -> None:
    done = build(tmp_path, CC=compiler)
    assert done.returncode == 0, done.stderr
    assert "the spawner was not built, so this installation can run no agent" in done.stderr
    assert not list(tmp_path.glob("lib/**/tachikoma-spawner"))


def test_a_worker_without_its_spawner_does_not_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "PROGRAM", tmp_path / "tachikoma-spawner")
    with pytest.raises(ConfigurationError, match=r"has no spawner.*Install one"):
        spawner.Spawner.connect(tmp_path / "spawner.sock")


def test_a_path_too_long_for_a_socket_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="longer than 107 bytes"):
        spawner.Spawner.connect(tmp_path / ("x" * 108))
