"""A running command as the worker sees it: its pipes, its exit, and the way to kill it."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import suppress
from typing import Protocol

from tachikoma_worker.confinement.protocol import Exit, SpawnerGone, SpawnFailed, Survivors

__all__ = ["KILL_POLL_SECONDS", "KILL_SECONDS", "Controls", "Process", "kill_all"]

#: Delay between two KILLs while processes are still there.
KILL_POLL_SECONDS = 0.02
#: Time after the first KILL in which all processes must be gone. The rest counts as survivors.
KILL_SECONDS = 5.0


class Controls(Protocol):
    """The operations of the spawner that act on one command. Each raises SpawnFailed or SpawnerGone."""

    async def signal(self, name: str, number: int) -> None:
        """Send a signal to a command's process group."""

    async def kill(self, name: str) -> Survivors:
        """Kill all processes of a command once."""

    async def release(self, name: str) -> None:
        """Let the spawner forget a command that has ended."""


class Process:
    """A running command and the read ends of its pipes."""

    def __init__(self, controls: Controls, name: str, pid: int, stdout: int, stderr: int) -> None:
        self._controls = controls
        self.name = name
        self.pid = pid
        self.stdout = stdout
        self.stderr = stderr
        #: Resolves when the command has ended. Fails with SpawnerGone if its end can no longer be known.
        self.exited: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()

    async def kill(self, grace_seconds: float) -> list[int]:
        """End the command: TERM to its process group, the grace, then KILL to all of its cgroup until it is empty.

        Returns:
            Process ids of the survivors, at most 32; empty if all processes are gone.
        """
        await self.signal(signal.SIGTERM)
        await asyncio.wait((self.exited,), timeout=grace_seconds)
        return await self.kill_all()

    async def kill_all(self) -> list[int]:
        """Send KILL to all of the command's cgroup, or of its process group, until it is empty.

        Returns:
            Process ids of the survivors, as from `kill`.
        """
        return await kill_all(self._controls, self.name)

    async def signal(self, number: int) -> None:
        """Send a signal to the process group. A group that is gone is no error."""
        with suppress(SpawnFailed):
            await self._controls.signal(self.name, number)

    def leave(self) -> None:
        """Close the pipes and leave the command to a later worker."""
        os.close(self.stdout)
        os.close(self.stderr)

    async def close(self) -> None:
        """Close the pipes. If the command has ended, let the spawner forget it."""
        self.leave()
        if self.exited.done() and self.exited.exception() is None:
            with suppress(SpawnFailed, SpawnerGone):
                await self._controls.release(self.name)


async def kill_all(controls: Controls, name: str) -> list[int]:
    """Send KILL to all processes of a command until none is left or `KILL_SECONDS` have passed.

    Args:
        controls: the spawner that holds the command.
        name: the execution's id.

    Returns:
        Process ids of the survivors, at most 32.
    """
    deadline = asyncio.get_running_loop().time() + KILL_SECONDS
    while True:
        survivors = await controls.kill(name)
        if not survivors.count or asyncio.get_running_loop().time() > deadline:
            return survivors.pids
        await asyncio.sleep(KILL_POLL_SECONDS)
