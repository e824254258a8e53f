"""Resource limits as pure data: the controller files that enforce them, and the values to write.

Each function returns `Setting` values in the order in which they must be written. Only `v1` and `v2` touch the kernel.

Sources: Documentation/admin-guide/cgroup-v2.rst and Documentation/admin-guide/cgroup-v1/ of the kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tachikoma.vocabulary.limits import ResourceLimits

__all__ = ["CONTROLLERS", "OPTIONAL_FILES", "Setting", "needed", "settings_v1", "settings_v2"]

#: Period of a CPU quota, in microseconds.
CPU_PERIOD_US = 100_000
#: Smallest CPU quota that the kernel accepts, in microseconds.
CPU_LEAST_US = 1_000
#: Smallest value of cpu.shares that the kernel accepts (v1).
LEAST_SHARES = 2

#: Controllers that enforce limits, by their v2 names.
CONTROLLERS = ("memory", "cpu", "pids", "io")
#: Files that a kernel may lack although it enforces the limit: without swap accounting there is no swap to limit.
OPTIONAL_FILES = frozenset({"memory.swap.max", "memory.oom.group", "memory.memsw.limit_in_bytes"})


@dataclass(frozen=True, slots=True)
class Setting:
    """One value for one controller file."""

    #: Name of the controller in the hierarchy that the setting is for: v1 calls v2's `io` controller `blkio`.
    controller: str
    file: str
    value: str


def needed(limits: ResourceLimits) -> frozenset[str]:
    """Return the controllers that enforce these limits, by their v2 names."""
    wanted = {
        "memory": limits.memory is not None or limits.swap is not None,
        "cpu": limits.cpus is not None or limits.cpu_weight is not None,
        "pids": limits.pids is not None,
        "io": limits.io_read is not None or limits.io_write is not None,
    }
    return frozenset(name for name, asked in wanted.items() if asked)


def settings_v2(limits: ResourceLimits, devices: Sequence[str]) -> list[Setting]:
    """Return limits as settings of cgroup v2.

    Args:
        limits: the limits of a command.
        devices: disks that the I/O limits apply to, as major:minor.
    """
    found = []
    if limits.memory is not None:
        found.append(Setting("memory", "memory.max", str(limits.memory)))
        # Kill the whole command, unless policy wants only the process that asked for one page too many.
        found.append(Setting("memory", "memory.oom.group", "0" if limits.oom_group is False else "1"))
    if limits.memory is not None or limits.swap is not None:
        found.append(Setting("memory", "memory.swap.max", str(limits.swap or 0)))
    if limits.cpus is not None:
        found.append(Setting("cpu", "cpu.max", f"{_quota_us(limits.cpus)} {CPU_PERIOD_US}"))
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
    """Return limits as settings of cgroup v1, in an order in which the kernel accepts each.

    Args:
        limits: the limits of a command.
        devices: disks that the I/O limits apply to, as major:minor.
    """
    found = []
    if limits.memory is not None:
        found.append(Setting("memory", "memory.limit_in_bytes", str(limits.memory)))
        # Memory and swap together. The kernel refuses a value below memory.limit_in_bytes, so that one comes first.
        found.append(Setting("memory", "memory.memsw.limit_in_bytes", str(limits.memory + (limits.swap or 0))))
    if limits.cpus is not None:
        found.append(Setting("cpu", "cpu.cfs_period_us", str(CPU_PERIOD_US)))
        found.append(Setting("cpu", "cpu.cfs_quota_us", str(_quota_us(limits.cpus))))
    if limits.cpu_weight is not None:
        # The default weight is 100 in v2, and 1024 shares in v1.
        found.append(Setting("cpu", "cpu.shares", str(max(LEAST_SHARES, limits.cpu_weight * 1024 // 100))))
    if limits.pids is not None:
        found.append(Setting("pids", "pids.max", str(limits.pids)))
    for device in devices:
        if limits.io_read is not None:
            found.append(Setting("blkio", "blkio.throttle.read_bps_device", f"{device} {limits.io_read}"))
        if limits.io_write is not None:
            found.append(Setting("blkio", "blkio.throttle.write_bps_device", f"{device} {limits.io_write}"))
    return found


def _quota_us(cpus: float) -> int:
    """Return the processor time in microseconds that a command may use in each period."""
    return max(CPU_LEAST_US, round(cpus * CPU_PERIOD_US))
