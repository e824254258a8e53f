"""Policies and rate limits as they are written in files."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Self

from pydantic import Field, field_validator, model_validator

from tachikoma.vocabulary.limits import MAX_KILL_GRACE, OutputLimit, ResourceLimits, capability_mask
from tachikoma.vocabulary.model import Model
from tachikoma.vocabulary.requests import DEFAULT_TIMEOUT, MAX_TIMEOUT
from tachikoma.vocabulary.types import Duration, Identifier, Network, Timestamp

__all__ = ["ExecPolicy", "PolicyStatus", "RateLimitConfig"]


class RateLimitConfig(Model):
    """How much may be asked for (Spec 534, RateLimitConfig): of an agent, or by one requester under one policy."""

    #: Requests accepted in any minute; 0 is no limit.
    requests_per_minute: Annotated[int, Field(ge=0, le=100_000)] = 0
    #: Executions that have not ended, waiting ones included; 0 is no limit.
    concurrent_limit: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    #: Executions that have not started.
    queue_size: Annotated[int, Field(ge=1, le=1_000_000)] = 1000
    #: How long an order may wait before it expires.
    queue_timeout: Duration = timedelta(minutes=10)

    @model_validator(mode="after")
    def _bounds(self) -> Self:
        if not timedelta(0) < self.queue_timeout <= MAX_TIMEOUT:
            raise ValueError(f"queueTimeout must be longer than zero and at most {MAX_TIMEOUT.days} days")
        return self


class ExecPolicy(Model):
    """Who may run what, where and as whom (Spec 534, ExecPolicy, plus whom it is for).

    Everything is refused that no policy grants as a whole; a denied command is refused whatever else grants it.
    """

    name: Identifier
    #: SPIFFE ID patterns of the requesters it is for.
    subjects: Annotated[tuple[str, ...], Field(min_length=1)]
    #: Agents it is for: id patterns, or labels as `role=web,site=*`.
    agents: Annotated[tuple[str, ...], Field(min_length=1)]
    #: Command patterns; see `tachikoma.policy.patterns`.
    allowed_commands: tuple[str, ...] = ()
    denied_commands: tuple[str, ...] = ()
    #: Whether programs may be granted that run whatever they are told to: shells, languages, launchers.
    allow_interpreters: bool = False
    #: User name patterns. Empty: only the agent's default user.
    allowed_users: tuple[str, ...] = ()
    #: Path patterns. Empty: only the user's home.
    allowed_work_dirs: tuple[str, ...] = ()
    #: Name patterns of variables a request may set.
    allowed_environment: tuple[str, ...] = ()
    #: SPIFFE ID patterns of those who may approve, where `require_approval` is set; nobody approves their own request.
    approvers: tuple[str, ...] = ()
    #: How long a request waits for its approval.
    approval_timeout: Duration = timedelta(hours=1)
    #: How much each requester may ask for under this policy.
    rate_limit: RateLimitConfig | None = None
    #: What each command may use; a request may ask for less.
    limits: ResourceLimits = ResourceLimits()
    #: How much of its output is kept, and what becomes of more.
    output: OutputLimit = OutputLimit()
    #: Capabilities that commands run as root keep (capabilities(7)), or "all"; none by default. Others never have any.
    capabilities: tuple[str, ...] = ()
    #: SHA-256 of the files that may be executed for a path, in hexadecimal.
    executable_sha256: dict[str, tuple[Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")], ...]] = Field(
        default_factory=dict
    )
    #: Between TERM and KILL. None: the agent's own, 10 s by default.
    kill_grace: Duration | None = None
    max_timeout: Duration = DEFAULT_TIMEOUT
    require_approval: bool = False
    allow_interactive: bool = False
    allow_tty: bool = False
    #: Networks from which it may be asked for. Empty: from everywhere.
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

    @field_validator("max_timeout", "approval_timeout")
    @classmethod
    def _positive(cls, value: timedelta) -> timedelta:
        if not timedelta(0) < value <= MAX_TIMEOUT:
            raise ValueError(f"must be longer than zero and at most {MAX_TIMEOUT.days} days")
        return value

    @model_validator(mode="after")
    def _somebody_approves(self) -> Self:
        if self.require_approval and not self.approvers:
            raise ValueError("requireApproval is set, and approvers names nobody who could approve")
        return self


class PolicyStatus(Model):
    """What policy an orchestrator decides by."""

    #: SHA-256 over its files, in hexadecimal.
    digest: str
    #: How many policies it holds.
    policies: int
    #: Since when this orchestrator decides by it.
    since: Timestamp
    #: Why the files as they are now are not in force; empty where they are.
    error: str = ""
    #: The orchestrator's host, and the file or folder there.
    host: str = ""
    path: str = ""
