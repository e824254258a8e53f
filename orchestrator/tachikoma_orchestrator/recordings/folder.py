"""A folder of recordings, which several orchestrators may share.

`unfinished/<id>/` has the parts of a recording, `finished/<id>.<kind>` its files. Only the orchestrators' user may read
them. Ids of executions contain no slash and no dot.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from tachikoma.vocabulary.identifiers import is_identifier
from tachikoma_orchestrator.recordings.store import FileKind, StoreFailed

__all__ = ["RecordingFolder"]

#: Free space below which no recording is begun, in bytes.
MIN_FREE_BYTES = 1024 * 1024


@contextmanager
def _failures(action: str) -> Iterator[None]:
    """Turn errors of the file system into StoreFailed."""
    try:
        yield
    except OSError as error:
        raise StoreFailed(f"cannot {action}: {error.strerror or error}") from error


class _Part:
    """A part as a file, which only grows."""

    def __init__(self, path: Path) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
        self._descriptor = os.open(path, flags, 0o600)

    def write(self, data: bytes) -> None:
        with _failures("write the recording"):
            while data:
                data = data[os.write(self._descriptor, data) :]

    def sync(self) -> None:
        with _failures("write the recording to disk"):
            os.fdatasync(self._descriptor)

    def close(self) -> None:
        with suppress(OSError):
            os.close(self._descriptor)


class RecordingFolder:
    """Recordings in a folder."""

    def __init__(self, path: Path) -> None:
        """Use a folder; nothing is created yet.

        Args:
            path: the folder, which must exist. So a file system that is not mounted is not mistaken for an empty one.
        """
        self._path = path
        self._unfinished = path / "unfinished"
        self._finished = path / "finished"

    def check(self) -> None:
        with _failures(f"write recordings to {self._path}"):
            self._unfinished.mkdir(mode=0o700, exist_ok=True)
            probe = self._unfinished / f".{secrets.token_hex(8)}"
            os.close(os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
            probe.unlink()
            space = os.statvfs(self._path)
        if space.f_bavail * space.f_frsize < MIN_FREE_BYTES:
            raise StoreFailed(f"cannot write recordings to {self._path}: less than {MIN_FREE_BYTES} bytes are free")

    def add_part(self, exec_id: str, name: str) -> _Part:
        with _failures(f"begin a recording in {self._path}"):
            self._unfinished.mkdir(mode=0o700, exist_ok=True)
            folder = self._folder(exec_id)
            folder.mkdir(mode=0o700, exist_ok=True)
            return _Part(folder / name)

    def parts(self, exec_id: str) -> list[str]:
        with _failures("read the recording"):
            try:
                return sorted(path.name for path in self._folder(exec_id).iterdir())
            except FileNotFoundError:
                return []

    def read_part(self, exec_id: str, name: str) -> BinaryIO:
        with _failures("read the recording"):
            return (self._folder(exec_id) / name).open("rb")

    def unfinished(self) -> list[str]:
        with _failures(f"read {self._path}"):
            try:
                return sorted(path.name for path in self._unfinished.iterdir() if is_identifier(path.name))
            except FileNotFoundError:
                return []

    def remove_parts(self, exec_id: str) -> None:
        with _failures("remove parts of the recording"), suppress(FileNotFoundError):
            shutil.rmtree(self._folder(exec_id))

    @contextmanager
    def create(self, exec_id: str, kind: FileKind) -> Iterator[BinaryIO]:
        final = self._file(exec_id, kind)
        temporary = final.with_name(f".{final.name}.{secrets.token_hex(8)}")
        with _failures(f"write the recording to {self._path}"):
            self._finished.mkdir(mode=0o700, exist_ok=True)
            try:
                descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
                with os.fdopen(descriptor, "wb") as file:
                    yield file
                    file.flush()
                    os.fsync(descriptor)
                temporary.replace(final)
            finally:
                temporary.unlink(missing_ok=True)

    def open(self, exec_id: str, kind: FileKind) -> BinaryIO:
        with _failures("read the recording"):
            return self._file(exec_id, kind).open("rb")

    def finished(self) -> list[str]:
        suffix = f".{FileKind.SEAL}"
        with _failures(f"read {self._path}"):
            try:
                names = [path.name for path in self._finished.iterdir()]
            except FileNotFoundError:
                return []
        return sorted(
            name.removesuffix(suffix) for name in names if name.endswith(suffix) and is_identifier(name[: -len(suffix)])
        )

    def delete(self, exec_id: str) -> None:
        with _failures("delete the recording"):
            # The seal first: what is left after a failure is no recording any more.
            for kind in (FileKind.SEAL, FileKind.CAST, FileKind.TEXT):
                self._file(exec_id, kind).unlink(missing_ok=True)

    def _folder(self, exec_id: str) -> Path:
        return self._unfinished / _checked(exec_id)

    def _file(self, exec_id: str, kind: FileKind) -> Path:
        return self._finished / f"{_checked(exec_id)}.{kind}"


def _checked(exec_id: str) -> str:
    if not is_identifier(exec_id):
        raise StoreFailed(f"{exec_id[:80]!r} is no id of an execution")
    return exec_id
