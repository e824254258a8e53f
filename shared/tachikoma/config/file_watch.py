"""A watched file: its content is replaced as a whole when the file changes and is valid."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from tachikoma.config.yaml_files import yaml_files
from tachikoma.errors import ConfigurationError

__all__ = ["FileWatch"]


class _Loaded(Protocol):
    """The content of a watched file."""

    @classmethod
    def load(cls, path: Path) -> Any:
        """Read the file. Raises ConfigurationError."""


T = TypeVar("T", bound=_Loaded)


class FileWatch(Generic[T]):
    """The content of a file or folder, replaced as a whole when the file changes and is valid."""

    def __init__(self, path: Path, kind: type[T], files: Callable[[Path], Iterable[Path]] = yaml_files) -> None:
        """Load the file; raises as `kind.load` does.

        Args:
            path: the file or folder.
            kind: class of the content.
            files: returns the files that belong to the path.
        """
        self.path = path
        self._kind, self._files = kind, files
        self._seen = self._signature()
        #: The active content.
        self.current: T = kind.load(path)
        #: Time since which the content is active.
        self.since = datetime.now(UTC)
        #: Why the current file is not active, so that the previous content is retained; empty if it is.
        self.error = ""

    def reload(self) -> bool:
        """Load the file if it has changed, and activate it if it is valid.

        Returns:
            True if the content or the error changed.
        """
        signature = self._signature()
        if signature == self._seen:
            return False
        self._seen = signature
        try:
            self.current = self._kind.load(self.path)
        except ConfigurationError as error:
            self.error = str(error)
        except Exception as error:
            # Whatever a file contains, the previous content stays active.
            self.error = f"{self.path} cannot be loaded: {error!r}"
        else:
            self.error = ""
            self.since = datetime.now(UTC)
        return True

    def _signature(self) -> tuple[tuple[str, int, int, int], ...]:
        found = []
        with suppress(OSError):
            for file in self._files(self.path):
                stat = file.stat()
                # The time of change, not of modification: a file may become readable by chmod(1) alone.
                found.append((str(file), stat.st_ctime_ns, stat.st_ino, stat.st_size))
        return tuple(found)
