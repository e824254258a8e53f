"""Responses, statuses, output messages, approvals and cancellations of executions."""

from __future__ import annotations

import json
from datetime import timedelta
from enum import StrEnum
from typing import Annotated, Any, Self

from pydantic import Field

from tachikoma.errors import ExecutionFailed
from tachikoma.vocabulary.isolation import Isolation, TmpScope
from tachikoma.vocabulary.limits import ResourceLimits, ResourceUsage
from tachikoma.vocabulary.messages import OutputKind
from tachikoma.vocabulary.model import Model
from tachikoma.vocabulary.request_rules import DEFAULT_TIMEOUT
from tachikoma.vocabulary.requests import ExecRequest
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
    "InputAccepted",
    "IsolationReport",
    "KillReceipt",
    "OutputSummary",
]


class KillReceipt(Model):
    """An agent's report about a command that it killed."""

    #: True if no process of the command is left.
    empty: bool
    #: True if that is known for all its processes, by their cgroup; False if only for its process group.
    whole: bool
    #: Numbers of the signals that were sent, in order.
    signals: Annotated[tuple[Annotated[int, Field(ge=1, le=64)], ...], Field(max_length=8)] = ()
    #: Ids of the processes that could not be killed.
    survivors: Annotated[tuple[Annotated[int, Field(ge=1, lt=2**31)], ...], Field(max_length=32)] = ()


class OutputSummary(Model):
    """Size and digest of one complete output stream; a response may contain only a part of the stream."""

    #: Number of bytes that the command wrote.
    total_bytes: int = 0
    #: SHA-256 of all these bytes, in hexadecimal; empty if it is unknown, or no command ran.
    sha256: str = ""
    #: True if the response contains only the head and the tail of the stream.
    truncated: bool = False


class IsolationReport(Model):
    """The isolation of an execution, as its agent reports it."""

    #: The level.
    level: Isolation
    #: Whose temporary folders the command had.
    tmp: TmpScope
    #: True if policy let a command of root reach the host.
    host_access: bool = False
    #: Parts of the isolation that the kernel enforced, such as "processes" or "network".
    parts: Annotated[tuple[Annotated[str, Field(max_length=64)], ...], Field(max_length=32)] = ()
    #: Parts of the level that this host's kernel cannot enforce.
    missing: Annotated[tuple[Annotated[str, Field(max_length=256)], ...], Field(max_length=32)] = ()


class ExecResponse(Model):
    """The result of an execution (Spec 534, ExecResponse)."""

    #: Id of the execution.
    id: Identifier
    #: Id of the agent.
    agent_id: Identifier
    #: The final state.
    state: ExecState
    #: Exit code; 128+n after signal n; -1 if the command never ran or its exit code is unknown.
    exit_code: int = -1
    #: Standard output; only head and tail if it was larger than the agent's limit, 1 MiB each by default.
    stdout: Base64 = b""
    #: Standard error, limited in the same way.
    stderr: Base64 = b""
    #: Size and digest of the complete standard output.
    stdout_summary: OutputSummary = OutputSummary()
    #: Size and digest of the complete standard error.
    stderr_summary: OutputSummary = OutputSummary()
    #: Time at which the command started; None if it never did.
    start_time: Timestamp | None = None
    #: Time at which the execution ended.
    end_time: Timestamp | None = None
    #: Run time of the command.
    duration: Duration = timedelta(0)
    #: Number of the signal that ended the command; 0 if none did.
    signal: int = 0
    #: Why the execution did not succeed, for people; empty if it did.
    error: str = ""
    #: True if the execution was cancelled.
    cancelled: bool = False
    #: Resources that the command used.
    usage: ResourceUsage = ResourceUsage()
    #: The agent's report about killing the command; None if it was not killed.
    kill: KillReceipt | None = None
    #: How the command was isolated; None if only its user separated it from others.
    isolation: IsolationReport | None = None
    #: The agent's signed report about the end, as text: a JWS in the compact form of RFC 7515, whose header has the
    #: agent's certificates (`x5c`). The orchestrator has verified it. Empty if the agent did not report the end.
    receipt: str = ""

    @property
    def text(self) -> str:
        """Standard output as text; bytes that are not UTF-8 are U+FFFD. Cut output is `stdout_summary.truncated`."""
        return self.stdout.decode("utf-8", "replace")

    @property
    def error_text(self) -> str:
        """Standard error as text; bytes that are not UTF-8 are U+FFFD."""
        return self.stderr.decode("utf-8", "replace")

    def json(self) -> Any:  # type: ignore[override]
        """Return the value of standard output that is JSON.

        Raises:
            ExecutionFailed: the output is not JSON, or the response has only a part of it.
        """
        if self.stdout_summary.truncated:
            raise ExecutionFailed(
                f"the output of {self.id} has {self.stdout_summary.total_bytes} bytes, and only a part is here; "
                "use execute_stream"
            )
        try:
            return json.loads(self.stdout)
        except ValueError as error:
            raise ExecutionFailed(f"the output of {self.id} on {self.agent_id} is not JSON: {error}") from None

    def check(self) -> Self:
        """Return this response if the execution succeeded.

        Raises:
            ExecutionFailed: the execution ended in another state than SUCCEEDED.
        """
        if self.state is not ExecState.SUCCEEDED:
            why = self.error or f"exit code {self.exit_code}"
            raise ExecutionFailed(f"execution {self.id} on {self.agent_id} ended {self.state}: {why}")
        return self


