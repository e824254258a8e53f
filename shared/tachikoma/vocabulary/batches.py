"""Batches: one command on many agents, with the rules by which it proceeds and stops."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Self

from pydantic import Field, ValidationError, ValidationInfo, field_validator, model_validator

from tachikoma.errors import ExecutionFailed
from tachikoma.vocabulary.identifiers import new_id
from tachikoma.vocabulary.limits import ResourceLimits
from tachikoma.vocabulary.model import CallersModel, Model, describe_validation_error
from tachikoma.vocabulary.request_rules import MAX_ARGUMENTS, MAX_STDIN_BYTES, MAX_TIMEOUT, check_work_dir
from tachikoma.vocabulary.requests import ExecRequest
from tachikoma.vocabulary.shares import Share, share_of
from tachikoma.vocabulary.substitution import substituted
from tachikoma.vocabulary.types import Base64, Duration, Identifier, Timestamp

__all__ = [
    "DEFAULT_DEADLINE",
    "DEFAULT_GATE_TIMEOUT",
    "DEFAULT_PARALLEL",
    "FAILURES",
    "MAX_EXPRESSIONS",
    "MAX_PARALLEL",
    "ApprovalNeed",
    "BatchApproval",
    "BatchPreview",
    "BatchRequest",
    "BatchResult",
    "BatchState",
    "BatchStatus",
    "BatchUpdate",
    "HealthGate",
    "PreviewedTarget",
    "StopCause",
    "TargetState",
]

#: Largest number of target expressions of a request.
MAX_EXPRESSIONS = 20_000
#: Largest and default number of executions of a batch at once. The largest bounds the results that arrive together.
MAX_PARALLEL, DEFAULT_PARALLEL = 1000, "50"
#: Default time after which no further target of a batch starts, and longest run time of a health gate by default.
DEFAULT_DEADLINE, DEFAULT_GATE_TIMEOUT = timedelta(hours=1), timedelta(minutes=1)


class BatchState(StrEnum):
    """The state of a batch. In all but RUNNING no further target starts."""

    #: It waits for its approval.
    PENDING_APPROVAL = "PENDING_APPROVAL"
    #: Targets start as the limits allow.
    RUNNING = "RUNNING"
    #: Every target has ended, or could not be started.
    DONE = "DONE"
    #: The stop rule was reached.
    STOPPED = "STOPPED"
    #: The batch was cancelled.
    CANCELLED = "CANCELLED"
    #: Its deadline passed, or it was not approved in time.
    EXPIRED = "EXPIRED"
    #: An approver rejected it. Nothing of it ran.
    REJECTED = "REJECTED"


class TargetState(StrEnum):
    """The state of one target of a batch: that of its execution, or why it has none."""

    #: The target waits for its turn.
    PENDING = "PENDING"
    #: Its execution has not ended.
    RUNNING = "RUNNING"
    # The final states of its execution, as in `ExecState`.
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    TIMED_OUT = "TIMED_OUT"
    CANCELLED = "CANCELLED"
    OUT_OF_MEMORY = "OUT_OF_MEMORY"
    EXPIRED = "EXPIRED"
    REJECTED = "REJECTED"
    LOST = "LOST"
    #: The agent is unknown, offline, draining, revoked, or takes no executions for another reason.
    UNREACHABLE = "UNREACHABLE"
    #: Policy does not allow the command there.
    DENIED = "DENIED"
    #: The batch ended before its turn.
    NOT_STARTED = "NOT_STARTED"


#: Ends that always count for `stop_after`.
FAILURES = frozenset({TargetState.FAILED, TargetState.TIMED_OUT, TargetState.OUT_OF_MEMORY, TargetState.LOST})


class StopCause(StrEnum):
    """A result that counts for `stop_after` only if `stop_on` names it."""

    UNREACHABLE = "UNREACHABLE"
    DENIED = "DENIED"
    EXPIRED = "EXPIRED"
    REJECTED = "REJECTED"


class HealthGate(CallersModel):
    """A command that must succeed before the first wave of a batch, and before each further one."""

    #: The agent that it runs on; it may be one of the targets.
    agent_id: Identifier
    #: The argv; nothing in it is replaced.
    command: Annotated[tuple[str, ...], Field(min_length=1, max_length=MAX_ARGUMENTS)]
    #: Longest run time; a gate that takes longer has failed.
    timeout: Duration = DEFAULT_GATE_TIMEOUT

    if TYPE_CHECKING:
        # The types that callers may write.
        def __init__(
            self, *, agent_id: str, command: Sequence[str], timeout: timedelta | str | float = DEFAULT_GATE_TIMEOUT
        ) -> None: ...

    @model_validator(mode="after")
    def _bounds(self) -> Self:
        # The bounds of a request.
        self.execution("gate")
        return self

    def execution(self, exec_id: str) -> ExecRequest:
        """Return the request of the gate's execution with an id. Raises ValueError if it breaks a bound."""
        values = {"id": exec_id, "agent_id": self.agent_id, "command": self.command, "timeout": self.timeout}
        try:
            return ExecRequest.model_validate(values)
        except ValidationError as error:
            raise ValueError(describe_validation_error(error)) from None


