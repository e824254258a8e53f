"""The vocabulary of Spec 534: requests, responses, states, output, policies, audit.

All values are frozen. Python names are snake_case, JSON names are the spec's camelCase; both are accepted on input.
Bounds stand here once and hold for every way in: Python, CLI, gRPC, files.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Annotated, Any, Self

from pydantic import BaseModel, ByteSize, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic.alias_generators import to_camel

from tachikoma.errors import ExecutionFailed, InvalidRequest
from tachikoma.fields import Base64, Duration, Identifier, Network, Timestamp

__all__ = [
    "AgentInfo",
    "AgentTrust",
    "Approval",
    "AuditCode",
    "AuditedRequest",
    "CancelOutcome",
    "CancelResponse",
    "Enrolment",
    "ExecAuditLog",
    "ExecOutput",
    "ExecPolicy",
    "ExecRequest",
    "ExecResponse",
    "ExecState",
    "ExecStatus",
    "ExecTransition",
    "OutputKind",
    "OutputSummary",
    "PolicyStatus",
    "RateLimitConfig",
    "ResourceLimits",
    "ResourceUsage",
    "Revocation",
    "describe_validation_error",
    "new_id",
]

#: Elements of an argv.
MAX_ARGUMENTS = 1024
#: Bytes of an argv, each element counted with its closing NUL.
MAX_COMMAND_BYTES = 128 * 1024
#: Entries of an environment.
MAX_ENVIRONMENT_ENTRIES = 256
#: Bytes of an environment, each entry counted as NAME=value and NUL.
MAX_ENVIRONMENT_BYTES = 128 * 1024
#: Bytes of standard input sent with a request.
MAX_STDIN_BYTES = 4 * 1024 * 1024
#: Longest path of a working directory (PATH_MAX of Linux).
MAX_PATH_BYTES = 4096
#: Longest time a command may run, and a request may wait.
MAX_TIMEOUT = timedelta(days=7)
#: How long a command may run when neither its request nor its policy says less.
DEFAULT_TIMEOUT = timedelta(hours=1)


#: Longest time that an event may say a command took; longer than any can.
MAX_DURATION = timedelta(days=36_500)
#: Largest number in an event: what fits everywhere.
MAX_NUMBER = 2**63 - 1
#: Longest time between TERM and KILL.
MAX_KILL_GRACE = timedelta(minutes=10)
#: In the order of their numbers (linux/capability.h).
CAPABILITIES = tuple(
    f"CAP_{name}"
    for name in (
        "CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP",
        "LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK",
        "IPC_OWNER", "SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN",
        "SYS_BOOT", "SYS_NICE", "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD", "LEASE", "AUDIT_WRITE",
        "AUDIT_CONTROL", "SETFCAP", "MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG", "WAKE_ALARM", "BLOCK_SUSPEND",
        "AUDIT_READ", "PERFMON", "BPF", "CHECKPOINT_RESTORE",
    )
)  # fmt: skip


def capability_mask(names: Sequence[str]) -> int:
    """Capabilities as the bits of their numbers.

    Raises:
        ValueError: one of them is not known.
    """
    if tuple(names) == ("all",):
        return (1 << len(CAPABILITIES)) - 1
    for name in names:
        if name not in CAPABILITIES:
            raise ValueError(f"{name!r} is no capability; they are written CAP_CHOWN, or 'all' alone")
    mask = 0
    for name in names:
        mask |= 1 << CAPABILITIES.index(name)
    return mask


def new_id() -> str:
    """A fresh execution id: 96 random bits, so that nobody can guess another's."""
    return secrets.token_hex(12)


class Model(BaseModel):
    """What all values share: frozen, strict about unknown names, camelCase in JSON."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        alias_generator=to_camel,
        validate_by_name=True,
        validate_by_alias=True,
        serialize_by_alias=True,
    )

    def to_json(self) -> str:
        """The value as JSON with the spec's names."""
        return self.model_dump_json(by_alias=True)

    def to_dict(self) -> dict[str, Any]:
        """The value as plain JSON types with the spec's names."""
        return self.model_dump(mode="json", by_alias=True)

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> Self:
        """Read what `to_dict` gave. Raises pydantic.ValidationError."""
        return cls.model_validate_json(json.dumps(value))


