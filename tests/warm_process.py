"""The process that imports the program once and forks for each start of it; `warm_start` starts it.

Usage: `warm_process.py DESCRIPTOR`, a socket that preserves messages. An order is JSON with descriptors; its answer is
the process id of the fork.
"""

from __future__ import annotations

import ctypes
import fcntl
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import sys
import termios
import time
from contextlib import suppress
from typing import IO, Any

#: They import everything that most starts import.
_MODULES = (
    "tachikoma.cli.app",
    "tachikoma_orchestrator.commands.orchestrator",
    "tachikoma_orchestrator.commands.submitter",
    "tachikoma_orchestrator.commands.beat",
    "tachikoma_orchestrator.processes.server",
    "tachikoma_orchestrator.processes.submitter_app",
    "tachikoma_worker.command",
    "tachikoma_worker.celery_app",
    "tachikoma_worker.engine.engine",
)
#: PR_SET_PDEATHSIG, prctl(2).
_DEATH_SIGNAL = 1
_ORDER_BYTES = 1 << 20
_ORDER_DESCRIPTORS = 16


def main() -> None:
    """Fork for each order until the socket is closed. In a fork, be the program."""
    with socket.socket(fileno=int(sys.argv[1])) as orders:
        # As with `-m`, and not this folder.
        sys.path[0] = os.getcwd()
        for module in _MODULES:
            importlib.import_module(module)
        # Only the thread that forks is in a fork; another one could hold a lock for ever.
        assert len(os.listdir("/proc/self/task")) == 1
        # The collector of a fork leaves these objects alone, so that their memory stays shared.
        gc.collect()
        gc.freeze()
        order = _serve(orders)
    if order is not None:
        _be_the_program(**order)


def _serve(orders: socket.socket) -> dict[str, Any] | None:
    """Answer orders. Return the order in its fork, and None when no more orders come."""
    while True:
        raw, received, _, _ = socket.recv_fds(orders, _ORDER_BYTES, _ORDER_DESCRIPTORS)
        if not raw:
            return None
        order = json.loads(raw)
        pid, ready = _fork()
        if pid == 0:
            return {**order, "received": received, "ready": ready}
        for descriptor in received:
            os.close(descriptor)
        orders.sendall(b"%d" % pid)


def _fork() -> tuple[int, int]:
    """Fork a process that has no parent here.

    Returns:
        The process id of the fork. In the fork, 0 and a descriptor; closing it ends the wait of the process that
        forks for the set-up of the fork.
    """
    read_end, write_end = os.pipe()
    between = os.fork()
    if between == 0:
        parent = os.getpid()
        pid = os.fork()
        if pid != 0:
            os.write(write_end, b"%d" % pid)
            os._exit(0)
        while os.getppid() == parent:
            time.sleep(0.001)
        os.close(read_end)
        return 0, write_end
    os.close(write_end)
    with open(read_end, "rb") as pipe:
        answer = pipe.read()
    os.waitpid(between, 0)
    return int(answer), -1


def _be_the_program(
    arguments: list[str],
    environment: dict[str, str],
    folder: str,
    descriptors: list[int],
    received: list[int],
    ready: int,
    session: bool,
    terminal: bool,
    with_parent: bool,
) -> None:
    """Make this process what a start would have made, and run the program."""
    if session:
        os.setsid()
    if with_parent:
        ctypes.CDLL(None).prctl(_DEATH_SIGNAL, signal.SIGTERM)
    if terminal:
        fcntl.ioctl(received[0], termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    _take(received, descriptors, ready)
    sys.stdin = sys.__stdin__ = _stream(sys.stdin, 0, "r")
    sys.stdout = sys.__stdout__ = _stream(sys.stdout, 1, "w")
    sys.stderr = sys.__stderr__ = _stream(sys.stderr, 2, "w")
    sys.path[0] = folder
    sys.argv = ["-m", *arguments]
    sys.orig_argv = [sys.executable, "-m", "tachikoma", *arguments]
    runpy.run_module("tachikoma", run_name="__main__", alter_sys=True)


def _take(received: list[int], numbers: list[int], last: int) -> None:
    """Give received descriptors their numbers, and close all others, one of them last."""
    # First out of the way: one may have the number of another.
    above = max(*numbers, *received) + 1
    *moved, last = [fcntl.fcntl(descriptor, fcntl.F_DUPFD, above) for descriptor in (*received, last)]
    for descriptor, number in zip(moved, numbers, strict=True):
        os.dup2(descriptor, number)
    for descriptor in map(int, os.listdir("/proc/self/fd")):
        # The descriptor of the listing is closed already.
        with suppress(OSError):
            if descriptor not in (*numbers, last):
                os.close(descriptor)
    os.close(last)


def _stream(old: Any, number: int, mode: str) -> IO[Any]:
    """Open a standard stream as the interpreter does at its start."""
    buffering = 1 if number == 2 or (number == 1 and os.isatty(number)) else -1
    return open(number, mode, buffering, old.encoding, old.errors, newline="\n", closefd=False)


if __name__ == "__main__":
    main()
