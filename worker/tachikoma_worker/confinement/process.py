"""A running command as the worker sees it: its pipes, its input, its exit, and the way to kill it."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

from tachikoma.vocabulary.requests import WindowSize
from tachikoma_worker.confinement.protocol import (
    INPUT_BYTES,
    NO_INPUT,
    Exit,
    InputMode,
    InputStatus,
    SpawnerGone,
    SpawnFailed,
    Survivors,
)

__all__ = ["KILL_POLL_SECONDS", "KILL_SECONDS", "Controls", "Process", "kill_all"]

#: Delay between two KILLs while processes are still there.
KILL_POLL_SECONDS = 0.02
#: Time after the first KILL in which all processes must be gone. The rest counts as survivors.
KILL_SECONDS = 5.0


class Controls(Protocol):
    """The operations of the spawner that act on one command. Each raises SpawnFailed or SpawnerGone."""

    async def signal(self, name: str, number: int, *, foreground: bool = False) -> None:
        """Send a signal to a command's process group, or to the foreground group of its terminal."""

    async def send_input(self, name: str, offset: int, data: memoryview) -> None:
        """Send bytes of input that begin at an offset. `Process.on_input` receives how many were accepted."""

    async def end_input(self, name: str, offset: int) -> None:
        """End a command's input at an offset."""

    async def resize(self, name: str, size: WindowSize) -> None:
        """Set the size of a command's terminal."""

    async def hang_up(self, name: str) -> None:
        """Close a command's terminal."""

    async def kill(self, name: str) -> Survivors:
        """Kill all processes of a command once."""

    async def release(self, name: str) -> None:
        """Remove a command that has ended from the spawner."""


class Process:
    """A running command and the read ends of its pipes. The output of a terminal comes from `stdout`."""

    def __init__(
        self, controls: Controls, name: str, pid: int, stdout: int, stderr: int, status: InputStatus = NO_INPUT
    ) -> None:
        self._controls = controls
        self.name = name
        self.pid = pid
        self.stdout = stdout
        self.stderr = stderr
        #: Last known state of the input.
        self.input = status
        #: Called when the state of the input has changed; None for no call.
        self.input_changed: Callable[[], None] | None = None
        self._room = asyncio.Event()
        #: True while `feed` is to send nothing more.
        self._feeding_stopped = False
        #: Resolves when the command has ended. Fails with SpawnerGone if its end can no longer be known.
        self.exited: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()

    async def kill(self, grace_seconds: float) -> list[int]:
        """End the command: TERM to its process group, the grace, then KILL to all of its cgroup until it is empty.

        A terminal is hung up with the TERM, which a shell at its prompt ignores.

        Returns:
            Process ids of the survivors, at most 32; empty if all processes are gone.
        """
        await self.signal(signal.SIGTERM)
        if self.input.mode is InputMode.TERMINAL:
            await self.hang_up()
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

    async def signal_foreground(self, number: int) -> None:
        """Send a signal to the foreground group of the terminal, or without one to the command's process group."""
        with suppress(SpawnFailed):
            await self._controls.signal(self.name, number, foreground=self.input.mode is InputMode.TERMINAL)

    async def feed(self, offset: int, data: bytes) -> None:
        """Send input, and wait until the spawner has accepted it; `input.offset` is its progress. May be cancelled.

        Bytes below the accepted offset are ignored. Input that a command no longer reads counts as accepted. After
        `stop_feeding`, the call returns as soon as the spawner has answered, and the rest is not sent.

        Args:
            offset: number of input bytes before these.
            data: the bytes.

        Raises:
            SpawnFailed: the offset leaves a gap, the input has ended, or the command is gone or takes no input.
            SpawnerGone: the spawner no longer answers.
        """
        rest = memoryview(data)
        self._feeding_stopped = False
        while offset + len(data) > self.input.offset and not self._feeding_stopped:
            known = max(self.input.offset - offset, 0)
            part = rest[known : known + INPUT_BYTES]
            self._room.clear()
            await self._controls.send_input(self.name, offset + known, part)
            if self.input.offset < offset + known + len(part):
                # Not all of it. An event reports when there is room.
                await self._room.wait()

    def stop_feeding(self) -> None:
        """End a running `feed`, which then drops the rest of its input. Without one, this changes nothing."""
        self._feeding_stopped = True
        self._room.set()

    async def end_input(self, offset: int) -> None:
        """End the input at an offset. Raises as `feed`."""
        await self._controls.end_input(self.name, offset)

    async def resize(self, size: WindowSize) -> None:
        """Set the size of the terminal. A terminal that is gone is no error."""
        with suppress(SpawnFailed):
            await self._controls.resize(self.name, size)

    async def hang_up(self) -> None:
        """Close the terminal: its processes get SIGHUP. A terminal that is gone is no error."""
        with suppress(SpawnFailed):
            await self._controls.hang_up(self.name)

    def on_input(self, status: InputStatus, *, room: bool) -> None:
        """Take a state of the input that the spawner reported; `room` is true for an event."""
        changed = status != self.input
        self.input = status
        if room:
            self._room.set()
        if changed and self.input_changed is not None:
            self.input_changed()

    def leave(self) -> None:
        """Close the pipes and leave the command to a later worker."""
        os.close(self.stdout)
        os.close(self.stderr)

    async def close(self) -> None:
        """Close the pipes. If the command has ended, remove it from the spawner."""
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
