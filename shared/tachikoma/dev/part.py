"""One process of a stack.

Every process is started in a session of its own, so that Ctrl-C reaches only its supervisor. It ends with its
supervisor, even if that is killed.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from tachikoma.errors import ConfigurationError

__all__ = ["START_SECONDS", "STOP_SECONDS", "WITH_PARENT", "Part"]

#: Longest time that a part may take to be ready.
START_SECONDS = 60.0
#: Longest time that a part may take to end after TERM, before it is killed.
STOP_SECONDS = 30.0
#: Between two checks of a part that cannot report its readiness.
POLL_SECONDS = 0.02
#: Between two checks whether a part still runs that has not reported its readiness.
REPORT_SECONDS = 0.5
#: Lines of a part's log that are shown when it fails.
LOG_LINES = 15

#: Starts a program so that it gets SIGTERM when this process ends in any way (PR_SET_PDEATHSIG, prctl(2)). A
#: `preexec_fn` would make subprocess fork, and in a process with an open gRPC stream the child of a fork may crash.
WITH_PARENT = (
    *(sys.executable, "-I", "-S", "-c"),
    "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 15); os.execv(sys.argv[1], sys.argv[1:])",
)


class Part:
    """A process that can be started, stopped and started again. Its output goes to its log."""

    #: Starts its process; tests replace it.
    popen: type[subprocess.Popen[bytes]] = subprocess.Popen

    def __init__(self, name: str, command: Sequence[str], log: Path, environment: dict[str, str]) -> None:
        """Prepare a process; nothing is started.

        Args:
            name: its name in messages.
            command: the program and its arguments.
            log: the file that its output is appended to.
            environment: variables besides those of this process.
        """
        self.name = name
        self._command = list(command)
        self._log = log
        self._environment = environment
        #: Descriptors that the process inherits.
        self._inherited: tuple[int, ...] = ()
        #: None before the start and after a stop.
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Process id; the part must have been started."""
        assert self.process is not None
        return self.process.pid

    @property
    def alive(self) -> bool:
        """True while the process runs."""
        return self.process is not None and self.process.poll() is None

    def keep_option(self, option: str, value: str) -> None:
        """Change the value of an option, for the next start."""
        self._command[self._command.index(option) + 1] = value

    def inherit(self, descriptor: int) -> None:
        """Pass an open descriptor to the process at each further start."""
        self._inherited = (*self._inherited, descriptor)

    def start(self) -> None:
        """Start the process."""
        self._start()

    def start_until_ready(self) -> str:
        """Start a program that supports `--ready-fd` (`tachikoma.config.readiness`), and wait until it is ready.

        Returns:
            Its address; empty if it does not listen.

        Raises:
            ConfigurationError: it ended before it was ready, or is not ready after `START_SECONDS`.
        """
        read_end, write_end = os.pipe()
        try:
            try:
                self._start("--ready-fd", str(write_end), inherited=(write_end,))
            finally:
                os.close(write_end)
            line = self._report(read_end)
        finally:
            os.close(read_end)
        address: str = json.loads(line)["address"]
        return address

    def _report(self, descriptor: int) -> str:
        """Return the line by which the process reports that it is ready. Raises ConfigurationError.

        A child of the process may have inherited its end of the pipe, so not only the end of the pipe is waited for.
        """
        deadline, report = time.monotonic() + START_SECONDS, b""
        while not report.endswith(b"\n"):
            if select.select([descriptor], [], [], REPORT_SECONDS)[0]:
                part = os.read(descriptor, 65536)
                if not part:
                    raise self.failed()
                report += part
            elif not self.alive:
                raise self.failed()
            elif time.monotonic() > deadline:
                raise self.late()
        return report.decode()

    def _start(self, *options: str, inherited: tuple[int, ...] = ()) -> None:
        with self._log.open("ab") as log:
            self.process = self.popen(
                [*WITH_PARENT, *self._command, *options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **self._environment},
                pass_fds=(*self._inherited, *inherited),
                start_new_session=True,
            )

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Wait until a condition is true.

        Raises:
            ConfigurationError: the process ended, or the condition is not true after `START_SECONDS`.
        """
        deadline = time.monotonic() + START_SECONDS
        while not condition():
            if not self.alive:
                raise self.failed()
            if time.monotonic() > deadline:
                raise self.late()
            time.sleep(POLL_SECONDS)

    def run_once(self, *options: str) -> None:
        """Run the command with further options until it ends, at most for `STOP_SECONDS`."""
        with self._log.open("ab") as log, suppress(subprocess.TimeoutExpired):
            subprocess.run(
                [*self._command, *options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **self._environment},
                timeout=STOP_SECONDS,
                check=False,
            )

    def terminate(self) -> None:
        """Send TERM and do not wait; `stop` waits."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()

    def stop(self, seconds: float = STOP_SECONDS) -> None:
        """End the process: TERM, and KILL after some seconds."""
        if self.process is None:
            return
        self.terminate()
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process = None

    def kill(self) -> None:
        """End the process by KILL, as a crash would."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        self.process = None

    def late(self) -> ConfigurationError:
        """Return the error of a process that runs and is not ready in time."""
        return ConfigurationError(f"{self.name} is not ready after {START_SECONDS:g} s; its log is {self._log}")

    def failed(self) -> ConfigurationError:
        """Return the error of a process that ended by itself, after waiting for its end."""
        if self.process is not None:
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(STOP_SECONDS)
        return ConfigurationError(self.failure())

    def failure(self) -> str:
        """Return how the process ended, with the last lines of its log."""
        status = self.process.poll() if self.process is not None else None
        with suppress(OSError):
            lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_LINES:]
            return f"{self.name} ended with status {status}; its log {self._log} ends:\n" + "\n".join(lines)
        return f"{self.name} ended with status {status}"
