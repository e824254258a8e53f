"""The states of an execution."""

from __future__ import annotations

from enum import StrEnum

__all__ = ["ExecState"]


class ExecState(StrEnum):
    """Where an execution stands; see the picture in ARCHITECTURE.md."""

    PENDING_APPROVAL = "PENDING_APPROVAL"
    QUEUED = "QUEUED"
    STARTED = "STARTED"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    TIMED_OUT = "TIMED_OUT"
    CANCELLED = "CANCELLED"
    OUT_OF_MEMORY = "OUT_OF_MEMORY"
    EXPIRED = "EXPIRED"
    REJECTED = "REJECTED"
    LOST = "LOST"

    @property
    def terminal(self) -> bool:
        """Whether it stays so for ever."""
        return self not in _OPEN_STATES


_OPEN_STATES = frozenset({ExecState.PENDING_APPROVAL, ExecState.QUEUED, ExecState.STARTED})
