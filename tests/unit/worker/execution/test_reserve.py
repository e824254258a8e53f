"""The disk space that is held back: released in parts while the disk is full, and held back again later."""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from structlog.testing import capture_logs

from tachikoma_worker.execution.reserve import RESERVE_BYTES, STEP_BYTES, DiskReserve

STEPS = RESERVE_BYTES // STEP_BYTES


@pytest.fixture
def reserve(tmp_path: Path) -> Iterator[DiskReserve]:
    opened = DiskReserve(tmp_path)
    yield opened
    opened.close()


def room(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    """From now on the disk reports so much free space."""
    monkeypatch.setattr(os, "fstatvfs", lambda _: SimpleNamespace(f_bavail=free // 4096, f_frsize=4096))


def full(error: int = errno.ENOSPC) -> OSError:
    return OSError(error, os.strerror(error))


def caused(error: OSError) -> Exception:
    try:
        raise RuntimeError("cannot write") from error
    except RuntimeError as found:
        return found


def of_sqlite(code: int) -> sqlite3.Error:
    error = sqlite3.OperationalError("database or disk is full")
    error.sqlite_errorcode = code
    return error


def test_space_is_allocated_and_stays_for_the_next_worker(reserve: DiskReserve, tmp_path: Path) -> None:
    found = (tmp_path / "reserve").stat()
    assert reserve.held == found.st_size == RESERVE_BYTES
    assert found.st_blocks * 512 >= RESERVE_BYTES
    reserve.release()
    reserve.close()
    reserve.close()
    again = DiskReserve(tmp_path)
    assert again.held == RESERVE_BYTES
    again.close()


def test_a_write_is_repeated_until_it_has_room(reserve: DiskReserve, tmp_path: Path) -> None:
    attempts: list[int] = []

    def write() -> str:
        attempts.append((tmp_path / "reserve").stat().st_size)
        if len(attempts) < 4:
            raise full()
        return "written"

    assert reserve.write(write) == "written"
    assert attempts == [RESERVE_BYTES - n * STEP_BYTES for n in range(4)]


@pytest.mark.parametrize(
    "error",
    [
        full(),
        full(errno.EDQUOT),
        caused(full()),
        of_sqlite(sqlite3.SQLITE_FULL),
        of_sqlite(sqlite3.SQLITE_IOERR_WRITE),
        of_sqlite(sqlite3.SQLITE_IOERR_SHMSIZE),
    ],
    ids=repr,
)
def test_a_disk_that_stays_full_uses_the_reserve_up_and_is_an_error(reserve: DiskReserve, error: Exception) -> None:
    attempts = 0

    def write() -> None:
        nonlocal attempts
        attempts += 1
        raise error

    with capture_logs() as logged, pytest.raises(type(error)):
        reserve.write(write)
    assert (attempts, reserve.held) == (STEPS + 1, 0)
    assert [entry["left"] for entry in logged if entry["event"] == "disk.reserve_used"][-1] == 0


@pytest.mark.parametrize(
    "error",
    [
        full(errno.EACCES), full(errno.EROFS), ValueError("x"), caused(full(errno.EIO)), of_sqlite(sqlite3.SQLITE_BUSY),
        sqlite3.ProgrammingError("x"),
    ],
    ids=repr,
)  # fmt: skip
def test_other_errors_leave_the_reserve_alone(reserve: DiskReserve, error: Exception) -> None:
    def write() -> None:
        raise error

    with pytest.raises(type(error)):
        reserve.write(write)
    assert reserve.held == RESERVE_BYTES


@pytest.mark.parametrize(("free", "held"), [(0, 0), (RESERVE_BYTES * 3, 0), (RESERVE_BYTES * 4, RESERVE_BYTES)])
def test_a_small_or_full_disk_is_left_to_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, held: int
) -> None:
    room(monkeypatch, free)
    reserve = DiskReserve(tmp_path)
    assert reserve.held == held
    reserve.close()


def test_it_grows_again_once_there_is_room(reserve: DiskReserve, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(3):
        reserve.release()
    room(monkeypatch, STEP_BYTES)
    reserve.refill()
    assert reserve.held == RESERVE_BYTES - 3 * STEP_BYTES
    room(monkeypatch, RESERVE_BYTES * 9)
    reserve.refill()
    assert reserve.held == RESERVE_BYTES


def test_a_disk_that_fills_up_meanwhile_leaves_what_was_allocated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    allocate: Callable[[int, int, int], None] = os.posix_fallocate

    def limited(descriptor: int, offset: int, length: int) -> None:
        if offset >= 2 * STEP_BYTES:
            os.ftruncate(descriptor, offset + length // 2)
            raise full()
        allocate(descriptor, offset, length)

    monkeypatch.setattr(os, "posix_fallocate", limited)
    reserve = DiskReserve(tmp_path)
    assert reserve.held == (tmp_path / "reserve").stat().st_size == 2 * STEP_BYTES
    reserve.close()


def test_a_folder_that_takes_no_file_has_no_reserve(tmp_path: Path) -> None:
    (tmp_path / "reserve").mkdir()
    with capture_logs() as logged:
        reserve = DiskReserve(tmp_path)
    assert [entry["event"] for entry in logged] == ["disk.no_reserve"]
    reserve.refill()
    assert (reserve.held, reserve.release()) == (0, False)
    reserve.close()
