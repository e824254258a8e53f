"""The default limits of a command, for resources that neither policy nor request limits.

A command without limits could take all memory and all processes of its host, also those of the agent. A default is
never a reason to refuse an order: on a host that lacks a controller, it does not apply.
"""

from __future__ import annotations

import os
from functools import cache

from tachikoma.vocabulary.limits import ResourceLimits, memory_limit
from tachikoma_worker.cgroups.limits import needed

__all__ = ["default_limits", "with_defaults"]


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
    """Return limits with a default in place of each None, if the host's controllers can enforce it."""
    enforceable = {
        name: value
        for name, value in defaults
        if value is not None and needed(ResourceLimits.model_construct(**{name: value})) <= controllers
    }
    return limits.filled_by(ResourceLimits.model_construct(**enforceable))
