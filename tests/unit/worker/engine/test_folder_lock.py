"""One worker uses a data folder, and a program that outlives it keeps none from it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tachikoma.errors import ConfigurationError
from tachikoma_worker.engine.folder_lock import LOCK_FILE, FolderLock

HOLDER = """
import pathlib, subprocess, sys
from tachikoma_worker.engine.folder_lock import FolderLock
lock = FolderLock.acquire(pathlib.Path(sys.argv[1]))
child = subprocess.Popen(["sleep", "600"], start_new_session=True, stdout=subprocess.DEVNULL)
print(child.pid, flush=True)
sys.stdin.read()
"""


def test_the_folder_is_created_and_locked_until_it_is_released(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    lock = FolderLock.acquire(folder)
    with pytest.raises(ConfigurationError, match=rf"another worker \(process {os.getpid()}\) uses the data folder"):
        FolderLock.acquire(folder)
    lock.release()
    lock.release()
    FolderLock.acquire(folder).release()


def test_two_folders_are_two_locks(tmp_path: Path) -> None:
    first, second = FolderLock.acquire(tmp_path / "a"), FolderLock.acquire(tmp_path / "b")
    first.release()
    second.release()


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"x" * 10_000])
def test_whatever_the_file_contains_the_lock_counts(tmp_path: Path, content: bytes) -> None:
    (tmp_path / LOCK_FILE).write_bytes(content)
    FolderLock.acquire(tmp_path).release()
    assert (tmp_path / LOCK_FILE).read_text() == f"{os.getpid()}\n"


def test_a_killed_worker_frees_the_folder_although_a_program_of_its_own_still_runs(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        child = int(holder.stdout.readline())
        try:
            with pytest.raises(ConfigurationError, match=f"process {holder.pid}"):
                FolderLock.acquire(tmp_path)
            holder.kill()
            holder.wait()
            os.kill(child, 0)
            FolderLock.acquire(tmp_path).release()
        finally:
            os.kill(child, signal.SIGKILL)


def test_a_folder_that_cannot_be_used_is_an_error_of_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="cannot use the data folder"):
        FolderLock.acquire(tmp_path / "file")
