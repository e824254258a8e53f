"""The lock of an agent's data folder: at most one worker uses its journal, its spools and its spawner."""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from tachikoma.errors import ConfigurationError

__all__ = ["FolderLock"]

#: Name of the locked file in the data folder. It contains the process id of the last worker, for people.
LOCK_FILE = "worker.lock"


class FolderLock:
    """An exclusive lock of a data folder (flock(2)). It ends with the process, also after a crash.

    Programs that the worker starts do not inherit it, so a spawner that outlives its worker does not hold it.
    """

    def __init__(self, file: TextIO) -> None:
        """Keep a locked file; use `acquire`."""
        self._file = file

    @classmethod
    def acquire(cls, folder: Path) -> FolderLock:
        """Lock a data folder, which is created if it is missing.

        Raises:
            ConfigurationError: another worker uses the folder, or the file cannot be written.
        """
        path = folder / LOCK_FILE
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            # Python opens files as close-on-exec (PEP 446).
            file = path.open("a+", encoding="ascii", errors="replace")
        except OSError as error:
            raise ConfigurationError(f"cannot use the data folder {folder}: {error.strerror}") from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read(20).strip() or "unknown"
            file.close()
            raise ConfigurationError(
                f"another worker (process {holder}) uses the data folder {folder}; stop that worker, or give this one "
                "a data folder and an agent id of its own"
            ) from None
        except OSError as error:
            file.close()
            raise ConfigurationError(f"cannot lock the data folder {folder}: {error.strerror}") from error
        # Only for people, so a full disk does not keep the worker from its start.
        with suppress(OSError):
            os.ftruncate(file.fileno(), 0)
            os.write(file.fileno(), f"{os.getpid()}\n".encode())
        return cls(file)

    def release(self) -> None:
        """Release the folder for another worker. Safe to repeat."""
        self._file.close()
