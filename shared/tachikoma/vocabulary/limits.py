"""Resource limits, resource usage, output limits and Linux capabilities."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

from pydantic import ByteSize, Field, TypeAdapter

from tachikoma.vocabulary.model import OMITTED_IF_NONE, CallersModel, Model
from tachikoma.vocabulary.types import Duration

__all__ = [
    "CAPABILITIES",
    "DEFAULT_CPU_WEIGHT",
    "DEFAULT_MEMORY",
    "DEFAULT_OPEN_FILES",
    "DEFAULT_PIDS",
    "DEFAULT_WAIT_LIMIT",
    "MAX_KILL_GRACE",
    "OutputLimit",
    "ResourceLimits",
    "ResourceUsage",
    "WhenFull",
    "capability_mask",
    "memory_limit",
]

#: Longest time between TERM and KILL.
MAX_KILL_GRACE = timedelta(minutes=10)
#: Limits of a command where neither policy nor request has any, unless its agent has other settings: the part of its
#: host's memory, processes and threads, weight, and open files (the spawner's DEFAULT_FILES).
DEFAULT_MEMORY = "80%"
DEFAULT_PIDS = 4096
DEFAULT_CPU_WEIGHT = 100
DEFAULT_OPEN_FILES = 65_536
#: Default and largest value of the time for which a command waits for its attached caller.
DEFAULT_WAIT_LIMIT = timedelta(minutes=1)
MAX_WAIT_LIMIT = timedelta(hours=1)
#: Least memory that a command can be limited to, in bytes.
LEAST_MEMORY = 1024 * 1024

#: Names of the capabilities in the order of their numbers (linux/capability.h).
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
    """Return the bit mask of capabilities, or of all for the single name "all".

    Raises:
        ValueError: a name is unknown.
    """
    if tuple(names) == ("all",):
        return (1 << len(CAPABILITIES)) - 1
    for name in names:
        if name not in CAPABILITIES:
            raise ValueError(f"{name!r} is not a capability; write names such as CAP_CHOWN, or 'all' alone")
    mask = 0
    for name in names:
        mask |= 1 << CAPABILITIES.index(name)
    return mask


class ResourceLimits(CallersModel):
    """Limits of a command's resources, enforced by cgroups for all its processes together. None: no limit."""

    #: Bytes of memory; text such as "512MiB" is accepted.
    memory: Annotated[ByteSize, Field(ge=LEAST_MEMORY, lt=2**53)] | None = None
    #: Bytes of swap in addition to `memory`. None: no swap if `memory` is limited, else no limit.
    swap: Annotated[ByteSize, Field(ge=0, lt=2**53)] | None = None
    #: Number of processors that it may use on average; 0.5 is half of one.
    cpus: Annotated[float, Field(ge=0.01, le=4096, allow_inf_nan=False)] | None = None
    #: Weight for the share of the processors under contention; 100 is the default of every cgroup.
    cpu_weight: Annotated[int, Field(ge=1, le=10_000)] | None = None
    #: Number of processes and threads.
    pids: Annotated[int, Field(ge=1, le=4_000_000)] | None = None
    #: Bytes per second read from each disk.
    io_read: Annotated[ByteSize, Field(ge=4096, lt=2**53)] | None = None
    #: Bytes per second written to each disk.
    io_write: Annotated[ByteSize, Field(ge=4096, lt=2**53)] | None = None
    #: Number of files that each process may have open (RLIMIT_NOFILE); at most that of the agent's service.
    open_files: Annotated[Annotated[int, Field(ge=16, le=1_048_576)] | None, OMITTED_IF_NONE] = None
    #: False if only one process is killed when memory runs out; None or True for all of the command. cgroup v2 only.
    oom_group: Annotated[bool | None, OMITTED_IF_NONE] = None

    if TYPE_CHECKING:
        # The types that callers may write.
        def __init__(
            self,
            *,
            memory: int | str | None = None,
            swap: int | str | None = None,
            cpus: float | None = None,
            cpu_weight: int | None = None,
            pids: int | None = None,
            io_read: int | str | None = None,
            io_write: int | str | None = None,
            open_files: int | None = None,
            oom_group: bool | None = None,
        ) -> None: ...

    def lowered_by(self, other: ResourceLimits | None) -> ResourceLimits:
        """Return the lower of each limit; the command is killed as a whole if either limit says so."""
        if other is None:
            return self
        lower = {}
        for name in type(self).model_fields:
            given = [value for value in (getattr(self, name), getattr(other, name)) if value is not None]
            lowest = max if name == "oom_group" else min
            lower[name] = lowest(given) if given else None
        return ResourceLimits.model_construct(**lower)

    def filled_by(self, defaults: ResourceLimits) -> ResourceLimits:
        """Return these limits, and a default for each that is None."""
        given = {name: getattr(self, name) for name in type(self).model_fields}
        return ResourceLimits.model_construct(
            **{name: getattr(defaults, name) if value is None else value for name, value in given.items()}
        )


