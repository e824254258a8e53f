"""Servers for backups: the embedded Valkey and Debian's Redis, each in a folder of its own."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import redis as redis_py
from redis.exceptions import RedisError

from patience import PATIENCE_SECONDS

__all__ = ["running", "url_of"]


@contextmanager
def running(program: Path, folder: Path) -> Iterator[redis_py.Redis]:
    """A server with `appendonly yes` and `dir`, and a client of it."""
    # Not under tmp_path: the path of a unix socket has at most 107 bytes.
    place = Path(tempfile.mkdtemp(prefix="tk-"))
    socket = place / "redis.sock"
    server = subprocess.Popen(
        [
            program, *("--port", "0", "--unixsocket", socket, "--unixsocketperm", "700"),
            *("--dir", folder, "--save", "", "--appendonly", "yes", "--logfile", place / "log"),
        ],
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        with redis_py.Redis(unix_socket_path=str(socket)) as client:
            until = time.monotonic() + PATIENCE_SECONDS
            while not _answers(client):
                assert server.poll() is None, (place / "log").read_text()
                assert time.monotonic() < until
                time.sleep(0.02)
            yield client
    finally:
        server.terminate()
        server.wait()
        shutil.rmtree(place)


def url_of(client: redis_py.Redis) -> str:
    return f"unix://{client.connection_pool.connection_kwargs['path']}"


def _answers(client: redis_py.Redis) -> bool:
    try:
        return bool(client.ping())
    except RedisError:
        return False
