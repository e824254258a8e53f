"""cgroup v2: one tree for all controllers, used through its files.

Source: Documentation/admin-guide/cgroup-v2.rst of the kernel.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path

from tachikoma.vocabulary.limits import ResourceLimits, ResourceUsage
from tachikoma_worker.cgroups.hierarchy import (
    Cgroup,
    Hierarchy,
    block_devices,
    keyed_number,
    lacking_controllers,
    number,
    open_directory,
    read_text,
    remove_tree,
)
from tachikoma_worker.cgroups.limits import CONTROLLERS, OPTIONAL_FILES, Setting, settings_v2

__all__ = ["UnifiedCgroup", "UnifiedHierarchy"]


class UnifiedCgroup(Cgroup):
    """The cgroup of one execution in the unified tree."""

    unified = True

    def __init__(self, path: Path) -> None:
        """Open the directory. A directory that was removed makes an empty cgroup without descriptors.

        Raises:
            OSError: the directory exists and cannot be opened.
        """
        self._path = path
        with suppress(FileNotFoundError):
            self.fds = (open_directory(path),)

    def populated(self) -> bool:
        """Return whether the cgroup, or one below it, contains a process."""
        return keyed_number(read_text(self._path / "cgroup.events"), "populated") == 1

    def usage(self) -> ResourceUsage:
        """Return the resources that its processes have used."""
        cpu_us = keyed_number(read_text(self._path / "cpu.stat"), "usage_usec")
        io = read_text(self._path / "io.stat") if (self._path / "io.stat").exists() else None
        return ResourceUsage(
            cpu_seconds=None if cpu_us is None else cpu_us / 1e6,
            peak_memory=number(read_text(self._path / "memory.peak")),
            peak_pids=number(read_text(self._path / "pids.peak")),
            io_read=None if io is None else _sum_of(io, "rbytes="),
            io_written=None if io is None else _sum_of(io, "wbytes="),
            oom_kills=keyed_number(read_text(self._path / "memory.events"), "oom_kill"),
        )

    def remove(self) -> bool:
        """Close the descriptors and remove the directory once it is empty."""
        self.close()
        return remove_tree(self._path)


def _sum_of(text: str, name: str) -> int:
    """Return the sum of all values of one key in a nested keyed file."""
    return sum(int(word.removeprefix(name)) for word in text.split() if word.startswith(name))


class UnifiedHierarchy(Hierarchy):
    """An agent's directory in the unified tree."""

    def __init__(self, base: Path, name: str, agent: str) -> None:
        """Create the agent's directory and enable the controllers in it.

        Args:
            base: directory in the mounted tree below which cgroups are created.
            name: name of the directory that contains those of the agents.
            agent: the agent's id.

        Raises:
            OSError: this user may not do that.
        """
        self._parent = base / name
        self._path = self._parent / agent
        self._path.mkdir(parents=True, exist_ok=True)
        for folder in (base, self._parent, self._path):
            _enable_controllers(folder)
        offered = set((self._path / "cgroup.subtree_control").read_text().split())
        self.controllers = frozenset(offered & set(CONTROLLERS))
        self.warnings = lacking_controllers(self.controllers)
        self._devices = block_devices()

    def make(self, name: str, limits: ResourceLimits) -> Cgroup:
        """Create the cgroup of an execution with its limits."""
        path = self._path / name
        path.mkdir()
        try:
            for setting in settings_v2(limits, self._devices):
                if setting.controller in self.controllers:
                    _apply(path, setting)
            return UnifiedCgroup(path)
        except BaseException:
            path.rmdir()
            raise

    def leftovers(self) -> list[str]:
        """Return the names of the executions whose cgroups exist."""
        return sorted(entry.name for entry in self._path.iterdir() if entry.is_dir())

    def open(self, name: str) -> Cgroup:
        """Open the cgroup of an execution, empty if it was removed."""
        return UnifiedCgroup(self._path / name)

    def give_to(self, uid: int, gid: int) -> None:
        """Allow a user to create cgroups of executions here."""
        # The files that delegation needs (cgroup-v2.rst, Delegation), without the limits of the directory itself.
        for path in (self._path, *(self._path / f"cgroup.{name}" for name in ("procs", "threads", "subtree_control"))):
            os.chown(path, uid, gid)

    def close(self) -> None:
        """Remove the agent's own directories if they are empty."""
        for path in (self._path, self._parent):
            with suppress(OSError):
                path.rmdir()


def _apply(path: Path, setting: Setting) -> None:
    """Write one setting, unless this kernel lacks an optional file."""
    if setting.file in OPTIONAL_FILES and not (path / setting.file).exists():
        return
    (path / setting.file).write_text(setting.value)


def _enable_controllers(folder: Path) -> None:
    """Enable the controllers of a cgroup for its children."""
    control = folder / "cgroup.subtree_control"
    offered = set((folder / "cgroup.controllers").read_text().split())
    for name in CONTROLLERS:
        if name not in offered or name in control.read_text().split():
            continue
        try:
            control.write_text(f"+{name}")
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            _move_processes_to_leaf(folder)
            control.write_text(f"+{name}")


def _move_processes_to_leaf(folder: Path) -> None:
    """Move the processes of a cgroup into a child of it.

    The root cgroup of a container contains processes. A cgroup with processes cannot enable controllers for its
    children (cgroup-v2.rst, No Internal Process Constraint).
    """
    leaf = folder / "init"
    leaf.mkdir(exist_ok=True)
    for pid in (folder / "cgroup.procs").read_text().split():
        with suppress(ProcessLookupError):
            (leaf / "cgroup.procs").write_text(pid)
