"""A copy of everything in a live Redis, received as a replica receives it: consistent, and without its host's files.

The protocol is that of PSYNC: https://redis.io/docs/latest/operate/oss_and_stack/management/replication/. Without the
capability `eof`, the server announces the length of the copy. With `rdb-only` it sends no changes after it.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast
from urllib.parse import unquote, urlsplit

from tachikoma.errors import Unavailable
from tachikoma.redis.access import RedisAccess
from tachikoma.redis.users import BACKUP

__all__ = ["Snapshot", "copy_snapshot"]

#: Longest silence of the server, in seconds. It sends an empty line each second while it prepares the copy.
SILENCE_SECONDS = 60.0
DEFAULT_PORT = 6379
BLOCK = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A copy that was received."""

    replid: str
    offset: int
    size: int


def copy_snapshot(access: RedisAccess, target: Path) -> Snapshot:
    """Copy everything in Redis to a new file, in the format RDB.

    Args:
        access: as the user `backup`, or one with more rights.
        target: the file; it must not exist.

    Raises:
        Unavailable: the server refuses, cannot be reached, or stopped sending.
        OSError: the file cannot be written.
    """
    with _connected(access) as connection, connection.makefile("rb") as answers:
        for command in _login(access):
            _ask(connection, answers, *command)
        _ask(connection, answers, "REPLCONF", "rdb-only", "1")
        words = _ask(connection, answers, "PSYNC", "?", "-1").split()
        if len(words) != 3 or words[0] != "FULLRESYNC":
            raise Unavailable(f"Redis sends no copy: it answered {' '.join(words)[:200]!r}")
        size = _announced(cast(BinaryIO, answers))
        with os.fdopen(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            _receive(cast(BinaryIO, answers), file, size)
            file.flush()
            os.fsync(file.fileno())
    return Snapshot(words[1], int(words[2]), size)


@contextmanager
def _connected(access: RedisAccess) -> Iterator[socket.socket]:
    """Connect to the server, or to the primary that the Sentinels name; errors of the connection become Unavailable."""
    parts = urlsplit(access.url)
    try:
        if parts.scheme == "unix":
            plain = socket.socket(socket.AF_UNIX)
            plain.settimeout(SILENCE_SECONDS)
            with closing(plain):
                plain.connect(unquote(parts.path))
                yield plain
            return
        host, port = parts.hostname or "localhost", parts.port or DEFAULT_PORT
        if access.primary is not None:
            host, port = access.primary.known()
        with closing(socket.create_connection((host, port), SILENCE_SECONDS)) as plain:
            if access.tls is None:
                yield plain
            else:
                with closing(access.tls.get().wrap_socket(plain, server_hostname=host)) as secured:
                    yield secured
    except ConnectionError as error:
        raise Unavailable(f"Redis closed the connection: {error}", metadata={"dependency": "redis"}) from error
    except TimeoutError as error:
        raise Unavailable(
            f"Redis sent nothing for {SILENCE_SECONDS:.0f} s", metadata={"dependency": "redis"}
        ) from error


def _login(access: RedisAccess) -> list[tuple[str, ...]]:
    if access.credentials is None:
        return []
    return [("AUTH", *map(str, access.credentials.get_credentials()))]


def _ask(connection: socket.socket, answers: BinaryIO, *words: str) -> str:
    """Send a command, and return its answer of one line.

    Raises:
        Unavailable: the answer is an error.
    """
    encoded = [word.encode() for word in words]
    connection.sendall(b"*%d\r\n" % len(encoded) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in encoded))
    line = _line(answers)
    if not line.startswith("+"):
        needs = f"; the user needs the rights of {BACKUP}: docs/redis.md" if "NOPERM" in line else ""
        raise Unavailable(f"Redis refuses {words[0]}: {line.removeprefix('-')[:300]}{needs}")
    return line[1:]


def _line(answers: BinaryIO) -> str:
    """Return the next line that is not empty."""
    while True:
        line = answers.readline(BLOCK)
        if not line:
            raise ConnectionError("it ended before its answer")
        if line.strip():
            return line.decode("utf-8", "replace").strip()


def _announced(answers: BinaryIO) -> int:
    """Return the length of the copy, which the server announces when it has prepared it."""
    line = _line(answers)
    if not line.startswith("$") or not line[1:].isdigit():
        raise Unavailable(f"Redis sends no copy: {line[:300]}")
    return int(line[1:])


def _receive(answers: BinaryIO, file: BinaryIO, size: int) -> None:
    rest = size
    while rest:
        block = answers.read(min(rest, BLOCK))
        if not block:
            raise ConnectionError(f"it ended {rest} bytes before the end of the copy")
        file.write(block)
        rest -= len(block)
