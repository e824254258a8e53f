"""The lock of a data folder, and the folder for sockets."""

from __future__ import annotations

import logging
import subprocess
import tempfile
from pathlib import Path

import pytest

from tachikoma.dev import runtime as module
from tachikoma.dev.runtime import RUNTIME_PREFIX, Runtime
from tachikoma.errors import ConfigurationError


@pytest.fixture(autouse=True)
def runtime_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))
    return folder


def test_a_folder_is_created_for_its_owner_only_and_locked(tmp_path: Path, runtime_folder: Path) -> None:
    data = tmp_path / "a" / "data"
    runtime = Runtime(data)
    assert data.stat().st_mode & 0o777 == 0o700
    assert runtime.folder.parent == runtime_folder
    assert runtime.folder.name.startswith(RUNTIME_PREFIX)
    assert runtime.folder.stat().st_mode & 0o777 == 0o700
    with pytest.raises(ConfigurationError, match="is in use by another `tachikoma dev`"):
        Runtime(data)
    assert runtime.folder.exists()
    runtime.close()
    runtime.close()
    assert list(runtime_folder.iterdir()) == []
    Runtime(data).close()


@pytest.mark.parametrize("value", ["", ".", "/nowhere/run"])
def test_a_runtime_folder_that_cannot_be_used_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", value)
    runtime = Runtime(tmp_path / "data")
    assert runtime.folder.is_absolute()
    assert runtime.folder.parent == Path(tempfile.gettempdir())
    runtime.close()


def test_sockets_of_a_stack_that_was_killed_are_removed(tmp_path: Path, runtime_folder: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    left = runtime_folder / f"{RUNTIME_PREFIX}left"
    left.mkdir()
    (left / "redis.sock").touch()
    (data / "lock").write_text(f"{left}\n")
    runtime = Runtime(data)
    assert not left.exists()
    assert (data / "lock").read_text() == f"{runtime.folder}\n"
    runtime.close()


def test_no_other_folder_is_removed(tmp_path: Path) -> None:
    data, other = tmp_path / "data", tmp_path / "mine"
    for folder in (data, other):
        folder.mkdir()
    (data / "lock").write_text(f"{other}\n")
    Runtime(data).close()
    assert other.exists()


def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(ConfigurationError, match=f"cannot use the folder {file / 'data'}: "):
        Runtime(file / "data")


def test_parts_of_a_killed_stack_are_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    killed = Runtime(tmp_path)
    # A part that reads until its input ends has the lock, and the stack is gone.
    part = subprocess.Popen(["cat"], stdin=subprocess.PIPE, pass_fds=(killed.parts_lock,))
    killed.close()
    assert part.stdin is not None

    def seconds_pass(_: float) -> None:
        # The next stack waits; with that the part ends.
        assert part.stdin is not None
        part.stdin.close()
        part.wait()

    monkeypatch.setattr(module.time, "sleep", seconds_pass)
    with caplog.at_level(logging.WARNING):
        Runtime(tmp_path).close()
    [record] = caplog.records
    assert f"waiting for the processes of an earlier start in {tmp_path}, which was killed" in record.getMessage()


def test_parts_of_a_killed_stack_that_do_not_end_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "OLD_PARTS_SECONDS", 0.0)
    killed = Runtime(tmp_path)
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, pass_fds=(killed.parts_lock,)) as part:
        killed.close()
        with pytest.raises(ConfigurationError, match=r"still use .* after 0 s; `pgrep -fa .*` shows them, end them"):
            Runtime(tmp_path)
        assert part.stdin is not None
        part.stdin.close()
    # Nothing of the refused one keeps the folder.
    Runtime(tmp_path).close()