def memory_limit(text: str, host_bytes: int) -> int | None:
    """Return the bytes that a setting means; None for no limit.

    Args:
        text: a percentage of the host's memory such as `80%`, bytes such as `2GiB`, or `none`.
        host_bytes: memory of the host.

    Raises:
        ValueError: the text is none of these.
    """
    if text == "none":
        return None
    if text.endswith("%"):
        percent = float(text[:-1])
        if not 0 < percent <= 100:
            raise ValueError("a percentage of memory must be above 0 and at most 100")
        return max(LEAST_MEMORY, int(host_bytes * percent / 100))
    found = int(TypeAdapter(ByteSize).validate_python(text))
    if found < LEAST_MEMORY:
        raise ValueError("the memory of a command must be at least 1MiB")
    return found


class ResourceUsage(Model):
    """Resources that a command used, with all its processes. None means that its host does not report the value."""

    #: Processor time in seconds.
    cpu_seconds: Annotated[float, Field(ge=0, allow_inf_nan=False, lt=2**53)] | None = None
    #: Peak of memory in bytes, page cache included.
    peak_memory: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    #: Peak number of processes and threads.
    peak_pids: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    #: Bytes read from disks.
    io_read: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    #: Bytes written to disks.
    io_written: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    #: Number of processes that the kernel killed because memory ran out.
    oom_kills: Annotated[int, Field(ge=0, lt=2**63)] | None = None


class WhenFull(StrEnum):
    """The behaviour of a command whose output exceeds its limit."""

    #: Beginning and end are retained; a gap reports the number of bytes removed between them. What the attached caller
    #: has not read is retained too, as long as that caller reads: the command blocks in its write meanwhile.
    CUT = "cut"
    #: The command blocks in its write until a reader has read, also while there is none.
    WAIT = "wait"


_WaitLimit = Annotated[Duration, Field(ge=timedelta(0), le=MAX_WAIT_LIMIT)]


class OutputLimit(Model):
    """The amount of an execution's output that is retained for readers."""

    #: Bytes; text such as "16MiB" is accepted. The agent's own limit applies as well, and alone if this is None.
    limit: Annotated[ByteSize, Field(ge=64 * 1024, lt=2**53)] | None = None
    #: What happens when the limit is reached.
    when_full: WhenFull = WhenFull.CUT
    #: Longest time that the command waits for a reader that reads nothing; then output is cut. None: a minute with
    #: `cut`, no limit with `wait`.
    wait_limit: Annotated[_WaitLimit | None, OMITTED_IF_NONE] = None

    def lowered_by(self, other: OutputLimit) -> OutputLimit:
        """Return the lower of both limits and waits, with this one's behaviour when the limit is reached."""
        limits = [limit for limit in (self.limit, other.limit) if limit is not None]
        waits = [wait for wait in (self.wait_limit, other.wait_limit) if wait is not None]
        return OutputLimit(
            limit=min(limits, default=None), when_full=self.when_full, wait_limit=min(waits, default=None)
        )

    @property
    def wait_seconds(self) -> float | None:
        """Longest wait for a reader that reads nothing, in seconds; None for no limit."""
        if self.wait_limit is None:
            return DEFAULT_WAIT_LIMIT.total_seconds() if self.when_full is WhenFull.CUT else None
        return self.wait_limit.total_seconds()