class BatchRequest(CallersModel):
    """A request to run one command on many agents."""

    #: Idempotency key: the same id with the same request returns the same batch. Default: a random id.
    id: Identifier = Field(default_factory=new_id)
    #: Target expressions, such as `web-[1-20]` or `role=web`; see `docs/batches.md`. Empty only with `retry_of`.
    targets: Annotated[tuple[str, ...], Field(max_length=MAX_EXPRESSIONS)] = ()
    #: The argv. `{agent}` and `{label:NAME}` are replaced for each target. Empty only with `retry_of`.
    command: Annotated[tuple[str, ...], Field(max_length=MAX_ARGUMENTS)] = ()
    #: Absolute path of the working directory; empty for the user's home.
    work_dir: str = ""
    #: Environment variables beside those that the agents set. Policy must grant each name.
    environment: dict[str, str] = Field(default_factory=dict)
    #: Bytes that each command reads from standard input.
    stdin: Annotated[Base64, Field(max_length=MAX_STDIN_BYTES)] = b""
    #: Longest run time of each command. None: the longest that policy allows, at most an hour.
    timeout: Duration | None = None
    #: Name of the user on each agent; empty for the agent's default user.
    user: str = ""
    #: Resource limits of each command, below those that policy sets. None: those of policy.
    limits: ResourceLimits | None = None
    #: Largest number of executions at once.
    parallel: Share = DEFAULT_PARALLEL
    #: Number of targets that run first, alone. The rest follows only if all of them succeeded. 0: no canary.
    canary: Annotated[int, Field(ge=0, le=MAX_EXPRESSIONS)] = 0
    #: Number of targets in each wave. A wave ends before the next begins. None: all targets are one wave.
    wave: Share | None = None
    #: Time between two waves, and after the canary.
    pause: Duration = timedelta(0)
    #: A check before each wave, after the pause. If it fails, no further target starts. None: no check.
    gate: HealthGate | None = None
    #: Number of failures in the whole batch after which no further target starts. None: no limit.
    stop_after: Share | None = None
    #: States that count as failures, besides FAILED, TIMED_OUT, OUT_OF_MEMORY and LOST, which always do.
    stop_on: tuple[StopCause, ...] = ()
    #: Time after which no further target starts.
    deadline: Duration = DEFAULT_DEADLINE
    #: Id of an ended batch. Its targets in one of `retry_states` run again, by default with its command. None: none.
    retry_of: Identifier | None = None
    #: States whose targets are run again. Empty: every state but SUCCEEDED. FAILED is that state only.
    retry_states: tuple[TargetState, ...] = ()

    if TYPE_CHECKING:
        # The types that callers may write.
        def __init__(
            self,
            *,
            targets: Sequence[str] = (),
            command: Sequence[str] = (),
            id: str = ...,
            work_dir: str = "",
            environment: Mapping[str, str] = ...,
            stdin: bytes | bytearray | memoryview = b"",
            timeout: timedelta | str | float | None = None,
            user: str = "",
            limits: ResourceLimits | None = None,
            parallel: str = DEFAULT_PARALLEL,
            canary: int = 0,
            wave: str | None = None,
            pause: timedelta | str | float = ...,
            gate: HealthGate | None = None,
            stop_after: str | None = None,
            stop_on: Sequence[StopCause | str] = (),
            deadline: timedelta | str | float = DEFAULT_DEADLINE,
            retry_of: str | None = None,
            retry_states: Sequence[TargetState | str] = (),
        ) -> None: ...

    @field_validator("work_dir")
    @classmethod
    def _absolute(cls, value: str) -> str:
        check_work_dir(value)
        return value

    @field_validator("retry_states")
    @classmethod
    def _of_a_retry(cls, value: tuple[TargetState, ...], info: ValidationInfo) -> tuple[TargetState, ...]:
        if value and not info.data.get("retry_of"):
            raise ValueError("only for a batch that runs an earlier one again")
        return value

    @model_validator(mode="after")
    def _bounds(self) -> Self:
        # These messages name only fields that are called the same in Python and in JSON.
        if not self.retry_of and not (self.targets and self.command):
            raise ValueError("targets and command are required, unless an earlier batch is run again")
        if not timedelta(0) < self.deadline <= MAX_TIMEOUT:
            raise ValueError(f"deadline must be longer than zero and at most {MAX_TIMEOUT.days} days")
        if not timedelta(0) <= self.pause <= self.deadline:
            raise ValueError("pause must not be longer than the deadline")
        if self.command:
            # The bounds of a request; substituted values are checked again for each target.
            self.execution("agent", "agent", None)
        return self

    def execution(self, exec_id: str, agent: str, labels: Mapping[str, str] | None) -> ExecRequest:
        """Return the request of one target.

        Args:
            exec_id: id of its execution.
            agent: the agent.
            labels: the agent's labels; None to leave variables in the command.

        Raises:
            ValueError: a label is missing, or the request breaks a bound.
        """
        command = self.command
        if labels is not None:
            command = tuple(substituted(element, agent, labels) for element in command)
        values = {
            "id": exec_id, "agent_id": agent, "command": command, "work_dir": self.work_dir,
            "environment": self.environment, "stdin": self.stdin, "timeout": self.timeout, "user": self.user,
            "limits": self.limits,
        }  # fmt: skip
        try:
            return ExecRequest.model_validate(values)
        except ValidationError as error:
            raise ValueError(describe_validation_error(error)) from None

    def digest(self, targets: tuple[str, ...]) -> str:
        """Return the SHA-256, in hexadecimal, over everything that would run and its frozen list of targets."""
        content = self.to_dict()
        del content["id"]
        text = json.dumps([content, targets], sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()

    def parallel_of(self, total: int) -> int:
        """Return the largest number of executions at once."""
        return min(MAX_PARALLEL, max(1, share_of(self.parallel, total)))


class ApprovalNeed(Model):
    """A policy that requires an approval of a batch."""

    #: Name of the policy.
    policy: str
    #: Number of the batch's targets that it grants.
    targets: Annotated[int, Field(ge=1)]
    #: Largest number of targets without an approval; 0 if each request under the policy needs one.
    above: Annotated[int, Field(ge=0)]
    #: SPIFFE ID patterns of its approvers.
    approvers: tuple[str, ...]


class BatchStatus(Model):
    """The ledger's record of a batch."""

    id: Identifier
    state: BatchState
    #: SPIFFE ID of the requester.
    requested_by: str
    #: The argv before substitution, with secrets masked.
    command: tuple[str, ...]
    #: SHA-256 over the request and the list of targets, in hexadecimal.
    digest: str
    #: Number of targets.
    total: int
    #: Number of targets in each state; states without a target are left out.
    totals: dict[TargetState, int] = Field(default_factory=dict)
    #: Failures that count for the stop rule.
    failures: int = 0
    #: Why the batch is in its state, in words; empty if it runs or is done.
    reason: str = ""
    #: Time at which the batch was accepted.
    submit_time: Timestamp
    #: Time at which the last execution ended; None if one may still run.
    end_time: Timestamp | None = None
    #: Time after which no further target starts, or until which the batch waits for its approval.
    deadline: Timestamp | None = None
    #: The policies that require an approval of the batch. The approver must be one of the approvers of each.
    needs: tuple[ApprovalNeed, ...] = ()
    #: SPIFFE ID of the approver; empty if the batch was not approved, or needed no approval.
    approved_by: str = ""
    #: The approver's reason.
    approval_reason: str = ""

    @property
    def ended(self) -> bool:
        """True if nothing of the batch runs any more."""
        return self.end_time is not None

    def check(self) -> Self:
        """Return this status if the command succeeded on every target.

        Raises:
            ExecutionFailed: it did not, or has not yet.
        """
        succeeded = self.totals.get(TargetState.SUCCEEDED, 0)
        if succeeded != self.total:
            others = ", ".join(
                f"{count} {state}" for state, count in self.totals.items() if state is not TargetState.SUCCEEDED
            )
            why = f": {self.reason}" if self.reason else ""
            raise ExecutionFailed(
                f"the batch {self.id} is {self.state} with {succeeded} of {self.total} targets succeeded "
                f"({others}){why}; see `tachikoma batches status {self.id}`"
            )
        return self


class BatchResult(Model):
    """The result of one target. Without output it is from the ledger; with output it is from a verified receipt."""

    agent_id: Identifier
    #: Id of its execution; empty if it has none.
    exec_id: str = ""
    state: TargetState
    #: Exit code of the command; -1 if there is none.
    exit_code: int = -1
    #: Why it did not succeed, for people.
    error: str = ""
    #: SHA-256 of the complete standard output, in hexadecimal; empty if it is unknown.
    stdout_sha256: str = ""
    #: SHA-256 of the complete standard error, in hexadecimal; empty if it is unknown.
    stderr_sha256: str = ""
    #: Number of bytes that the command wrote to standard output.
    stdout_bytes: int = 0
    #: Number of bytes that the command wrote to standard error.
    stderr_bytes: int = 0
    #: The first 64 KiB of standard output; None if it was not requested, is not available, or was sent before.
    stdout: Base64 | None = None
    #: Standard error, in the same way.
    stderr: Base64 | None = None

    @property
    def answer(self) -> tuple[str, int, str, str]:
        """The values by which answers are compared: state, exit code, and the digests of the output."""
        return self.state, self.exit_code, self.stdout_sha256, self.stderr_sha256


class BatchUpdate(Model):
    """One message of a watched batch: its status, or the result of one target."""

    #: The batch's new status; None in a message with a result.
    status: BatchStatus | None = None
    #: The result of one target; None in a message with a status.
    result: BatchResult | None = None


class PreviewedTarget(Model):
    """One target of a preview."""

    agent_id: Identifier
    #: PENDING if it can start, else UNREACHABLE or DENIED.
    state: TargetState
    #: Why it cannot start; empty if it can.
    reason: str = ""


class BatchPreview(Model):
    """The list of targets that a request would freeze."""

    #: SHA-256 over the request and the list, in hexadecimal.
    digest: str
    #: The targets, in the order in which they would start.
    targets: tuple[PreviewedTarget, ...]
    #: Time of the preview.
    time: Timestamp = Field(default_factory=lambda: datetime.now(UTC))
    #: The policies that would require an approval of the batch.
    needs: tuple[ApprovalNeed, ...] = ()


class BatchApproval(Model):
    """A batch that waits for its approval, with everything that would run."""

    status: BatchStatus
    #: The complete request, nothing masked, since the approver is responsible for it.
    request: BatchRequest
    #: The frozen list, in the order in which the targets start.
    targets: tuple[str, ...]
    #: The policies that require an approval now.
    needs: tuple[ApprovalNeed, ...]
    #: Targets that policy denies now. An approval does not include them.
    denied: tuple[str, ...] = ()
    #: SHA-256 over the request, the list, and what policy grants each target with its present labels. An approval names
    #: this digest and is valid for nothing else.
    digest: str
