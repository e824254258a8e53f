"""Policies and rate limits as they are written in files."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Self

from pydantic import Field, field_validator, model_validator

from tachikoma.vocabulary.isolation import Isolation, TmpScope
from tachikoma.vocabulary.limits import MAX_KILL_GRACE, OutputLimit, ResourceLimits, capability_mask
from tachikoma.vocabulary.model import Model
from tachikoma.vocabulary.recordings import RecordMode
from tachikoma.vocabulary.request_rules import DEFAULT_TIMEOUT, MAX_TIMEOUT
from tachikoma.vocabulary.types import Duration, Identifier, Network, Timestamp

__all__ = ["ExecPolicy", "PolicyStatus", "RateLimitConfig"]


class RateLimitConfig(Model):
    """Rate limits of one agent, or of each requester under one policy (Spec 534, RateLimitConfig)."""

    #: Number of requests that are accepted in any minute; 0 means no limit.
    requests_per_minute: Annotated[int, Field(ge=0, le=100_000)] = 0
    #: Number of executions that have not ended, waiting ones included; 0 means no limit.
    concurrent_limit: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    #: Number of executions that have not started.
    queue_size: Annotated[int, Field(ge=1, le=1_000_000)] = 1000
    #: Longest time that an order may wait on the queue before it expires.
    queue_timeout: Duration = timedelta(minutes=10)

    @model_validator(mode="after")
    def _bounds(self) -> Self:
        if not timedelta(0) < self.queue_timeout <= MAX_TIMEOUT:
            raise ValueError(f"queueTimeout must be longer than zero and at most {MAX_TIMEOUT.days} days")
        return self


class ExecPolicy(Model):
    """A policy: who may run which commands, where and as which user (Spec 534, ExecPolicy, plus subjects and agents).

    A policy applies to a request when one of its subjects matches the requester and one of its agents the target.
    A request is refused unless one policy grants all of it. A denied command is refused whichever policy grants it.
    """

    #: Name of the policy; decisions and audit events carry it.
    name: Identifier
    #: SPIFFE ID patterns of the requesters that the policy applies to.
    subjects: Annotated[tuple[str, ...], Field(min_length=1)]
    #: Agents that the policy applies to: id patterns, or labels such as `role=web,site=*`.
    agents: Annotated[tuple[str, ...], Field(min_length=1)]
    #: Command patterns that are granted; see `tachikoma.policy.command_patterns`. Empty: none.
    allowed_commands: tuple[str, ...] = ()
    #: Command patterns that are refused, whichever policy grants them. Empty: none.
    denied_commands: tuple[str, ...] = ()
    #: True if programs that can run any other program may be granted: shells, languages, launchers.
    allow_interpreters: bool = False
    #: Patterns of user names. Empty: only the agent's default user.
    allowed_users: tuple[str, ...] = ()
    #: Path patterns of working directories. Empty: only the user's home.
    allowed_work_dirs: tuple[str, ...] = ()
    #: Name patterns of the variables that a request may set. Empty: none.
    allowed_environment: tuple[str, ...] = ()
    #: SPIFFE ID patterns of the approvers, if `require_approval` or `require_approval_above` is set. Requesters never
    #: approve their own requests.
    approvers: tuple[str, ...] = ()
    #: Longest time that a request waits for its approval.
    approval_timeout: Duration = timedelta(hours=1)
    #: Rate limits of each requester under this policy; None for none.
    rate_limit: RateLimitConfig | None = None
    #: Largest number of executions under this policy that have not ended, of all requesters together; None for no such
    #: limit.
    max_targets: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    #: The same as a percentage of the known agents that `agents` matches, rounded down, and at least 1.
    max_targets_percent: Annotated[int, Field(ge=1, le=100)] | None = None
    #: Largest number of executions under this policy that have not ended and that no approver has approved, of all
    #: requesters together. A batch with more targets under this policy waits for an approval. None for no such limit.
    require_approval_above: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    #: Resource limits of each command; a request may lower them.
    limits: ResourceLimits = ResourceLimits()
    #: Limit of the retained output, and what happens beyond it.
    output: OutputLimit = OutputLimit()
    #: Capabilities that commands keep if they run as root (capabilities(7)), or "all". Other users have none.
    capabilities: tuple[str, ...] = ()
    #: SHA-256 of the files that may be executed for a path, in hexadecimal. A path without an entry is not pinned.
    executable_sha256: dict[str, tuple[Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")], ...]] = Field(
        default_factory=dict
    )
    #: Time between TERM and KILL. None: the agent's own setting, 10 s by default.
    kill_grace: Duration | None = None
    #: Longest timeout that a request may ask for; also the timeout of requests without one, at most an hour.
    max_timeout: Duration = DEFAULT_TIMEOUT
    #: True if each request waits for an approver.
    require_approval: bool = False
    #: True if input may follow while the command runs.
    allow_interactive: bool = False
    #: True if the command may have a terminal.
    allow_tty: bool = False
    #: Time without input after which an interactive execution is ended. None: no limit.
    idle_timeout: Duration | None = None
    #: Longest run time of an interactive execution, in place of `max_timeout`. None: `max_timeout`.
    max_duration: Duration | None = None
    #: Time without an attached caller after which an interactive execution is ended.
    detached_timeout: Duration = timedelta(minutes=10)
    #: SPIFFE ID patterns of the callers that may observe interactive executions, read-only. Empty: none.
    observers: tuple[str, ...] = ()
    #: Whether interactive executions are recorded: off, best-effort, or required.
    record: RecordMode = RecordMode.OFF
    #: True if recordings contain input too, passwords included.
    record_input: bool = False
    #: SPIFFE ID patterns of the callers that may play the recordings of others. Empty: only operators.
    players: tuple[str, ...] = ()
    #: Weakest isolation of the commands. None: that of the agent's own setting.
    isolation: Isolation | None = None
    #: Whose temporary folders isolated commands have. None: those of their requester.
    tmp: TmpScope | None = None
    #: True if commands of root may reach the host: its files, its devices, the sockets of its services.
    host_access: bool = False
    #: Networks from which requests may come. Empty: from any address.
    allowed_networks: tuple[Network, ...] = ()

    @field_validator("capabilities")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        capability_mask(value)
        return value

    @field_validator("kill_grace")
    @classmethod
    def _not_negative(cls, value: timedelta | None) -> timedelta | None:
        if value is not None and not timedelta(0) <= value <= MAX_KILL_GRACE:
            raise ValueError(f"must be at most {MAX_KILL_GRACE.seconds} seconds")
        return value

    @field_validator("max_timeout", "approval_timeout", "idle_timeout", "max_duration", "detached_timeout")
    @classmethod
    def _positive(cls, value: timedelta | None) -> timedelta | None:
        if value is not None and not timedelta(0) < value <= MAX_TIMEOUT:
            raise ValueError(f"must be longer than zero and at most {MAX_TIMEOUT.days} days")
        return value

    @model_validator(mode="after")
    def _somebody_approves(self) -> Self:
        if self.require_approval and not self.approvers:
            raise ValueError("requireApproval is set, but approvers is empty; name at least one approver")
        if self.require_approval_above is not None and not self.approvers:
            raise ValueError("requireApprovalAbove is set, but approvers is empty; name at least one approver")
        return self


class PolicyStatus(Model):
    """The active policy set of an orchestrator."""

    #: SHA-256 of its files, in hexadecimal.
    digest: str
    #: Number of policies in it.
    policies: int
    #: Time since which it is active.
    since: Timestamp
    #: Mistake in the current files, so that the previous policy set stays active; empty if they are.
    error: str = ""
    #: Name of the orchestrator's host.
    host: str = ""
    #: The file or folder of the policies there.
    path: str = ""