def describe_validation_error(error: ValidationError) -> str:
    """One line for people: each field that is wrong, and why."""
    parts = []
    for item in error.errors(include_url=False, include_context=False, include_input=False):
        where = ".".join(str(part) for part in item["loc"])
        what = item["msg"].removeprefix("Value error, ")
        parts.append(f"{where}: {what}" if where else what)
    return "; ".join(parts)


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


def _no_nul(value: str, what: str) -> None:
    if "\0" in value:
        raise ValueError(f"{what} contains a NUL character, which no program can be given")


def encoded(value: str) -> bytes:
    """Text as the kernel gets it.

    Raises:
        ValueError: it cannot be UTF-8, which is what names and arguments travel as.
    """
    try:
        return value.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError(f"{value[:80]!r} is not valid UTF-8") from None


class ResourceLimits(Model):
    """What a command may use of its host; None is no limit of its own. Enforced by cgroups, for all its processes."""

    #: Bytes of memory; in text also as 512MiB.
    memory: Annotated[ByteSize, Field(ge=1024 * 1024, lt=2**53)] | None = None
    #: Bytes of swap beside it; none where `memory` is limited and this is not given.
    swap: Annotated[ByteSize, Field(ge=0, lt=2**53)] | None = None
    #: Processors' worth of time, 0.5 for half of one.
    cpus: Annotated[float, Field(ge=0.01, le=4096, allow_inf_nan=False)] | None = None
    #: Share of the processors under contention; 100 is everybody's default.
    cpu_weight: Annotated[int, Field(ge=1, le=10_000)] | None = None
    #: Processes and threads.
    pids: Annotated[int, Field(ge=1, le=4_000_000)] | None = None
    #: Bytes a second from and to each disk.
    io_read: Annotated[ByteSize, Field(ge=4096, lt=2**53)] | None = None
    io_write: Annotated[ByteSize, Field(ge=4096, lt=2**53)] | None = None

    def lowered_by(self, other: ResourceLimits | None) -> ResourceLimits:
        """The lower of each limit."""
        if other is None:
            return self
        lower = {}
        for name in type(self).model_fields:
            given = [value for value in (getattr(self, name), getattr(other, name)) if value is not None]
            lower[name] = min(given) if given else None
        return ResourceLimits.model_construct(**lower)


class ResourceUsage(Model):
    """What a command used, with all its processes; None where its host does not tell."""

    #: Processor time.
    cpu_seconds: Annotated[float, Field(ge=0, allow_inf_nan=False, lt=2**53)] | None = None
    #: Most bytes of memory at once, page cache included.
    peak_memory: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    #: Most processes and threads at once.
    peak_pids: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    #: Bytes from and to disks.
    io_read: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    io_written: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    #: Processes killed for want of memory.
    oom_kills: Annotated[int, Field(ge=0, lt=2**63)] | None = None


class WhenFull(StrEnum):
    """What becomes of output that is more than is kept of it."""

    #: Begin and end are kept; what lay between is cut, and a gap says how much that was.
    CUT = "cut"
    #: The command waits in its write until somebody has read.
    WAIT = "wait"


class OutputLimit(Model):
    """How much of an execution's output is kept for its readers."""

    #: Bytes, in text also as 16MiB. None: the agent's own limit, which also bounds it.
    limit: Annotated[ByteSize, Field(ge=64 * 1024, lt=2**53)] | None = None
    when_full: WhenFull = WhenFull.CUT

    def lowered_by(self, other: OutputLimit) -> OutputLimit:
        """The lower limit of both; what becomes of more is as it was."""
        limits = [limit for limit in (self.limit, other.limit) if limit is not None]
        return OutputLimit(limit=min(limits) if limits else None, when_full=self.when_full)


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


