"""The states of an execution."""

from __future__ import annotations

from enum import StrEnum

__all__ = ["ExecState"]


class ExecState(StrEnum):
    """The state of an execution; ARCHITECTURE.md draws the transitions."""

    #: The request waits for an approval.
    PENDING_APPROVAL = "PENDING_APPROVAL"
    #: The order waits on the agent's queue.
    QUEUED = "QUEUED"
    #: The command runs.
    STARTED = "STARTED"
    #: The command ended with exit code 0.
    SUCCEEDED = "SUCCEEDED"
    #: The command ended with another exit code or by a signal, or could not be executed.
    FAILED = "FAILED"
    #: The command was killed after its timeout.
    TIMED_OUT = "TIMED_OUT"
    #: The execution was cancelled; no process of it is left.
    CANCELLED = "CANCELLED"
    #: The kernel killed the command because its memory limit was reached.
    OUT_OF_MEMORY = "OUT_OF_MEMORY"
    #: The execution waited too long, and never started.
    EXPIRED = "EXPIRED"
    #: An approver or the agent refused the execution; it never started.
    REJECTED = "REJECTED"
    #: The outcome is unknown.
    LOST = "LOST"

    @property
    def terminal(self) -> bool:
        """True if the state is final."""
        return self not in _OPEN_STATES


_OPEN_STATES = frozenset({ExecState.PENDING_APPROVAL, ExecState.QUEUED, ExecState.STARTED})
