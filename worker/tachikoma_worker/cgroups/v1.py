"""cgroup v1: one tree for each controller, used through cgroupspy.

Source: Documentation/admin-guide/cgroup-v1/ of the kernel.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import ClassVar

from cgroupspy.controllers import Controller
from cgroupspy.nodes import Node

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
from tachikoma_worker.cgroups.limits import OPTIONAL_FILES, Setting, settings_v1

__all__ = ["TREES", "LegacyCgroup", "LegacyHierarchy"]

#: The trees that an agent uses where they are mounted. The freezer comes first: it is the one that is killed.
TREES = ("freezer", "memory", "cpuacct", "cpu", "pids", "blkio")


class _Node(Node):  # type: ignore[misc]
    """A v1 cgroup addressed by its path; cgroupspy would walk the whole tree to find it."""

    def __init__(self, path: Path, kind: str) -> None:
        super().__init__(os.fsencode(path))
        # cgroupspy has no class for the controllers pids and freezer.
        self.controller = Node.CONTROLLERS.get(kind.encode(), Controller)(self)
        self.kind = kind

    @property
    def directory(self) -> Path:
        """The directory of the cgroup."""
        return Path(os.fsdecode(self.full_path))

    def child(self, name: str) -> _Node:
        """Return the cgroup of this name below this one."""
        return _Node(self.directory / name, self.kind)


class LegacyCgroup(Cgroup):
    """The cgroup of one execution: a directory in each tree that the command needs."""

    def __init__(self, nodes: Mapping[str, _Node]) -> None:
        """Open the directories.

        Args:
            nodes: the directory in each tree, by controller; first the one that is killed as a whole.

        Raises:
            OSError: a directory cannot be opened.
        """
        self._nodes = nodes
        opened: list[int] = []
        try:
            # Controllers that are mounted together share a directory.
            for directory in dict.fromkeys(node.directory for node in nodes.values()):
                opened.append(open_directory(directory))
        except BaseException:
            for fd in opened:
                os.close(fd)
            raise
        self.fds = tuple(opened)

    def populated(self) -> bool:
        """Return whether the first of its directories contains a process."""
        return any(read_text(node.directory / "cgroup.procs") for node in list(self._nodes.values())[:1])

    def usage(self) -> ResourceUsage:
        """Return the resources that its processes have used."""
        cpu_ns = number(self._read("cpuacct", "cpuacct.usage"))
        io = self._read("blkio", "blkio.throttle.io_service_bytes")
        return ResourceUsage(
            cpu_seconds=None if cpu_ns is None else cpu_ns / 1e9,
            peak_memory=number(self._read("memory", "memory.max_usage_in_bytes")),
            peak_pids=number(self._read("pids", "pids.peak")),
            io_read=_transferred(io, "Read"),
            io_written=_transferred(io, "Write"),
            oom_kills=keyed_number(self._read("memory", "memory.oom_control"), "oom_kill"),
        )

    def remove(self) -> bool:
        """Close the descriptors and remove the directories once they are empty."""
        self.close()
        removed = [remove_tree(node.directory) for node in self._nodes.values()]
        return all(removed)

    def _read(self, controller: str, file: str) -> str:
        """Return the content of a controller file, or an empty text if there is none."""
        node = self._nodes.get(controller)
        try:
            return "" if node is None else str(node.controller.get_property(os.fsencode(file)))
        except OSError:
            return ""


def _transferred(io_service_bytes: str, kind: str) -> int | None:
    """Return the bytes of one kind in all lines `major:minor Kind bytes`, or None if there are no lines."""
    if not io_service_bytes:
        return None
    words = [line.split() for line in io_service_bytes.splitlines()]
    return sum(int(word[2]) for word in words if len(word) == 3 and word[1] == kind)


class LegacyHierarchy(Hierarchy):
    """An agent's directory in each v1 tree."""

    #: The v2 name of each controller that enforces a limit.
    _LIMITS: ClassVar[dict[str, str]] = {"memory": "memory", "cpu": "cpu", "pids": "pids", "blkio": "io"}
    #: Trees that every execution joins: for killing it as a whole, and for its usage.
    _ALWAYS = ("freezer", "memory", "cpuacct")

    def __init__(self, bases: Mapping[str, Path], name: str, agent: str) -> None:
        """Create the agent's directory in each tree.

        Args:
            bases: directory below which cgroups are created, by controller.
            name: name of the directory that contains those of the agents.
            agent: the agent's id.

        Raises:
            OSError: this user may not create it.
        """
        self._agents: dict[str, _Node] = {}
        for controller in TREES:
            base = bases.get(controller)
            if base is None:
                continue
            (base / name / agent).mkdir(parents=True, exist_ok=True)
            self._agents[controller] = _Node(base / name / agent, controller)
        self.controllers = frozenset(self._LIMITS[name] for name in self._agents if name in self._LIMITS)
        self.warnings = lacking_controllers(self.controllers)
        if "freezer" not in self._agents:
            self.warnings += ("what leaves its process group cannot be killed as a whole: no freezer cgroup here",)
        self._devices = block_devices()

    def make(self, name: str, limits: ResourceLimits) -> Cgroup:
        """Create the cgroup of an execution with its limits, in each tree that it needs."""
        settings = [setting for setting in settings_v1(limits, self._devices) if setting.controller in self._agents]
        nodes = self._nodes(name, {*self._ALWAYS, *(setting.controller for setting in settings)})
        made: list[Path] = []
        try:
            for directory in dict.fromkeys(node.directory for node in nodes.values()):
                directory.mkdir()
                made.append(directory)
            for setting in settings:
                _apply(nodes[setting.controller], setting)
            return LegacyCgroup(nodes)
        except BaseException:
            for path in made:
                path.rmdir()
            raise

    def leftovers(self) -> list[str]:
        """Return the names of the executions whose cgroups exist in any tree."""
        return sorted(
            {entry.name for node in self._agents.values() for entry in node.directory.iterdir() if entry.is_dir()}
        )

    def open(self, name: str) -> Cgroup:
        """Open the cgroup of an execution in the trees that have it."""
        nodes = self._nodes(name, self._agents)
        return LegacyCgroup({controller: node for controller, node in nodes.items() if node.directory.exists()})

    def give_to(self, uid: int, gid: int) -> None:
        """Allow a user to create cgroups of executions here."""
        for node in self._agents.values():
            os.chown(node.directory, uid, gid)

    def close(self) -> None:
        """Remove the agent's own directories if they are empty."""
        for node in self._agents.values():
            with suppress(OSError):
                node.directory.rmdir()
                node.directory.parent.rmdir()

    def _nodes(self, name: str, controllers: Iterable[str]) -> dict[str, _Node]:
        """Return the directories of an execution in some of the trees, in the order of `TREES`."""
        return {
            controller: agent.child(name) for controller, agent in self._agents.items() if controller in controllers
        }


def _apply(node: _Node, setting: Setting) -> None:
    """Write one setting, unless this kernel lacks an optional file."""
    if setting.file in OPTIONAL_FILES and not (node.directory / setting.file).exists():
        return
    node.controller.set_property(os.fsencode(setting.file), setting.value)
