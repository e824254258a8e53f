"""The interface of cgroups, its implementation for hosts without any, and file access that v1 and v2 share.

The directory of a cgroup is `<name>/<agent>/<execution>`.
"""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from contextlib import suppress
from pathlib import Path
from typing import ClassVar

from tachikoma.vocabulary.limits import ResourceLimits, ResourceUsage
from tachikoma_worker.cgroups.limits import CONTROLLERS, needed

__all__ = [
    "Cgroup",
    "Hierarchy",
    "NoCgroup",
    "NoHierarchy",
    "block_devices",
    "keyed_number",
    "lacking_controllers",
    "number",
    "open_directory",
    "read_text",
    "remove_tree",
]

#: Longest time that `remove_tree` waits for dying processes to leave a cgroup.
REMOVE_SECONDS = 2.0
#: Delay between its attempts.
REMOVE_POLL_SECONDS = 0.005


class Cgroup(ABC):
    """The cgroup of one execution. Its methods block. `remove` closes its descriptors."""

    #: Directories for the spawner. The first one is killed as a whole. Empty if there is no cgroup.
    fds: tuple[int, ...] = ()
    #: Whether this is a cgroup of v2.
    unified: ClassVar[bool] = False

    @abstractmethod
    def populated(self) -> bool:
        """Return whether the cgroup contains a process."""

    @abstractmethod
    def usage(self) -> ResourceUsage:
        """Return the resources that its processes have used; None for values that the host does not report."""

    @abstractmethod
    def remove(self) -> bool:
        """Remove the cgroup once it is empty.

        Returns:
            False if it could not be removed. The next start of the worker tries again.
        """

    def close(self) -> None:
        """Close the descriptors."""
        fds, self.fds = self.fds, ()
        for fd in fds:
            os.close(fd)


class Hierarchy(ABC):
    """The place where the cgroups of an agent are created."""

    #: The controllers that can enforce limits here, a subset of `CONTROLLERS`.
    controllers: frozenset[str] = frozenset()
    #: Limitations of this host, for people.
    warnings: tuple[str, ...] = ()

    def missing(self, limits: ResourceLimits) -> list[str]:
        """Return the controllers that these limits need and this host lacks."""
        return sorted(needed(limits) - self.controllers)

    @abstractmethod
    def make(self, name: str, limits: ResourceLimits) -> Cgroup:
        """Create the cgroup of an execution with its limits.

        Raises:
            OSError: the kernel refuses it. No part of the cgroup remains.
        """

    @abstractmethod
    def leftovers(self) -> list[str]:
        """Return the names of the executions whose cgroups exist."""

    @abstractmethod
    def open(self, name: str) -> Cgroup:
        """Open the cgroup that an earlier worker created for an execution.

        A cgroup that no longer exists is returned as an empty one, without descriptors.

        Raises:
            OSError: the cgroup exists and cannot be opened.
        """

    @abstractmethod
    def give_to(self, uid: int, gid: int) -> None:
        """Allow a user to create cgroups of executions here."""

    @abstractmethod
    def close(self) -> None:
        """Remove the agent's own directories if they are empty."""


class NoCgroup(Cgroup):
    """A command without a cgroup: no limits, no usage, and only its process group can be killed."""

    def populated(self) -> bool:
        """Return False: an unknown number of processes counts as none."""
        return False

    def usage(self) -> ResourceUsage:
        """Return no values."""
        return ResourceUsage()

    def remove(self) -> bool:
        """Do nothing and succeed."""
        return True


class NoHierarchy(Hierarchy):
    """A host, or a user, without cgroups."""

    def __init__(self, reason: str) -> None:
        self.warnings = (f"commands run without cgroups, so without limits: {reason}",)

    def make(self, name: str, limits: ResourceLimits) -> Cgroup:
        """Return an empty stand-in."""
        return NoCgroup()

    def leftovers(self) -> list[str]:
        """Return nothing."""
        return []

    def open(self, name: str) -> Cgroup:
        """Return an empty stand-in."""
        return NoCgroup()

    def give_to(self, uid: int, gid: int) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


def lacking_controllers(controllers: frozenset[str]) -> tuple[str, ...]:
    """Return a warning that names the limits which cannot be enforced, or nothing."""
    lacking = [name for name in CONTROLLERS if name not in controllers]
    if not lacking:
        return ()
    return (f"limits of {', '.join(lacking)} cannot be enforced: no such cgroup controller here",)


def block_devices() -> list[str]:
    """Return the disks of this host as major:minor, without partitions and without devices made of files or memory."""
    found = []
    for device in sorted(Path("/sys/block").glob("*")):
        if not device.name.startswith(("loop", "ram", "zram", "fd", "sr")):
            with suppress(OSError):
                found.append((device / "dev").read_text().strip())
    return found


def read_text(path: Path) -> str:
    """Return the content of a controller file, or an empty text if this kernel has no such file."""
    try:
        return path.read_text()
    except OSError:
        return ""


def number(text: str) -> int | None:
    """Return the number in a text, or None if it contains anything else, such as `max`."""
    return int(text) if text.strip().isdecimal() else None


def keyed_number(text: str, name: str) -> int | None:
    """Return the number that follows a name in a flat keyed file, or None."""
    for line in text.splitlines():
        key, _, value = line.partition(" ")
        if key == name:
            return number(value)
    return None


def open_directory(path: Path) -> int:
    """Open a directory as a descriptor that only names it (O_PATH)."""
    return os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)


def remove_tree(path: Path) -> bool:
    """Remove a cgroup and all cgroups in it, and wait for processes that are dying.

    Returns:
        False if a process was still there after `REMOVE_SECONDS`.
    """
    deadline = time.monotonic() + REMOVE_SECONDS
    while True:
        try:
            for folder, _, _ in os.walk(path, topdown=False):
                Path(folder).rmdir()
        except FileNotFoundError:
            pass
        except OSError:
            if time.monotonic() > deadline:
                return False
            time.sleep(REMOVE_POLL_SECONDS)
            continue
        if not path.exists():
            return True
