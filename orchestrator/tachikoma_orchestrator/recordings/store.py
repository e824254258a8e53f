"""The interface of a store of recordings. `folder.py` is the only implementation; an object store could be another.

A recording begins as parts, each written by one process and named so that no two are the same. From the parts one
process makes the files of the finished recording. A file appears whole or not at all, and the last one to appear is the
seal. All methods may block, so an event loop calls them in a thread.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from enum import StrEnum
from typing import BinaryIO, Protocol

__all__ = ["FileKind", "PartWriter", "RecordingStore", "StoreFailed"]


class StoreFailed(Exception):
    """The store could not read or write; the message says why."""


class FileKind(StrEnum):
    """The files of a finished recording."""

    #: The recording, as asciicast of version 3.
    CAST = "cast"
    #: What was on its screen, for searches: a line has microseconds, a tab and the text.
    TEXT = "txt"
    #: The signed `RecordingSeal`. A recording without it is not finished.
    SEAL = "seal"


class PartWriter(Protocol):
    """A part that is being written. All methods raise StoreFailed."""

    def write(self, data: bytes) -> None:
        """Append bytes; they survive the end of this process."""

    def sync(self) -> None:
        """Return when all bytes also survive a failure of power."""

    def close(self) -> None:
        """End the part. Never fails."""


class RecordingStore(Protocol):
    """Recordings by the ids of their executions. All methods raise StoreFailed."""

    def check(self) -> None:
        """Raise StoreFailed if nothing can be written now."""

    def add_part(self, exec_id: str, name: str) -> PartWriter:
        """Begin a part with a new name."""

    def parts(self, exec_id: str) -> list[str]:
        """Return the names of a recording's parts, sorted; none if it has none."""

    def read_part(self, exec_id: str, name: str) -> BinaryIO:
        """Open a part for reading, also one that another process writes."""

    def unfinished(self) -> list[str]:
        """Return the executions with parts."""

    def remove_parts(self, exec_id: str) -> None:
        """Remove the parts of a recording."""

    def create(self, exec_id: str, kind: FileKind) -> AbstractContextManager[BinaryIO]:
        """Write a file of a finished recording, which appears when the block ends without an error."""

    def open(self, exec_id: str, kind: FileKind) -> BinaryIO:
        """Open a file of a finished recording."""

    def finished(self) -> list[str]:
        """Return the executions with a seal."""

    def delete(self, exec_id: str) -> None:
        """Delete a finished recording."""