class ExecRequest(Model):
    """A request to run an argv on an agent (Spec 534, ExecRequest).

    Raises:
        pydantic.ValidationError: a bound is broken; `describe_validation_error` puts it into words.
    """

    #: Idempotency key: the same id with the same request is the same execution.
    id: Identifier = Field(default_factory=new_id)
    #: The agent to run on.
    agent_id: Identifier
    #: The argv. No shell looks at it. A bare name is looked up in the agent's fixed search path.
    command: Annotated[tuple[str, ...], Field(min_length=1, max_length=MAX_ARGUMENTS)]
    #: Absolute working directory; empty is the user's home.
    work_dir: str = ""
    #: Variables beside those the agent sets; each must be granted by policy.
    environment: Annotated[dict[str, str], Field(max_length=MAX_ENVIRONMENT_ENTRIES)] = Field(default_factory=dict)
    #: What the command reads from standard input.
    stdin: Annotated[Base64, Field(max_length=MAX_STDIN_BYTES)] = b""
    #: How long the command may run before it is killed. None: as long as its policy allows, at most an hour.
    timeout: Duration | None = None
    #: User name on the agent; empty is the agent's default user.
    user: str = ""
    #: Lowers the limits that policy sets; never raises them.
    limits: ResourceLimits | None = None
    #: Whether input follows while the command runs.
    interactive: bool = False
    #: Whether the command gets a terminal.
    tty: bool = False
    #: SPIFFE ID of the requester. The server sets it; a caller may leave it empty or name itself.
    requested_by: Annotated[str, Field(max_length=2048)] = ""
    #: When the requester made the request.
    request_time: Timestamp = Field(default_factory=lambda: datetime.now(UTC))

    @field_validator("command", mode="before")
    @classmethod
    def _not_one_string(cls, value: Any) -> Any:
        if isinstance(value, (str, bytes)):
            raise ValueError("is a list of arguments, not one string; use shlex.split() if you have a command line")
        return value

    @field_validator("command")
    @classmethod
    def _command_bounds(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value[0]:
            raise ValueError("the first element, the program, is empty")
        for number, argument in enumerate(value):
            _no_nul(argument, f"element {number}")
        size = sum(len(encoded(argument)) + 1 for argument in value)
        if size > MAX_COMMAND_BYTES:
            raise ValueError(f"is {size} bytes; at most {MAX_COMMAND_BYTES} are allowed")
        return value

    @field_validator("environment")
    @classmethod
    def _environment_bounds(cls, value: dict[str, str]) -> dict[str, str]:
        size = 0
        for name, content in value.items():
            if not name or "=" in name:
                raise ValueError(f"{name[:80]!r} is no variable name")
            _no_nul(name, "a name")
            _no_nul(content, f"the value of {name[:80]}")
            size += len(encoded(name)) + len(encoded(content)) + 2
        if size > MAX_ENVIRONMENT_BYTES:
            raise ValueError(f"is {size} bytes; at most {MAX_ENVIRONMENT_BYTES} are allowed")
        return value

    @field_validator("work_dir")
    @classmethod
    def _absolute(cls, value: str) -> str:
        _no_nul(value, "the path")
        if value and not value.startswith("/"):
            raise ValueError(f"{value[:80]!r} is not an absolute path")
        if len(encoded(value)) > MAX_PATH_BYTES:
            raise ValueError(f"is longer than {MAX_PATH_BYTES} bytes")
        return value

    @field_validator("user")
    @classmethod
    def _user_by_name(cls, value: str) -> str:
        # By name only, so that no number and no '#-1' reaches the lookup (CVE-2019-14287).
        if value and (len(value) > 32 or not (value[0].isascii() and (value[0].isalpha() or value[0] == "_"))):
            raise ValueError(f"{value[:80]!r} is not a user name; numeric ids are not accepted")
        if not all(c.isascii() and (c.isalnum() or c in "_.-$") for c in value):
            raise ValueError(f"{value[:80]!r} is not a user name")
        return value

    @field_validator("timeout")
    @classmethod
    def _positive(cls, value: timedelta | None) -> timedelta | None:
        if value is not None and value <= timedelta(0):
            raise ValueError("must be longer than zero")
        if value is not None and value > MAX_TIMEOUT:
            raise ValueError(f"must not be longer than {MAX_TIMEOUT.days} days")
        return value


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


class AgentTrust(Model):
    """What an agent says of its identity, and of whom it trusts."""

    spiffe_id: str
    #: When its certificate ends.
    expires: Timestamp
    #: SHA-256 of the public key of the root that vouches for it; empty where its own bundle does not.
    root: str = ""
    #: The same of every root in its bundle, its own trust domain's only.
    bundle: tuple[str, ...] = ()


class AgentInfo(Model):
    """What is known of an agent."""

    id: Identifier
    online: bool = False
    last_seen: Timestamp | None = None
    version: str = ""
    hostname: str = ""
    labels: dict[str, str] = Field(default_factory=dict)
    #: Executions it runs now, and may run at once.
    running: int = 0
    slots: int = 0
    #: Orders on its queue.
    queued: int = 0
    #: Load average over one minute.
    load: float = 0.0
    #: Memory and disk (of its data directory) in use, 0 to 1.
    memory_used: float = 0.0
    disk_used: float = 0.0
    #: What its host cannot enforce.
    warnings: tuple[str, ...] = ()
    #: Whether it takes no new executions; the SPIFFE ID of who said so, and why.
    draining: bool = False
    drained_by: str = ""
    drain_reason: str = ""
    #: Its identity, if it said so.
    trust: AgentTrust | None = None
    #: Whether it is cut off; the SPIFFE ID of who said so, and why.
    revoked: bool = False
    revoked_by: str = ""
    revoke_reason: str = ""


class Enrolment(Model):
    """What lets a host join as an agent."""

    agent_id: Identifier
    #: For `tachikoma worker join`. Whoever has it may join, once. Not in `repr`.
    token: str = Field(repr=False)
    #: When it ends.
    expires: Timestamp


class Revocation(Model):
    """What cutting an agent off came to."""

    agent_id: Identifier
    #: Executions that waited on its queue, and never start.
    cancelled: int = 0
    #: Executions that it had started, and whose ends nobody can know.
    lost: int = 0
    #: What is left to do by hand, for people.
    warnings: tuple[str, ...] = ()


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
    #: Command patterns; see `tachikoma.patterns`.
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


class AuditCode(StrEnum):
    """What an event of the audit trail is about. Codes are stable; an end's code is its state in small letters."""

    #: Allowed by policy and accepted. On the record before the command can start.
    ADMITTED = "admitted"
    #: Allowed by policy if somebody approves it.
    APPROVAL_REQUESTED = "approval_requested"
    #: Approved, and by whom.
    APPROVED = "approved"
    #: Somebody tried to approve or reject who may not.
    APPROVAL_REFUSED = "approval_refused"
    #: Refused by policy.
    DENIED = "denied"
    #: Refused for a rate limit or a full queue.
    LIMITED = "limited"
    #: Refused otherwise: unknown agent, agent offline, id used for another request.
    REFUSED = "refused"
    #: Refused because it is no valid request.
    MALFORMED = "malformed"
    #: Its order is on the agent's queue.
    DISPATCHED = "dispatched"
    STARTED = "started"
    CANCEL_REQUESTED = "cancel_requested"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    TIMED_OUT = "timed_out"
    CANCELLED = "cancelled"
    OUT_OF_MEMORY = "out_of_memory"
    EXPIRED = "expired"
    REJECTED = "rejected"
    LOST = "lost"
    #: A receipt came for what had been given up; the end stands.
    LATE_RECEIPT = "late_receipt"
    #: What was read of an output is not what its agent signed for.
    OUTPUT_ALTERED = "output_altered"
    #: A receipt came that must not be believed; the execution goes on as if it had not.
    RECEIPT_REFUSED = "receipt_refused"
    #: What the ledger says of an execution is not what was signed.
    RECORD_ALTERED = "record_altered"
    #: What stands at this place of the trail is no event that can be read. The one without a number: readers put it
    #: there, so that it is seen.
    TRAIL_ALTERED = "trail_altered"
    #: A certificate was not accepted.
    IDENTITY_REJECTED = "identity_rejected"
    #: A policy set is in force now.
    POLICY_CHANGED = "policy_changed"
    #: The policy file was changed and is wrong; the old set stays in force.
    POLICY_KEPT = "policy_kept"
    AGENT_JOINED = "agent_joined"
    AGENT_LEFT = "agent_left"
    #: An agent takes no new executions; it does again.
    AGENT_DRAINED = "agent_drained"
    AGENT_RESUMED = "agent_resumed"
    #: Nobody asked for a scheduled run in time.
    SCHEDULE_MISSED = "schedule_missed"
    #: A scheduled run was not to be: paused, switched off, or the one before had not ended.
    SCHEDULE_SKIPPED = "schedule_skipped"
    #: An operator paused a schedule, let it go on, or asked for a run beside its due times.
    SCHEDULE_PAUSED = "schedule_paused"
    SCHEDULE_RESUMED = "schedule_resumed"
    SCHEDULE_RUN = "schedule_run"
    #: A host may join as an agent, with a token; one did; somebody tried who may not.
    AGENT_ENROLLED = "agent_enrolled"
    JOIN_ACCEPTED = "join_accepted"
    JOIN_REFUSED = "join_refused"
    #: An agent was cut off.
    AGENT_REVOKED = "agent_revoked"
    #: An agent that is cut off said something of itself; nothing rests on it.
    NOTICE_REFUSED = "notice_refused"


class AuditedRequest(Model):
    """What an event keeps of a request: enough to decide on it again, and nothing secret."""

    #: The argv with secrets taken out.
    command: Annotated[tuple[str, ...], Field(min_length=1)]
    work_dir: str = ""
    #: Names of its variables.
    environment: tuple[str, ...] = ()
    #: Seconds; None where the request named none.
    timeout: Annotated[float | None, Field(allow_inf_nan=False)] = None
    user: str = ""
    interactive: bool = False
    tty: bool = False
    #: Bytes of its standard input.
    stdin_bytes: Annotated[int, Field(ge=0, le=MAX_NUMBER)] = 0


class ExecAuditLog(Model):
    """One event of the audit trail (Spec 534, ExecAuditLog, plus place, time and code)."""

    #: Its place in the trail of Redis.
    cursor: str
    #: Its number; events follow each other without a hole. Only `trail_altered` has none, which is 0.
    seq: Annotated[int, Field(ge=0, le=MAX_NUMBER)] = 0
    #: By the clock of Redis.
    time: Timestamp
    #: What happened, a stable code; `docs/audit.md` lists them.
    event: Annotated[str, Field(pattern=r"^[a-z_]{1,64}$")]
    #: The execution; empty where a request had no valid id.
    id: str = ""
    agent_id: str = ""
    requested_by: str = ""
    #: Sanitized and quoted.
    command: str = ""
    exit_code: Annotated[int, Field(ge=-(2**31), le=2**31 - 1)] = -1
    start_time: Timestamp | None = None
    duration: Annotated[Duration, Field(ge=timedelta(0), le=MAX_DURATION)] = timedelta(0)
    client_ip: str = ""
    authorized: bool = False
    policy_applied: str = ""
    reason: str = ""
    #: SPIFFE ID of who did this step where it is not the requester: approved, rejected, cancelled.
    actor: str = ""
    #: The field of the policy that decided, where a request was denied.
    rule: str = ""
    #: With a decision: what was asked for.
    request: AuditedRequest | None = None
    #: HMAC-SHA-256 of the whole argv, in hexadecimal, where the orchestrator has a key for it: the same command has the
    #: same one, and its secrets cannot be told from it.
    command_hmac: str = ""
    #: SHA-256 of what this event rests on: the order with `dispatched`, the receipt with an end, what was approved.
    evidence_sha256: str = ""


def make_request(values: dict[str, Any]) -> ExecRequest:
    """Build a request from untrusted values.

    Raises:
        InvalidRequest: a bound is broken; the message names each field.
    """
    try:
        return ExecRequest(**values)
    except ValidationError as error:
        raise InvalidRequest(f"invalid request: {describe_validation_error(error)}") from None
