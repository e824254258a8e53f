"""Responses, statuses, output messages, approvals and cancellations of executions."""

from __future__ import annotations

from datetime import timedelta
from enum import StrEnum
from typing import Annotated, Self

from pydantic import Field

from tachikoma.errors import ExecutionFailed
from tachikoma.vocabulary.limits import ResourceLimits, ResourceUsage
from tachikoma.vocabulary.model import Model
from tachikoma.vocabulary.requests import DEFAULT_TIMEOUT, ExecRequest
from tachikoma.vocabulary.states import ExecState
from tachikoma.vocabulary.types import Base64, Duration, Identifier, Timestamp

__all__ = [
    "Approval",
    "CancelOutcome",
    "CancelResponse",
    "ExecOutput",
    "ExecResponse",
    "ExecStatus",
    "ExecTransition",
    "KillReceipt",
    "OutputKind",
    "OutputSummary",
]


class KillReceipt(Model):
    """What an agent says of a command that it ended."""

    #: Whether nothing of it is left.
    empty: bool
    #: Whether that is known of all its processes (its cgroup), or only of its process group.
    whole: bool
    #: Signals that were sent, in this order.
    signals: Annotated[tuple[Annotated[int, Field(ge=1, le=64)], ...], Field(max_length=8)] = ()
    #: Process ids of what could not be killed.
    survivors: Annotated[tuple[Annotated[int, Field(ge=1, lt=2**31)], ...], Field(max_length=32)] = ()


class OutputSummary(Model):
    """The whole of one output stream, however much of it a response holds."""

    #: Bytes the command wrote.
    total_bytes: int = 0
    #: SHA-256 of all of them, in hexadecimal; empty where it is not known, or nothing ran.
    sha256: str = ""
    #: Whether the response holds only the head and the tail.
    truncated: bool = False


class ExecResponse(Model):
    """How an execution ended (Spec 534, ExecResponse)."""

    id: Identifier
    agent_id: Identifier
    state: ExecState
    #: Exit code; 128+n after signal n; -1 when the command never ran or nobody knows.
    exit_code: int = -1
    #: Head and tail where the output was larger than the agent's limit (1 MiB each by default).
    stdout: Base64 = b""
    stderr: Base64 = b""
    stdout_summary: OutputSummary = OutputSummary()
    stderr_summary: OutputSummary = OutputSummary()
    #: None when the command never started.
    start_time: Timestamp | None = None
    end_time: Timestamp | None = None
    duration: Duration = timedelta(0)
    #: The signal that ended the command, or 0.
    signal: int = 0
    #: Why it did not end well, for people.
    error: str = ""
    cancelled: bool = False
    usage: ResourceUsage = ResourceUsage()
    #: How it was killed, where it was.
    kill: KillReceipt | None = None

    def check(self) -> Self:
        """Return itself after exit code 0.

        Raises:
            ExecutionFailed: it ended in any other way.
        """
        if self.state is not ExecState.SUCCEEDED:
            why = self.error or f"exit code {self.exit_code}"
            raise ExecutionFailed(f"execution {self.id} on {self.agent_id} ended {self.state}: {why}")
        return self


class ExecTransition(Model):
    """One step of an execution."""

    state: ExecState
    #: By the clock of Redis.
    time: Timestamp


class ExecStatus(Model):
    """What the ledger knows of an execution."""

    id: Identifier
    agent_id: Identifier
    state: ExecState
    #: The argv with secrets taken out.
    command: tuple[str, ...]
    requested_by: str
    request_time: Timestamp
    start_time: Timestamp | None = None
    end_time: Timestamp | None = None
    #: As in `ExecResponse`; -1 before the end.
    exit_code: int = -1
    error: str = ""
    #: The policy that let it through, as name@digest.
    policy_applied: str = ""
    #: SPIFFE ID of who asked for its end, or empty.
    cancel_requested_by: str = ""
    timeout: Duration = DEFAULT_TIMEOUT
    user: str = ""
    work_dir: str = ""
    history: tuple[ExecTransition, ...] = ()
    #: Until when it may wait: for its approval, or on the agent's queue.
    deadline: Timestamp | None = None
    #: SPIFFE ID patterns of those who may approve it; empty where it needed no approval.
    approvers: tuple[str, ...] = ()
    #: SPIFFE ID of who approved it, and why.
    approved_by: str = ""
    approval_reason: str = ""


class Approval(Model):
    """A request that waits for its approval, with all that would run."""

    status: ExecStatus
    #: As the requester made it, nothing hidden: who answers for it must see it.
    request: ExecRequest
    #: SHA-256 over the request and what policy would grant it. An approval names it, and counts for nothing else.
    digest: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    #: The policy that would grant it, as name@digest.
    policy: str
    #: What the command may use, after policy.
    limits: ResourceLimits = ResourceLimits()


class OutputKind(StrEnum):
    """What an `ExecOutput` carries."""

    STDOUT = "stdout"
    STDERR = "stderr"
    STATUS = "status"
    GAP = "gap"
    RESULT = "result"


class ExecOutput(Model):
    """One message about a running or ended execution."""

    id: Identifier
    kind: OutputKind
    #: Number of the chunk, from 1; other messages carry that of the last chunk before them.
    seq: int = 0
    #: When the chunk was read on the agent.
    time: Timestamp | None = None
    #: The bytes of a chunk, unchanged.
    data: Base64 = b""
    #: With `STATUS`: where the execution stands.
    status: ExecStatus | None = None
    #: With `GAP`: how many bytes are no longer there.
    missing_bytes: int = 0
    #: With `RESULT`: how it ended, without the output.
    result: ExecResponse | None = None


class CancelOutcome(StrEnum):
    """What a cancel came to."""

    #: It had not started and never will.
    CANCELLED = "CANCELLED"
    #: It runs, and the agent was told to end it.
    REQUESTED = "REQUESTED"
    #: It had ended before.
    ALREADY_ENDED = "ALREADY_ENDED"


class CancelResponse(Model):
    """What a cancel came to, and the execution after it."""

    outcome: CancelOutcome
    status: ExecStatus
