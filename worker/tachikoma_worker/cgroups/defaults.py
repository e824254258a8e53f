"""The limits of a command where neither policy nor request has any.

A command without limits could take all memory and all processes of its host, also those of the agent. A default is
never a reason to refuse an order: on a host that lacks a controller, it does not apply.
"""

from __future__ import annotations

import os
from functools import cache

from pydantic import ByteSize, TypeAdapter

from tachikoma.vocabulary.limits import ResourceLimits
from tachikoma_worker.cgroups.limits import needed

__all__ = ["NO_LIMIT", "default_limits", "memory_limit", "with_defaults"]

#: The setting for no limit of memory.
NO_LIMIT = "none"
#: Least memory that a command can be limited to, in bytes, as in `ResourceLimits.memory`.
LEAST_MEMORY = 1024 * 1024


def memory_limit(text: str, host_bytes: int) -> int | None:
    """Return the bytes that a setting means; None for no limit.

    Args:
        text: a percentage of the host's memory such as `80%`, bytes such as `2GiB`, or `none`.
        host_bytes: memory of the host.

    Raises:
        ValueError: the text is none of these.
    """
    if text == NO_LIMIT:
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


@cache
def default_limits(memory: str, pids: int, cpu_weight: int) -> ResourceLimits:
    """Return the defaults of an agent on this host.

    Args:
        memory: as in `memory_limit`.
        pids: number of processes and threads; 0 for no limit.
        cpu_weight: weight for the share of the processors.
    """
    host_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return ResourceLimits(memory=memory_limit(memory, host_bytes), pids=pids or None, cpu_weight=cpu_weight)


def with_defaults(limits: ResourceLimits, defaults: ResourceLimits, controllers: frozenset[str]) -> ResourceLimits:
    """Return limits, and a default for each that is None and that the controllers of a host can enforce."""
    enforceable = {
        name: value
        for name, value in defaults
        if value is not None and needed(ResourceLimits.model_construct(**{name: value})) <= controllers
    }
    return limits.filled_by(ResourceLimits.model_construct(**enforceable))
