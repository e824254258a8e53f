"""Disk space that is held back, so that a command can start on a full disk: perhaps the one that frees it.

The reserve is a file in the agent's data folder. When the disk refuses the journal or the beginning of a spool, a part
of the file is released and the write is repeated. The file grows again as soon as there is room.
"""

from __future__ import annotations

import errno
import os
import sqlite3
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import structlog

__all__ = ["RESERVE_BYTES", "DiskReserve"]

T = TypeVar("T")

log = structlog.get_logger(__name__)

#: Size of the reserve. A start writes a few pages of the journal and one of a spool.
RESERVE_BYTES = 4 * 1024 * 1024
#: Released at once. Other programs may take released space too, so it is not all released at the first need.
STEP_BYTES = 256 * 1024
#: A disk with less free space than this many reserves gets none.
LEAST_FREE = 4
#: Name of the file in the data folder.
RESERVE_FILE = "reserve"


class DiskReserve:
    """The reserve of one data folder. Its methods may be called from any thread."""

    def __init__(self, folder: Path) -> None:
        """Open the reserve of a data folder, which exists, and let it grow. A disk without room is only logged."""
        self._folder = folder
        self._lock = threading.Lock()
        self._descriptor: int | None = None
        #: Bytes that are held back.
        self._held = 0
        try:
            self._descriptor = os.open(folder / RESERVE_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            self._held = os.fstat(self._descriptor).st_size
        except OSError as error:
            log.warning("disk.no_reserve", folder=str(folder), reason=error.strerror)
        self.refill()

    @property
    def held(self) -> int:
        """Bytes that are held back now."""
        return self._held

    def write(self, action: Callable[[], T]) -> T:
        """Write; while the disk is full, release a part of the reserve and repeat the write.

        Raises:
            Exception: as the action, once the reserve is used up.
        """
        while True:
            try:
                return action()
            except Exception as error:
                if not _is_lack_of_space(error) or not self.release():
                    raise

    def release(self) -> bool:
        """Release a part of the reserve.

        Returns:
            True if there is more free space now; False if nothing was left.
        """
        with self._lock:
            if self._descriptor is None or not self._held:
                return False
            left = max(0, self._held - STEP_BYTES)
            try:
                os.ftruncate(self._descriptor, left)
            except OSError:
                return False
            self._held = left
        log.warning("disk.reserve_used", folder=str(self._folder), left=left)
        return True

    def refill(self) -> None:
        """Grow the reserve to its size, as far as the disk has room. Quick if it has its size already."""
        if self._descriptor is None or self._held >= RESERVE_BYTES:
            return
        with self._lock, suppress(OSError):
            found = os.fstatvfs(self._descriptor)
            if found.f_bavail * found.f_frsize < LEAST_FREE * RESERVE_BYTES:
                return
            while self._held < RESERVE_BYTES:
                self._grow(self._descriptor)

    def _grow(self, descriptor: int) -> None:
        """Hold back one more part. Raises OSError; the reserve is then as before."""
        try:
            # Blocks are allocated, not only the size set, on file systems that can (posix_fallocate(3)).
            os.posix_fallocate(descriptor, self._held, STEP_BYTES)
        except OSError:
            os.ftruncate(descriptor, self._held)
            raise
        self._held += STEP_BYTES

    def close(self) -> None:
        """Close the file, which stays for the next worker. Safe to repeat."""
        with self._lock:
            if self._descriptor is not None:
                os.close(self._descriptor)
            self._descriptor = None


def _is_lack_of_space(error: BaseException) -> bool:
    """Return whether an error, or its cause, reports a full disk or quota."""
    if isinstance(error, sqlite3.Error):
        # SQLite reports some writes beyond the end of the disk as an input/output error.
        return getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR)
    cause = error if isinstance(error, OSError) else error.__cause__
    return isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT)
