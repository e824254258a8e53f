"""A process at a terminal of its own, as a person sees it: what it writes, and what is typed."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import termios
import time
from types import TracebackType
from typing import Self

import pytest

from patience import PATIENCE_SECONDS
from warm_start import WarmPopen, own_terminal

#: Parts of a process's output that are read at once.
READS = 64


class PtyProcess:
    """A process whose standard streams are a terminal."""

    def __init__(self, command: list[str], *, env: dict[str, str], rows: int = 24, columns: int = 80) -> None:
        self.master, self._slave = pty.openpty()
        termios.tcsetwinsize(self._slave, (rows, columns))
        #: The terminal's mode before the process.
        self.mode = termios.tcgetattr(self._slave)
        self.process = WarmPopen(
            command, stdin=self._slave, stdout=self._slave, stderr=self._slave,
            env={**env, "TERM": "xterm-256color"}, start_new_session=True, preexec_fn=own_terminal,
        )  # fmt: skip
        #: Everything that it wrote.
        self.output = bytearray()
        self._searched = 0
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
        self.process.wait(PATIENCE_SECONDS)
        self.close()

    def close(self) -> None:
        """Close the terminal, as a person closes a window: the process gets SIGHUP."""
        if not self._closed:
            self._closed = True
            os.close(self.master)
            os.close(self._slave)

    def type(self, text: str | bytes) -> None:
        """Type at the terminal."""
        data = text.encode() if isinstance(text, str) else text
        while data:
            data = data[os.write(self.master, data[:1024]) :]
            self._read(0)

    def resize(self, rows: int, columns: int) -> None:
        """Change the size of the window."""
        termios.tcsetwinsize(self._slave, (rows, columns))

    def expect(self, pattern: str | bytes) -> re.Match[bytes]:
        """Wait until a pattern appears after what was expected before."""
        wanted = re.compile(pattern.encode() if isinstance(pattern, str) else pattern)
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            found = wanted.search(self.output, self._searched)
            if found:
                self._searched = found.end()
                return found
            if time.monotonic() > deadline:
                pytest.fail(f"{pattern!r} did not appear in {bytes(self.output[self._searched :])!r}")
            self._read(0.1)

    def wait(self) -> int:
        """Wait until the process ends; return its exit code. What it still writes is read."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while self.process.poll() is None:
            if time.monotonic() > deadline:
                pytest.fail(f"does not end: {bytes(self.output[self._searched :])!r}")
            self._read(0.05)
        self._read(0)
        return self.process.returncode

    def restored(self) -> bool:
        """Whether the terminal has the mode of before."""
        return termios.tcgetattr(self._slave) == self.mode

    def _read(self, seconds: float) -> None:
        # Not until nothing comes: a program may write for ever.
        for _ in range(READS):
            if not select.select([self.master], [], [], seconds)[0]:
                return
            self.output += os.read(self.master, 65536)
            seconds = 0
