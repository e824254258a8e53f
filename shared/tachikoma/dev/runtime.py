"""The claim of a data folder, and the folder of its sockets."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from pathlib import Path
from typing import IO

from tachikoma.errors import ConfigurationError

__all__ = ["Runtime"]

#: Beginning of the name of the folder for sockets; random characters follow.
RUNTIME_PREFIX = "tachikoma-"


class Runtime:
    """A locked data folder, and a folder for sockets outside of it.

    The path of a unix socket is at most 107 bytes long (unix(7)), so sockets are not under the data folder. The lock
    file contains the path of the folder for sockets: a stack that was killed leaves it, and the next one removes it.
    """

    def __init__(self, data: Path) -> None:
        """Lock a data folder, which is created if it is missing.

        Raises:
            ConfigurationError: another stack uses the folder, or it cannot be used.
        """
        try:
            data.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock: IO[str] = (data / "lock").open("a+")
        except OSError as error:
            raise ConfigurationError(f"cannot use the folder {data}: {error}") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise ConfigurationError(f"{data} is in use by another `tachikoma dev`") from None
        except OSError as error:
            self._lock.close()
            raise ConfigurationError(f"cannot use the folder {data}: {error}") from error
        self._remove_old()
        # After `su`, it may name a folder of another user, or none.
        runtime = os.environ.get("XDG_RUNTIME_DIR", "")
        usable = Path(runtime).is_absolute() and os.access(runtime, os.W_OK | os.X_OK)
        #: The folder for sockets.
        self.folder = Path(tempfile.mkdtemp(prefix=RUNTIME_PREFIX, dir=runtime if usable else None))
        self._lock.truncate(0)
        self._lock.write(f"{self.folder}\n")
        self._lock.flush()

    def _remove_old(self) -> None:
        """Remove the folder for sockets of a stack that was killed."""
        self._lock.seek(0)
        old = Path(self._lock.read().strip() or ".")
        if old.name.startswith(RUNTIME_PREFIX):
            shutil.rmtree(old, ignore_errors=True)

    def close(self) -> None:
        """Remove the folder for sockets and unlock the data folder. Safe to repeat."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self._lock.close()
