"""Messages about a running or ended execution: their kinds, and what each form of them has.

`ExecOutput` is the form of the library. `tachikoma.client.plain` has another one, which needs no models.
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Protocol

from tachikoma.vocabulary.states import ExecState

__all__ = ["Message", "OutputKind", "Result", "Status", "Summary"]


class OutputKind(StrEnum):
    """The kind of an `ExecOutput`."""

    #: A chunk of standard output.
    STDOUT = "stdout"
    #: A chunk of standard error.
    STDERR = "stderr"
    #: A change of the execution's status.
    STATUS = "status"
    #: Bytes of the output are missing here.
    GAP = "gap"
    #: The result, which ends the stream.
    RESULT = "result"
    #: Progress of an interactive execution in taking input.
    ACCEPTED = "accepted"
    #: A drawing of the terminal's screen, in place of the output so far.
    SCREEN = "screen"


class Summary(Protocol):
    """What each form of an `OutputSummary` has."""

    @property
    def total_bytes(self) -> int:
        """Number of bytes that the command wrote."""

    @property
    def sha256(self) -> str:
        """SHA-256 of these bytes in hexadecimal; empty if it is unknown."""


class Result(Protocol):
    """What each form of an `ExecResponse` has."""

    @property
    def id(self) -> str:
        """Id of the execution."""

    @property
    def agent_id(self) -> str:
        """Id of the agent."""

    @property
    def state(self) -> ExecState:
        """The final state."""

    @property
    def exit_code(self) -> int:
        """The exit code; -1 if it is unknown."""

    @property
    def error(self) -> str:
        """Why the execution did not succeed; empty if it did."""

    @property
    def stdout_summary(self) -> Summary:
        """The complete standard output."""

    @property
    def stderr_summary(self) -> Summary:
        """The complete standard error."""


class Status(Protocol):
    """What each form of an `ExecStatus` has."""

    @property
    def id(self) -> str:
        """Id of the execution."""

    @property
    def state(self) -> ExecState:
        """The current state."""

    @property
    def deadline(self) -> datetime | None:
        """End of its wait; None if it does not wait."""

    @property
    def approvers(self) -> tuple[str, ...]:
        """SPIFFE ID patterns of those who may approve it."""

    @property
    def approved_by(self) -> str:
        """SPIFFE ID of the approver; empty if there is none."""

    @property
    def approval_reason(self) -> str:
        """The approver's reason."""

    @property
    def observers(self) -> tuple[str, ...]:
        """SPIFFE IDs of the observers."""


class Message(Protocol):
    """What each form of an `ExecOutput` has."""

    @property
    def id(self) -> str:
        """Id of the execution."""

    @property
    def kind(self) -> OutputKind:
        """The kind of message."""

    @property
    def seq(self) -> int:
        """Number of the chunk, or of the last one before this message."""

    @property
    def offset(self) -> int:
        """Number of output bytes before it."""

    @property
    def data(self) -> bytes:
        """The bytes of a chunk or a screen."""

    @property
    def missing_bytes(self) -> int:
        """Number of bytes that are missing in a gap."""

    @property
    def status(self) -> Status | None:
        """The status of a message with one."""

    @property
    def result(self) -> Result | None:
        """The result of a message with one."""
