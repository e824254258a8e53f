"""Detection of the cgroups that this host offers to an agent.

Sources: proc(5) for mountinfo, cgroups(7) for /proc/self/cgroup.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tachikoma_worker.cgroups.hierarchy import Hierarchy, NoHierarchy
from tachikoma_worker.cgroups.limits import CONTROLLERS
from tachikoma_worker.cgroups.v1 import TREES, LegacyHierarchy
from tachikoma_worker.cgroups.v2 import UnifiedHierarchy

__all__ = ["Mount", "base_of", "detect", "own_directory", "parse_mounts"]


@dataclass(frozen=True, slots=True)
class Mount:
    """A mounted cgroup tree."""

    #: Directory of the tree that is mounted, "/" for all of it.
    root: str
    #: Where it is mounted.
    point: Path
    #: `cgroup` for v1, `cgroup2` for v2.
    kind: str
    #: Options of the file system; of v1 they contain the controllers of the tree.
    options: frozenset[str]


def parse_mounts(mountinfo: str) -> list[Mount]:
    """Return the cgroup mounts in the text of /proc/self/mountinfo."""
    found = []
    for line in mountinfo.splitlines():
        head, _, tail = line.partition(" - ")
        fields, kind = head.split(" "), tail.split(" ")
        if kind[0] in ("cgroup", "cgroup2"):
            point = fields[4].encode().decode("unicode_escape")
            found.append(Mount(fields[3], Path(point), kind[0], frozenset(kind[2].split(","))))
    return found


def own_directory(mount: Mount, membership: str) -> Path:
    """Return the directory of this process's cgroup below a mount.

    Args:
        mount: the tree.
        membership: the text of /proc/self/cgroup.

    Returns:
        The mount point itself if the cgroup is not visible below it, as in a container.
    """
    for line in membership.splitlines():
        _, controllers, path = line.split(":", 2)
        if mount.kind == "cgroup2" and controllers:
            continue
        if mount.kind == "cgroup" and (not controllers or not set(controllers.split(",")) <= mount.options):
            continue
        below = path.removeprefix(mount.root.rstrip("/")).lstrip("/")
        if ".." not in below.split("/") and (mount.point / below).is_dir():
            return mount.point / below
    return mount.point


def base_of(mount: Mount, where: str, membership: str) -> Path:
    """Return the directory below a mount in which an agent's cgroups are created; arguments as in `detect`."""
    if where == "own":
        return own_directory(mount, membership)
    named = mount.point / where.lstrip("/") if where.startswith("/") else mount.point
    # systemd creates a unit's directory only in the v1 trees that it knows, and the freezer is not one of them.
    return named if mount.kind == "cgroup2" or named.is_dir() else mount.point


def detect(agent: str, *, name: str, where: str) -> Hierarchy:
    """Return the cgroups that an agent may use: v2 if it has controllers, else v1, else none with the reason.

    Args:
        agent: the agent's id.
        name: name of the directory in which the agent's own is created.
        where: `top` for the top of the mounted tree; `own` for this process's own cgroup (systemd's Delegate=yes);
            or the path of another cgroup, such as that of another unit, beginning with a slash.
    """
    mounts = parse_mounts(Path("/proc/self/mountinfo").read_text())
    membership = Path("/proc/self/cgroup").read_text()
    reasons: list[str] = []
    for mount in mounts:
        if mount.kind != "cgroup2":
            continue
        base = base_of(mount, where, membership)
        try:
            if set((base / "cgroup.controllers").read_text().split()) & set(CONTROLLERS):
                return UnifiedHierarchy(base, name, agent)
        except OSError as error:
            reasons.append(f"{base}: {error.strerror}")
    bases = {
        controller: base_of(mount, where, membership)
        for mount in mounts
        if mount.kind == "cgroup"
        for controller in TREES
        if controller in mount.options
    }
    if bases:
        try:
            return LegacyHierarchy(bases, name, agent)
        except OSError as error:
            reasons.append(f"{error.filename}: {error.strerror}")
    return NoHierarchy("; ".join(reasons) or "none is mounted here")
