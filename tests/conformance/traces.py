"""The traces that a command leaves on the host: the only proof of a start that does not come from the engine."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
from support import gone

__all__ = ["Traces"]


@dataclass(frozen=True)
class Traces:
    """A folder in which a command of the shell writes its process id at each start, and where it waits for a word."""

    folder: Path

    @classmethod
    @contextmanager
    def within(cls, folder: Path) -> Iterator[Traces]:
        """Make the folder, and remove it at the end. Its commands end then, whatever became of their engine."""
        folder.mkdir()
        try:
            yield cls(folder)
        finally:
            shutil.rmtree(folder)

    def command(self, *steps: str, waits: bool = False) -> tuple[str, ...]:
        """Return an argv that records its start, then runs steps, and waits for `go` between two of them.

        Args:
            steps: scripts.
            waits: whether to wait for `go` after the last step too.
        """
        folder = shlex.quote(str(self.folder))
        script = [f"echo $$ >> {folder}/starts", *steps[:1]]
        for number, step in enumerate([*steps[1:], *([":"] if waits else [])], 1):
            script += [f"until [ -e {folder}/go-{number} ] || [ ! -d {folder} ]; do sleep 0.05; done", step]
        return "/bin/sh", "-c", "; ".join(script)

    def go(self) -> None:
        """Let the commands of this folder run their next step."""
        (self.folder / f"go-{len(list(self.folder.glob('go-*'))) + 1}").touch()

    @property
    def pids(self) -> list[int]:
        """The process ids of all starts so far."""
        path = self.folder / "starts"
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        return [int(line) for line in lines if line.endswith("\n")]

    @property
    def starts(self) -> int:
        """The number of starts so far."""
        return len(self.pids)

    @property
    def runs(self) -> bool:
        """True while a command of this folder runs."""
        return any(not gone(pid) for pid in self.pids if psutil.pid_exists(pid))