class ExecTransition(Model):
    """One step in the history of an execution."""

    #: The state that it entered.
    state: ExecState
    #: Time of the step by the clock of Redis.
    time: Timestamp


class ExecStatus(Model):
    """The ledger's record of an execution."""

    #: Id of the execution.
    id: Identifier
    #: Id of the agent.
    agent_id: Identifier
    #: The current state.
    state: ExecState
    #: The argv, secrets masked.
    command: tuple[str, ...]
    #: SPIFFE ID of the requester.
    requested_by: str
    #: Time at which the request was accepted.
    request_time: Timestamp
    #: Time at which the command started; None if it has not.
    start_time: Timestamp | None = None
    #: Time at which the execution ended; None if it has not.
    end_time: Timestamp | None = None
    #: Exit code as in `ExecResponse`; -1 until the execution ends.
    exit_code: int = -1
    #: Why the execution did not succeed, for people; else empty.
    error: str = ""
    #: The policy that granted the request, as name@digest.
    policy_applied: str = ""
    #: SPIFFE ID of the caller who cancelled the execution; empty if none did.
    cancel_requested_by: str = ""
    #: Longest run time of the command.
    timeout: Duration = DEFAULT_TIMEOUT
    #: Name of the user on the agent; empty for the agent's default user.
    user: str = ""
    #: Working directory; empty for the user's home.
    work_dir: str = ""
    #: All steps until now, oldest first.
    history: tuple[ExecTransition, ...] = ()
    #: End of the wait for an approval, or on the agent's queue; None if the execution does not wait.
    deadline: Timestamp | None = None
    #: SPIFFE ID patterns of the approvers; empty if no approval was needed.
    approvers: tuple[str, ...] = ()
    #: SPIFFE ID of the approver; empty if the request was not approved, or needed no approval.
    approved_by: str = ""
    #: The approver's reason.
    approval_reason: str = ""
    #: Time of the request by the caller's clock, not verified; None if it is not known.
    caller_time: Timestamp | None = None
    #: True if input can follow while the command runs.
    interactive: bool = False
    #: True if the command has a terminal.
    tty: bool = False
    #: SPIFFE ID of the attached caller of an interactive execution; empty if it is detached.
    attached_by: str = ""
    #: SPIFFE IDs of the observers of an interactive execution, sorted.
    observers: tuple[str, ...] = ()
    #: True if an interactive execution is recorded.
    recorded: bool = False


class Approval(Model):
    """A request that waits for an approval, with everything that would run."""

    #: The ledger's record of the execution.
    status: ExecStatus
    #: The complete request, nothing masked, since the approver is responsible for it.
    request: ExecRequest
    #: SHA-256 of the request and its grant, in hexadecimal. An approval names this digest and is valid for it only.
    digest: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    #: The policy that would grant the request, as name@digest.
    policy: str
    #: Resource limits of the command, those of policy included.
    limits: ResourceLimits = ResourceLimits()


class InputAccepted(Model):
    """The progress of an interactive execution in taking input."""

    #: Number of input bytes that its terminal or pipe has taken.
    offset: Annotated[int, Field(ge=0, lt=2**64)] = 0
    #: True if the terminal echoes input.
    echo: bool = False
    #: True if the terminal edits lines.
    canonical: bool = False
    #: True if no more input is taken.
    ended: bool = False


class ExecOutput(Model):
    """One message about a running or ended execution."""

    #: Id of the execution.
    id: Identifier
    #: The kind of message. It decides which of the fields below are set.
    kind: OutputKind
    #: Number of the chunk, from 1; other messages carry the number of the last chunk before them.
    seq: int = 0
    #: Time at which the agent read the chunk; None in other messages.
    time: Timestamp | None = None
    #: The bytes of a chunk, unchanged.
    data: Base64 = b""
    #: For `status`: the ledger's record of the execution.
    status: ExecStatus | None = None
    #: For `gap`: number of missing bytes.
    missing_bytes: int = 0
    #: For `result`: the result, without the output.
    result: ExecResponse | None = None

    #: For `accepted`: the progress of input.
    accepted: InputAccepted | None = None
    #: For a chunk: number of output bytes, of both streams, before it. For `screen`: number of output bytes before the
    #: next chunk.
    offset: int = 0

    @property
    def text(self) -> str:
        """The bytes of a chunk as text; a character at its edge may be cut, and is U+FFFD then."""
        return self.data.decode("utf-8", "replace")


class CancelOutcome(StrEnum):
    """The effect of a cancel."""

    #: The command had not started, and never will.
    CANCELLED = "CANCELLED"
    #: The command runs, and the agent was asked to kill it.
    REQUESTED = "REQUESTED"
    #: The execution had already ended.
    ALREADY_ENDED = "ALREADY_ENDED"


class CancelResponse(Model):
    """The effect of a cancel, and the execution after it."""

    #: The effect.
    outcome: CancelOutcome
    #: The ledger's record of the execution after the cancel.
    status: ExecStatus
