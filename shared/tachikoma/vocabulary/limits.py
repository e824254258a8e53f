"""Resource limits, resource usage, output limits and Linux capabilities."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from enum import StrEnum
from typing import Annotated

from pydantic import ByteSize, Field

from tachikoma.vocabulary.model import Model

__all__ = [
    "CAPABILITIES",
    "MAX_KILL_GRACE",
    "OutputLimit",
    "ResourceLimits",
    "ResourceUsage",
    "WhenFull",
    "capability_mask",
]

#: Longest time between TERM and KILL.
MAX_KILL_GRACE = timedelta(minutes=10)

#: In the order of their numbers (linux/capability.h).
CAPABILITIES = tuple(
    f"CAP_{name}"
    for name in (
        "CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP",
        "LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK",
        "IPC_OWNER", "SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN",
        "SYS_BOOT", "SYS_NICE", "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD", "LEASE", "AUDIT_WRITE",
        "AUDIT_CONTROL", "SETFCAP", "MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG", "WAKE_ALARM", "BLOCK_SUSPEND",
        "AUDIT_READ", "PERFMON", "BPF", "CHECKPOINT_RESTORE",
    )
)  # fmt: skip


def capability_mask(names: Sequence[str]) -> int:
    """Capabilities as the bits of their numbers.

    Raises:
        ValueError: one of them is not known.
    """
    if tuple(names) == ("all",):
        return (1 << len(CAPABILITIES)) - 1
    for name in names:
        if name not in CAPABILITIES:
            raise ValueError(f"{name!r} is no capability; they are written CAP_CHOWN, or 'all' alone")
    mask = 0
    for name in names:
        mask |= 1 << CAPABILITIES.index(name)
    return mask


class ResourceLimits(Model):
    """What a command may use of its host; None is no limit of its own. Enforced by cgroups, for all its processes."""

    #: Bytes of memory; in text also as 512MiB.
    memory: Annotated[ByteSize, Field(ge=1024 * 1024, lt=2**53)] | None = None
    #: Bytes of swap beside it; none where `memory` is limited and this is not given.
    swap: Annotated[ByteSize, Field(ge=0, lt=2**53)] | None = None
    #: Processors' worth of time, 0.5 for half of one.
    cpus: Annotated[float, Field(ge=0.01, le=4096, allow_inf_nan=False)] | None = None
    #: Share of the processors under contention; 100 is everybody's default.
    cpu_weight: Annotated[int, Field(ge=1, le=10_000)] | None = None
    #: Processes and threads.
    pids: Annotated[int, Field(ge=1, le=4_000_000)] | None = None
    #: Bytes a second from and to each disk.
    io_read: Annotated[ByteSize, Field(ge=4096, lt=2**53)] | None = None
    io_write: Annotated[ByteSize, Field(ge=4096, lt=2**53)] | None = None

    def lowered_by(self, other: ResourceLimits | None) -> ResourceLimits:
        """The lower of each limit."""
        if other is None:
            return self
        lower = {}
        for name in type(self).model_fields:
            given = [value for value in (getattr(self, name), getattr(other, name)) if value is not None]
            lower[name] = min(given) if given else None
        return ResourceLimits.model_construct(**lower)


class ResourceUsage(Model):
    """What a command used, with all its processes; None where its host does not tell."""

    #: Processor time.
    cpu_seconds: Annotated[float, Field(ge=0, allow_inf_nan=False, lt=2**53)] | None = None
    #: Most bytes of memory at once, page cache included.
    peak_memory: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    #: Most processes and threads at once.
    peak_pids: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    #: Bytes from and to disks.
    io_read: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    io_written: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    #: Processes killed for want of memory.
    oom_kills: Annotated[int, Field(ge=0, lt=2**63)] | None = None


class WhenFull(StrEnum):
    """What becomes of output that is more than is kept of it."""

    #: Begin and end are kept; what lay between is cut, and a gap says how much that was.
    CUT = "cut"
    #: The command waits in its write until somebody has read.
    WAIT = "wait"


class OutputLimit(Model):
    """How much of an execution's output is kept for its readers."""

    #: Bytes, in text also as 16MiB. None: the agent's own limit, which also bounds it.
    limit: Annotated[ByteSize, Field(ge=64 * 1024, lt=2**53)] | None = None
    when_full: WhenFull = WhenFull.CUT

    def lowered_by(self, other: OutputLimit) -> OutputLimit:
        """The lower limit of both; what becomes of more is as it was."""
        limits = [limit for limit in (self.limit, other.limit) if limit is not None]
        return OutputLimit(limit=min(limits) if limits else None, when_full=self.when_full)
