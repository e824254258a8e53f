"""Descriptors of the worker's process: its limit, and the number of slots for which the limit suffices."""

from __future__ import annotations

import resource

import structlog

__all__ = ["fitting_slots", "raise_limit"]

log = structlog.get_logger(__name__)

#: Descriptors of one execution at most. A running one was measured with 8; starting and ending need a few more.
PER_SLOT = 16
#: Descriptors of the worker itself. An idle one was measured with 22; reconnects need more.
RESERVED = 96


def raise_limit() -> None:
    """Raise the soft limit of descriptors to the hard one.

    Called after the spawner has started: its commands keep the limit that the worker was started with.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def fitting_slots(slots: int) -> int:
    """Return the number of slots, at least 1 and at most the wanted ones, for which the hard limit suffices."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY:
        return slots
    fitting = max(1, min(slots, (hard - RESERVED) // PER_SLOT))
    if fitting < slots:
        log.warning("agent.fewer_slots", slots=fitting, wanted=slots, descriptors=hard)
    return fitting
