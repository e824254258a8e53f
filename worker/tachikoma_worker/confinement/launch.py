"""Starting the spawner program: one of the worker's own, or one that root runs for a worker without root's rights."""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path
from typing import NoReturn

from tachikoma.errors import ConfigurationError

__all__ = ["PROGRAM", "become_spawner", "start_spawner"]

#: The program, installed in the package's folder.
PROGRAM = Path(__file__).parents[1] / "tachikoma-spawner"
#: The spawner ends by itself after this time without a worker and without a running command.
LINGER_SECONDS = 600
#: Workers that may wait for the spawner to accept their connection.
BACKLOG = 4


def start_spawner(path: Path, connection: socket.socket, capabilities: int) -> subprocess.Popen[bytes]:
    """Start a spawner that listens at a path, and connect to it.

    Args:
        path: path of its socket.
        connection: unconnected socket; connected afterwards.
        capabilities: bits of the capabilities that a command may keep at most.

    Raises:
        ConfigurationError: this installation has no spawner.
        OSError: the socket cannot be made.
    """
    with _listen(path) as listener:
        # In a session of its own, so that it stays when the worker is killed, and holds the running commands.
        program = subprocess.Popen(
            _command(listener, peer=os.getuid(), linger_seconds=LINGER_SECONDS, capabilities=capabilities),
            stdin=subprocess.DEVNULL,
            pass_fds=(listener.fileno(),),
            start_new_session=True,
        )
        connection.connect(str(path))
    return program


def become_spawner(path: Path, uid: int, gid: int, capabilities: int) -> NoReturn:
    """Replace this process with a spawner that serves another user's worker until it is ended.

    Args:
        path: path of its socket.
        uid, gid: owner of the socket, the worker's user.
        capabilities: bits of the capabilities that a command may keep at most.

    Raises:
        ConfigurationError: the socket cannot be made, or this installation has no spawner.
    """
    try:
        listener = _listen(path)
        os.chown(path, uid, gid)
    except OSError as error:
        raise ConfigurationError(f"cannot listen at {path}: {error.strerror}") from error
    os.set_inheritable(listener.fileno(), True)
    command = _command(listener, peer=uid, linger_seconds=0, capabilities=capabilities)
    os.execv(PROGRAM, command)  # noqa: S606 (starting that program is the purpose)


def _listen(path: Path) -> socket.socket:
    """Return a listening socket at a path that only its owner may connect to."""
    if not PROGRAM.exists():
        raise ConfigurationError(
            "this installation has no spawner, so it can run no agent: there was no C compiler when it was installed. "
            "Install one (Debian: gcc, libc6-dev), then `pip install --force-reinstall --no-deps --no-cache-dir "
            "tachikoma-exec`; pip would take the wheel without a spawner from its cache again"
        )
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(str(path))
        path.chmod(0o600)
        listener.listen(BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener


def _command(listener: socket.socket, *, peer: int, linger_seconds: int, capabilities: int) -> list[str]:
    """Return the spawner's command line; with a linger of 0 seconds the spawner waits forever for its next worker."""
    return [
        *(str(PROGRAM), "--socket", str(listener.fileno()), "--peer", str(peer)),
        *("--linger", str(linger_seconds), "--capabilities", str(capabilities)),
    ]
