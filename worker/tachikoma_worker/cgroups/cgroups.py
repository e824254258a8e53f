"""Control groups: limits, usage, and the handle by which all processes of a command are killed.

One interface, three implementations: cgroup v2 through its files, v1 through cgroupspy, and none. Limits are pure data
(`Setting`), written in one place. Names are `<name>/<agent>/<execution>`.

Sources: Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/ of the kernel.
"""

from __future__ import annotations

import errno
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from cgroupspy.controllers import Controller
from cgroupspy.nodes import Node

from tachikoma.vocabulary.limits import ResourceLimits, ResourceUsage

__all__ = ["Cgroup", "Hierarchy", "Setting", "detect"]

#: Period of CPU quotas in microseconds, and the smallest quota the kernel takes.
CPU_PERIOD = 100_000
CPU_LEAST = 1_000
#: How long a directory whose processes are dying is tried to be removed.
REMOVE_SECONDS = 2.0

#: What a limit is enforced by, as v2 names the controllers.
CONTROLLERS = ("memory", "cpu", "pids", "io")


@dataclass(frozen=True, slots=True)
class Setting:
    """One limit: the controller's file and what is written into it."""

    controller: str
    file: str
    value: str


def block_devices() -> list[str]:
    """The disks of this host as major:minor; not their partitions, nor what is made of files or memory."""
    found = []
    for device in sorted(Path("/sys/block").glob("*")):
        if not device.name.startswith(("loop", "ram", "zram", "fd", "sr")):
            with suppress(OSError):
                found.append((device / "dev").read_text().strip())
    return found


def needed(limits: ResourceLimits) -> frozenset[str]:
    """The controllers that limits need."""
    wanted = {
        "memory": limits.memory is not None or limits.swap is not None,
        "cpu": limits.cpus is not None or limits.cpu_weight is not None,
        "pids": limits.pids is not None,
        "io": limits.io_read is not None or limits.io_write is not None,
    }
    return frozenset(name for name, asked in wanted.items() if asked)


def settings_v2(limits: ResourceLimits, devices: Sequence[str]) -> list[Setting]:
    """Limits as files of cgroup v2."""
    found = []
    if limits.memory is not None:
        found.append(Setting("memory", "memory.max", str(limits.memory)))
        # All of the command is killed, not the one process that asked for a page too many.
        found.append(Setting("memory", "memory.oom.group", "1"))
    if limits.memory is not None or limits.swap is not None:
        found.append(Setting("memory", "memory.swap.max", str(limits.swap or 0)))
    if limits.cpus is not None:
        found.append(Setting("cpu", "cpu.max", f"{_quota(limits.cpus)} {CPU_PERIOD}"))
    if limits.cpu_weight is not None:
        found.append(Setting("cpu", "cpu.weight", str(limits.cpu_weight)))
    if limits.pids is not None:
        found.append(Setting("pids", "pids.max", str(limits.pids)))
    rates = [f"rbps={limits.io_read}"] if limits.io_read is not None else []
    rates += [f"wbps={limits.io_write}"] if limits.io_write is not None else []
    if rates:
        found += [Setting("io", "io.max", " ".join((device, *rates))) for device in devices]
    return found


