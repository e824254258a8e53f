"""Quick starts of `python -m tachikoma` for tests: forks of a process that has imported the program already.

A start imports about 1,200 modules, which takes more than a second of a processor, and the tests make hundreds of
starts. Here a process beside each test process imports them once and forks for each start. A fork has the arguments,
environment, descriptors, session, parent and signals that a start would have; only /proc/<pid>/cmdline differs.
"""

from __future__ import annotations

import atexit
import ctypes
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import termios
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from patience import PATIENCE_SECONDS
from tachikoma.dev.part import WITH_PARENT

__all__ = ["WarmPopen", "interruptible", "own_terminal", "run"]

_PROGRAM = [sys.executable, "-m", "tachikoma"]
#: Positions in what `subprocess` passes to `_execute_child`.
_ARGUMENTS, _PREEXEC, _PASS_FDS, _CWD, _ENVIRONMENT, _SESSION = 0, 2, 4, 5, 6, 21
_STREAMS, _PIPES = (10, 13, 15), slice(10, 16)
#: Variables that change all the time, and that nothing reads at its start. (In a virtual environment Python does not
#: read HOME either.) The last two are set by the program itself, before it imports what reads them.
_HARMLESS = {
    "PYTEST_CURRENT_TEST", "COLUMNS", "TERM", "HOME", "USER", "GRPC_VERBOSITY", "PYDANTIC_DISABLE_PLUGINS",
}  # fmt: skip
#: The variables before any test changed some: the first start may be in a test that has.
_ENVIRONMENT_OF_TESTS = dict(os.environ)
#: PR_SET_CHILD_SUBREAPER, prctl(2).
_SUBREAPER = 36


def interruptible() -> None:
    """Let Ctrl-C end a process even if the tests ignore it: a `preexec_fn`. A fork is always so."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def own_terminal() -> None:
    """Make standard input the controlling terminal of the new session: a `preexec_fn`."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    interruptible()


class _Forker:
    """The process that has imported the program."""

    def __init__(self) -> None:
        #: The variables that it starts with.
        self.environment = _ENVIRONMENT_OF_TESTS
        self._one_at_a_time = threading.Lock()
        # One message for each order and each answer.
        self._orders, other = socket.socketpair(type=socket.SOCK_SEQPACKET)
        self._orders.settimeout(PATIENCE_SECONDS)
        with other:
            self._process = subprocess.Popen(
                [*WITH_PARENT, sys.executable, str(Path(__file__).with_name("warm_process.py")), str(other.fileno())],
                stdin=subprocess.DEVNULL, pass_fds=(other.fileno(),), start_new_session=True, env=self.environment,
            )  # fmt: skip
        atexit.register(self._close)

    def _close(self) -> None:
        self._orders.close()
        try:
            self._process.wait(PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()

    def fork(self, order: Mapping[str, object], descriptors: Sequence[int]) -> int:
        """Fork a child of this process, and return its process id."""
        with self._one_at_a_time:
            # A process whose parent ends becomes a child of its nearest ancestor that wants such children.
            _prctl(_SUBREAPER, 1)
            try:
                socket.send_fds(self._orders, [json.dumps(order).encode()], descriptors)
                answer = self._orders.recv(64)
            except BaseException:
                # Whoever comes next must not get the answer to this order.
                WarmPopen._forker = None
                self._process.kill()
                raise
            finally:
                _prctl(_SUBREAPER, 0)
        assert answer, "the process that forks ended"
        return int(answer)


def _prctl(option: int, value: int) -> None:
    assert ctypes.CDLL(None).prctl(option, value) == 0


class WarmPopen(subprocess.Popen[Any]):
    """A `subprocess.Popen` that forks `python -m tachikoma`, if a fork is the same as a start.

    A variable that does not begin with TACHIKOMA_ may concern the interpreter or a library, so it needs a start.
    """

    #: None before the first start.
    _forker: _Forker | None = None

    def _execute_child(self, *values: Any) -> None:
        order = self._order(values)
        if order is None:
            super()._execute_child(*values)  # type: ignore[misc]
            return
        inherited = list(values[_PASS_FDS])
        # -1 means the stream of this process.
        streams = [number if values[place] == -1 else values[place] for number, place in enumerate(_STREAMS)]
        order["descriptors"] = [0, 1, 2, *inherited]
        self.pid = self._warm().fork(order, [*streams, *inherited])
        self._child_created = True
        self._close_pipe_fds(*values[_PIPES])  # type: ignore[attr-defined]

    @classmethod
    def _warm(cls) -> _Forker:
        if WarmPopen._forker is None:
            WarmPopen._forker = _Forker()
        return WarmPopen._forker

    def _order(self, values: Sequence[Any]) -> dict[str, object] | None:
        """Return what to fork; None if it must be started."""
        arguments = [os.fsdecode(word) for word in values[_ARGUMENTS]]
        with_parent = arguments[: len(WITH_PARENT)] == list(WITH_PARENT)
        if with_parent:
            arguments = arguments[len(WITH_PARENT) :]
        # Flower and its web server are not imported beforehand: few tests start them.
        if (
            arguments[:3] != _PROGRAM
            or arguments[3:4] == ["flower"]
            or values[_PREEXEC] not in (None, interruptible, own_terminal)
        ):
            return None
        environment = dict(os.environ if values[_ENVIRONMENT] is None else values[_ENVIRONMENT])
        # `coverage` measures a process from the start of its interpreter.
        if any(name.startswith("COVERAGE_") for name in environment):
            return None
        before = self._warm().environment
        changed = {name for name in before.keys() | environment.keys() if before.get(name) != environment.get(name)}
        if not all(name.startswith("TACHIKOMA_") for name in changed - _HARMLESS):
            return None
        return {
            "arguments": arguments[3:], "environment": environment, "folder": os.fspath(values[_CWD] or os.getcwd()),
            "session": bool(values[_SESSION]), "terminal": values[_PREEXEC] is own_terminal, "with_parent": with_parent,
        }  # fmt: skip


def run(
    command: Sequence[str], *, input: bytes | None = None, env: Mapping[str, str], timeout: float
) -> subprocess.CompletedProcess[bytes]:
    """Run a command to its end as `subprocess.run` does, with an empty input by default, and capture its output."""
    with WarmPopen(
        command, stdin=subprocess.DEVNULL if input is None else subprocess.PIPE,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env,
    ) as process:  # fmt: skip
        try:
            out, err = process.communicate(input, timeout)
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)
