"""The claim of a data folder, and the folder of its sockets."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import IO

from tachikoma.config.logs import get_logger
from tachikoma.errors import ConfigurationError

__all__ = ["Runtime"]

log = get_logger(__name__)

#: Beginning of the name of the folder for sockets; random characters follow.
RUNTIME_PREFIX = "tachikoma-"
#: Name of the file whose lock all parts of a stack share.
PARTS_LOCK = "parts.lock"
#: Longest time that the parts of a killed stack may take to end, in seconds. Workers first end their commands.
OLD_PARTS_SECONDS = 60.0
#: Seconds between two checks whether they have ended.
POLL_SECONDS = 0.05


class Runtime:
    """A locked data folder, and a folder for sockets outside of it.

    The path of a unix socket is at most 107 bytes long (unix(7)), so sockets are not under the data folder. The lock
    file contains the path of the folder for sockets: a stack that was killed leaves it, and the next one removes it.
    The parts of a killed stack need some seconds to end. They hold a second lock until then, for which the next stack
    waits: it would find their port and their data folders in use.
    """

    def __init__(self, data: Path) -> None:
        """Lock a data folder, which is created if it is missing.

        Raises:
            ConfigurationError: another stack uses the folder, the parts of a killed one do not end, or the folder
                cannot be used.
        """
        try:
            data.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock: IO[str] = (data / "lock").open("a+")
            self._parts: IO[str] = (data / PARTS_LOCK).open("a")
        except OSError as error:
            raise ConfigurationError(f"cannot use the folder {data}: {error}") from error
        try:
            if not _lock(self._lock):
                raise ConfigurationError(f"{data} is in use by another `tachikoma dev`")
            self._wait_for_old_parts(data)
        except OSError as error:
            self._unlock()
            raise ConfigurationError(f"cannot use the folder {data}: {error}") from error
        except BaseException:
            self._unlock()
            raise
        self._remove_old()
        # After `su`, it may name a folder of another user, or none.
        runtime = os.environ.get("XDG_RUNTIME_DIR", "")
        usable = Path(runtime).is_absolute() and os.access(runtime, os.W_OK | os.X_OK)
        #: The folder for sockets.
        self.folder = Path(tempfile.mkdtemp(prefix=RUNTIME_PREFIX, dir=runtime if usable else None))
        self._lock.truncate(0)
        self._lock.write(f"{self.folder}\n")
        self._lock.flush()

    @property
    def parts_lock(self) -> int:
        """The descriptor of the locked file that each part inherits."""
        return self._parts.fileno()

    def _wait_for_old_parts(self, data: Path) -> None:
        """Wait until the last part of a killed stack has ended.

        Raises:
            ConfigurationError: one of them does not end.
            OSError: the file system has no locks.
        """
        deadline = None
        while not _lock(self._parts):
            if deadline is None:
                log.warning(f"waiting for the processes of an earlier start in {data}, which was killed")
                deadline = time.monotonic() + OLD_PARTS_SECONDS
            elif time.monotonic() > deadline:
                raise ConfigurationError(
                    f"processes of an earlier start still use {data} after {OLD_PARTS_SECONDS:g} s; "
                    f"`pgrep -fa {data}` shows them, end them"
                )
            time.sleep(POLL_SECONDS)

    def _remove_old(self) -> None:
        """Remove the folder for sockets of a stack that was killed."""
        self._lock.seek(0)
        old = Path(self._lock.read().strip() or ".")
        if old.name.startswith(RUNTIME_PREFIX):
            shutil.rmtree(old, ignore_errors=True)

    def close(self) -> None:
        """Remove the folder for sockets and unlock the data folder. Safe to repeat."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self._unlock()

    def _unlock(self) -> None:
        self._parts.close()
        self._lock.close()


def _lock(file: IO[str]) -> bool:
    """Lock a file, and return whether no other process holds it. Raises OSError where that is not supported."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