def settings_v1(limits: ResourceLimits, devices: Sequence[str]) -> list[Setting]:
    """Limits as files of cgroup v1, in an order in which each is valid."""
    found = []
    if limits.memory is not None:
        found.append(Setting("memory", "memory.limit_in_bytes", str(limits.memory)))
        # Memory and swap together; without swap accounting the file is missing.
        found.append(Setting("memory", "memory.memsw.limit_in_bytes", str(limits.memory + (limits.swap or 0))))
    if limits.cpus is not None:
        found.append(Setting("cpu", "cpu.cfs_period_us", str(CPU_PERIOD)))
        found.append(Setting("cpu", "cpu.cfs_quota_us", str(_quota(limits.cpus))))
    if limits.cpu_weight is not None:
        # Their defaults are 100 and 1024.
        found.append(Setting("cpu", "cpu.shares", str(max(2, limits.cpu_weight * 1024 // 100))))
    if limits.pids is not None:
        found.append(Setting("pids", "pids.max", str(limits.pids)))
    for device in devices:
        if limits.io_read is not None:
            found.append(Setting("blkio", "blkio.throttle.read_bps_device", f"{device} {limits.io_read}"))
        if limits.io_write is not None:
            found.append(Setting("blkio", "blkio.throttle.write_bps_device", f"{device} {limits.io_write}"))
    return found


def _quota(cpus: float) -> int:
    return max(CPU_LEAST, round(cpus * CPU_PERIOD))


class Cgroup(ABC):
    """The cgroup of one execution. Its methods block; its descriptors are closed by `remove`."""

    #: Directories for the spawner; first the one that is killed as a whole.
    fds: tuple[int, ...] = ()
    unified: ClassVar[bool] = False

    @abstractmethod
    def populated(self) -> bool:
        """Whether there is a process in it."""

    @abstractmethod
    def usage(self) -> ResourceUsage:
        """What its processes used so far; None for what the host does not tell."""

    @abstractmethod
    def remove(self) -> bool:
        """Remove it once it is empty. False when it could not be, and stays for the next start of the worker."""


class Hierarchy(ABC):
    """Where the cgroups of an agent are made."""

    #: Which of memory, cpu, pids and io can be limited.
    controllers: frozenset[str] = frozenset()
    #: What it cannot do, for people.
    warnings: tuple[str, ...] = ()

    def missing(self, limits: ResourceLimits) -> list[str]:
        """The controllers that limits need and this host lacks."""
        return sorted(needed(limits) - self.controllers)

    @abstractmethod
    def make(self, name: str, limits: ResourceLimits) -> Cgroup:
        """Make an execution's cgroup with its limits.

        Raises:
            OSError: the kernel refuses it.
        """

    @abstractmethod
    def leftovers(self) -> list[str]:
        """Names of the executions whose cgroups are there."""

    @abstractmethod
    def open(self, name: str) -> Cgroup:
        """An execution's cgroup that an earlier worker made."""

    @abstractmethod
    def give_to(self, uid: int, gid: int) -> None:
        """Let a user make the cgroups of executions here."""

    @abstractmethod
    def close(self) -> None:
        """Remove the agent's own directories, if nothing is in them."""


# --- none -------------------------------------------------------------------------------------------------------------


class _NoCgroup(Cgroup):
    def populated(self) -> bool:
        return False

    def usage(self) -> ResourceUsage:
        return ResourceUsage()

    def remove(self) -> bool:
        return True


class NoHierarchy(Hierarchy):
    """A host, or a user, without cgroups."""

    def __init__(self, why: str) -> None:
        self.warnings = (f"commands run without cgroups, so without limits: {why}",)

    def make(self, name: str, limits: ResourceLimits) -> Cgroup:
        return _NoCgroup()

    def leftovers(self) -> list[str]:
        return []

    def open(self, name: str) -> Cgroup:
        return _NoCgroup()

    def give_to(self, uid: int, gid: int) -> None:
        pass

    def close(self) -> None:
        pass


# --- v2 ---------------------------------------------------------------------------------------------------------------


def _read(path: Path) -> str:
    """A file's content, or nothing where this kernel has no such file."""
    try:
        return path.read_text()
    except OSError:
        return ""


def _number(text: str) -> int | None:
    return int(text) if text.strip().isdigit() else None


def _field(text: str, name: str) -> int | None:
    """The number behind a name in a flat keyed file."""
    for line in text.splitlines():
        key, _, value = line.partition(" ")
        if key == name:
            return _number(value)
    return None


def _open_directory(path: Path) -> int:
    return os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)


def _remove(path: Path) -> bool:
    """Remove a cgroup and those that were made in it, once they are empty; the dying may take a moment."""
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
            time.sleep(0.005)
            continue
        if not path.exists():
            return True


class _UnifiedCgroup(Cgroup):
    unified = True

    def __init__(self, path: Path) -> None:
        self._path = path
        self.fds = (_open_directory(path),)

    def populated(self) -> bool:
        return _field(_read(self._path / "cgroup.events"), "populated") == 1

    def usage(self) -> ResourceUsage:
        cpu = _field(_read(self._path / "cpu.stat"), "usage_usec")
        io = _read(self._path / "io.stat")
        return ResourceUsage(
            cpu_seconds=None if cpu is None else cpu / 1e6,
            peak_memory=_number(_read(self._path / "memory.peak")),
            peak_pids=_number(_read(self._path / "pids.peak")),
            io_read=_sum_of(io, "rbytes=") if (self._path / "io.stat").exists() else None,
            io_written=_sum_of(io, "wbytes=") if (self._path / "io.stat").exists() else None,
            oom_kills=_field(_read(self._path / "memory.events"), "oom_kill"),
        )

    def remove(self) -> bool:
        for fd in self.fds:
            os.close(fd)
        self.fds = ()
        return _remove(self._path)


def _sum_of(text: str, name: str) -> int:
    return sum(int(word.removeprefix(name)) for word in text.split() if word.startswith(name))


class UnifiedHierarchy(Hierarchy):
    """cgroup v2."""

    def __init__(self, base: Path, name: str, agent: str) -> None:
        """Make the agent's directory and pass the controllers down to it.

        Raises:
            OSError: this user may not.
        """
        self._parent = base / name
        self._path = self._parent / agent
        self._path.mkdir(parents=True, exist_ok=True)
        for folder in (base, self._parent, self._path):
            _enable(folder)
        offered = set((self._path / "cgroup.subtree_control").read_text().split())
        self.controllers = frozenset(offered & set(CONTROLLERS))
        lacking = [name for name in CONTROLLERS if name not in self.controllers]
        if lacking:
            self.warnings = (f"limits of {', '.join(lacking)} cannot be enforced: no such cgroup controller here",)
        self._devices = block_devices()

    def make(self, name: str, limits: ResourceLimits) -> Cgroup:
        path = self._path / name
        path.mkdir()
        try:
            for setting in settings_v2(limits, self._devices):
                if setting.controller in self.controllers and (
                    (path / setting.file).exists() or setting.file not in _OPTIONAL
                ):
                    (path / setting.file).write_text(setting.value)
            return _UnifiedCgroup(path)
        except BaseException:
            path.rmdir()
            raise

    def leftovers(self) -> list[str]:
        return sorted(entry.name for entry in self._path.iterdir() if entry.is_dir())

    def open(self, name: str) -> Cgroup:
        return _UnifiedCgroup(self._path / name)

    def give_to(self, uid: int, gid: int) -> None:
        # What a delegatee needs (cgroup-v2.rst, Delegation); not the limits of the directory itself.
        for path in (self._path, *(self._path / f"cgroup.{name}" for name in ("procs", "threads", "subtree_control"))):
            os.chown(path, uid, gid)

    def close(self) -> None:
        for path in (self._path, self._parent):
            with suppress(OSError):
                path.rmdir()


#: Files that a kernel may lack without the limit being lost: there is no swap to limit without swap accounting.
_OPTIONAL = frozenset({"memory.swap.max", "memory.oom.group", "memory.memsw.limit_in_bytes"})


def _enable(folder: Path) -> None:
    """Pass the controllers of a cgroup on to its children."""
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
            # The top of a container: its processes stand in the way (the rule of no internal processes), so they
            # move into a leaf of their own.
            leaf = folder / "init"
            leaf.mkdir(exist_ok=True)
            for pid in (folder / "cgroup.procs").read_text().split():
                with suppress(ProcessLookupError):
                    (leaf / "cgroup.procs").write_text(pid)
            control.write_text(f"+{name}")


# --- v1 ---------------------------------------------------------------------------------------------------------------


class _Node(Node):  # type: ignore[misc]
    """A cgroup of v1 by its path; cgroupspy would walk the whole tree to find it."""

    def __init__(self, path: Path, kind: str) -> None:
        super().__init__(os.fsencode(path))
        # cgroupspy has no class of its own for pids and freezer.
        self.controller = Node.CONTROLLERS.get(kind.encode(), Controller)(self)
        self.kind = kind

    def child(self, name: str) -> _Node:
        return _Node(_path(self) / name, self.kind)


class _LegacyCgroup(Cgroup):
    def __init__(self, nodes: Mapping[str, _Node]) -> None:
        self._nodes = nodes
        self.fds = tuple(_open_directory(_path(node)) for node in nodes.values())

    def _read(self, controller: str, file: str) -> str:
        node = self._nodes.get(controller)
        try:
            return "" if node is None else str(node.controller.get_property(os.fsencode(file)))
        except OSError:
            return ""

    def populated(self) -> bool:
        return any(_read(_path(node) / "cgroup.procs") for node in list(self._nodes.values())[:1])

    def usage(self) -> ResourceUsage:
        cpu = _number(self._read("cpuacct", "cpuacct.usage"))
        io = self._read("blkio", "blkio.throttle.io_service_bytes")

        def moved(kind: str) -> int | None:
            # major:minor Kind bytes
            words = [line.split() for line in io.splitlines()]
            return sum(int(word[2]) for word in words if len(word) == 3 and word[1] == kind) if io else None

        return ResourceUsage(
            cpu_seconds=None if cpu is None else cpu / 1e9,
            peak_memory=_number(self._read("memory", "memory.max_usage_in_bytes")),
            peak_pids=_number(self._read("pids", "pids.peak")),
            io_read=moved("Read"),
            io_written=moved("Write"),
            oom_kills=_field(self._read("memory", "memory.oom_control"), "oom_kill"),
        )

    def remove(self) -> bool:
        for fd in self.fds:
            os.close(fd)
        self.fds = ()
        removed = [_remove(_path(node)) for node in self._nodes.values()]
        return all(removed)


def _path(node: _Node) -> Path:
    return Path(os.fsdecode(node.full_path))


class LegacyHierarchy(Hierarchy):
    """cgroup v1: one tree for each controller."""

    #: v1's controllers as this module's limits name them.
    _LIMITS: ClassVar[dict[str, str]] = {"memory": "memory", "cpu": "cpu", "pids": "pids", "blkio": "io"}
    #: Those every execution is in: to be killed as a whole, and to be accounted for.
    _ALWAYS = ("freezer", "memory", "cpuacct")

    def __init__(self, bases: Mapping[str, Path], name: str, agent: str) -> None:
        """Make the agent's directory in each tree. `bases` has the directory for each controller.

        Raises:
            OSError: this user may not.
        """
        self._agents: dict[str, _Node] = {}
        for controller in ("freezer", "memory", "cpuacct", "cpu", "pids", "blkio"):
            base = bases.get(controller)
            if base is None:
                continue
            (base / name / agent).mkdir(parents=True, exist_ok=True)
            self._agents[controller] = _Node(base / name / agent, controller)
        self.controllers = frozenset(self._LIMITS[name] for name in self._agents if name in self._LIMITS)
        warnings = []
        lacking = [name for name in CONTROLLERS if name not in self.controllers]
        if lacking:
            warnings.append(f"limits of {', '.join(lacking)} cannot be enforced: no such cgroup controller here")
        if "freezer" not in self._agents:
            warnings.append("what leaves its process group cannot be killed as a whole: no freezer cgroup here")
        self.warnings = tuple(warnings)
        self._devices = block_devices()

    def _nodes(self, name: str, controllers: Iterable[str]) -> dict[str, _Node]:
        return {
            controller: agent.child(name) for controller, agent in self._agents.items() if controller in controllers
        }

    def make(self, name: str, limits: ResourceLimits) -> Cgroup:
        settings = [setting for setting in settings_v1(limits, self._devices) if setting.controller in self._agents]
        nodes = self._nodes(name, {*self._ALWAYS, *(setting.controller for setting in settings)})
        made: list[Path] = []
        try:
            for node in nodes.values():
                _path(node).mkdir()
                made.append(_path(node))
            for setting in settings:
                node = nodes[setting.controller]
                if setting.file in _OPTIONAL and not (_path(node) / setting.file).exists():
                    continue
                node.controller.set_property(os.fsencode(setting.file), setting.value)
            return _LegacyCgroup(nodes)
        except BaseException:
            for path in made:
                path.rmdir()
            raise

    def leftovers(self) -> list[str]:
        return sorted(
            {entry.name for node in self._agents.values() for entry in _path(node).iterdir() if entry.is_dir()}
        )

    def open(self, name: str) -> Cgroup:
        nodes = self._nodes(name, self._agents)
        return _LegacyCgroup({controller: node for controller, node in nodes.items() if _path(node).exists()})

    def give_to(self, uid: int, gid: int) -> None:
        for node in self._agents.values():
            os.chown(_path(node), uid, gid)

    def close(self) -> None:
        for node in self._agents.values():
            with suppress(OSError):
                _path(node).rmdir()
                _path(node).parent.rmdir()


# --- which ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Mount:
    root: str
    point: Path
    kind: str
    options: frozenset[str]


def _mounts(text: str) -> list[_Mount]:
    """The cgroup mounts of a mountinfo file (proc(5))."""
    found = []
    for line in text.splitlines():
        head, _, tail = line.partition(" - ")
        fields, kind = head.split(" "), tail.split(" ")
        if kind[0] in ("cgroup", "cgroup2"):
            point = fields[4].encode().decode("unicode_escape")
            found.append(_Mount(fields[3], Path(point), kind[0], frozenset(kind[2].split(","))))
    return found


def _own(mount: _Mount, text: str) -> Path:
    """The directory this process is in, below a mount; `text` is /proc/self/cgroup (cgroups(7))."""
    for line in text.splitlines():
        _, controllers, path = line.split(":", 2)
        if mount.kind == "cgroup2" and controllers:
            continue
        if mount.kind == "cgroup" and (not controllers or not set(controllers.split(",")) <= mount.options):
            continue
        below = path.removeprefix(mount.root.rstrip("/")).lstrip("/")
        if ".." not in below.split("/") and (mount.point / below).is_dir():
            return mount.point / below
    return mount.point


def _base(mount: _Mount, where: str, own: str) -> Path:
    """The directory below a mount in which an agent's cgroups are made; `own` is /proc/self/cgroup."""
    if where == "own":
        return _own(mount, own)
    named = mount.point / where.lstrip("/") if where.startswith("/") else mount.point
    # Of v1, systemd makes a unit's directory in the trees it knows of, and the freezer is not one of them.
    return named if mount.kind == "cgroup2" or named.is_dir() else mount.point


def detect(agent: str, *, name: str, where: str) -> Hierarchy:
    """The cgroups this agent may use: v2 where it has controllers, else v1, else none with the reason.

    Args:
        agent: the agent's id.
        name: of the directory in which the agent's is made.
        where: `top`: below the top of the mounted tree; `own`: below this process's own cgroup (systemd's
            Delegate=yes); or below the cgroup of that path, as another unit's, beginning with a slash.
    """
    mounts = _mounts(Path("/proc/self/mountinfo").read_text())
    own = Path("/proc/self/cgroup").read_text()

    unified = [mount for mount in mounts if mount.kind == "cgroup2"]
    legacy: dict[str, Path] = {
        controller: _base(mount, where, own)
        for mount in mounts
        if mount.kind == "cgroup"
        for controller in ("freezer", "memory", "cpuacct", "cpu", "pids", "blkio")
        if controller in mount.options
    }
    reasons = []
    for mount in unified:
        try:
            if set((_base(mount, where, own) / "cgroup.controllers").read_text().split()) & set(CONTROLLERS):
                return UnifiedHierarchy(_base(mount, where, own), name, agent)
        except OSError as error:
            reasons.append(f"{_base(mount, where, own)}: {error.strerror}")
    if legacy:
        try:
            return LegacyHierarchy(legacy, name, agent)
        except OSError as error:
            reasons.append(f"{error.filename}: {error.strerror}")
    return NoHierarchy("; ".join(reasons) or "none is mounted here")
