"""The signed messages between orchestrator, agents and applications; `signing.py` signs and verifies them."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from tachikoma.identity.signing import Claims
from tachikoma.vocabulary.audit import AuditedRequest
from tachikoma.vocabulary.formats import FORMATS
from tachikoma.vocabulary.grants import Digest, Grant
from tachikoma.vocabulary.labels import BoundLabels
from tachikoma.vocabulary.limits import ResourceUsage
from tachikoma.vocabulary.model import OMITTED_IF_NONE
from tachikoma.vocabulary.order_trace import OrderTrace
from tachikoma.vocabulary.requests import ExecRequest
from tachikoma.vocabulary.results import IsolationReport, KillReceipt
from tachikoma.vocabulary.states import ExecState
from tachikoma.vocabulary.types import Identifier, Milliseconds

__all__ = [
    "AgentLabels",
    "AuditCheckpoint",
    "CancelOrder",
    "Enrolment",
    "LifeRecord",
    "OutputDigest",
    "ParkedRequest",
    "Receipt",
    "RecordingSeal",
    "SessionAnswer",
    "SessionOffer",
    "SignedRequest",
    "WorkOrder",
]

#: A number that an agent reports. Agents may be hostile, and their reports are stored and shown, so it has bounds.
Count = Annotated[int, Field(ge=0, lt=2**63)]


class WorkOrder(Claims):
    """A work order: everything that the agent acts on."""

    # A newer writer may add fields that this version ignores.
    model_config = ConfigDict(frozen=True, extra="ignore")

    type: Literal["tachikoma-order+jws"] = "tachikoma-order+jws"
    #: Version of the format.
    v: int = FORMATS["order"]
    #: SPIFFE ID of the agent that it is addressed to.
    aud: str
    #: SPIFFE ID of the requester.
    sub: str
    #: Second since the epoch from which on the command must not be started.
    exp: int
    #: Id of the execution; an agent starts each at most once.
    jti: Identifier
    #: The policy that granted the request, as name@digest.
    policy: str
    #: SPIFFE ID of the approver; empty if policy needed no approval.
    approved_by: str = ""
    #: Id of the batch that the request is a part of; empty for none. It is not in the request's digest.
    batch: str = ""
    #: Id of the agent's journal at the time of the signature. An agent with another journal cannot know whether it has
    #: started the command before.
    journal: str = ""
    #: Labels that the agent reported about itself. Agents up to version 0.2 compare them with their own.
    labels: dict[str, str] = Field(default_factory=dict)
    #: Labels that policy used: those that operators bound. None from orchestrators that used `labels`, which came
    #: through Redis; the agent then compares them with its own.
    bound: dict[str, str] | None = None
    #: IP address that the request came from; empty if it is unknown.
    client_ip: str = ""
    #: Number of the life of Redis in which the request was accepted or approved; 0 from older orchestrators.
    life: Count = 0
    #: Digest of the request as it was made, for rebuilding a record that Redis lost; empty from older orchestrators.
    digest: str = ""
    #: Lane on which the orchestrator receives the report (`tachikoma.redis.keys.report`); None: it finds the result.
    reply: Count | None = None
    #: True if the caller reads the output while the command runs, so the command waits for it. Older agents do not.
    attached: bool = False
    #: True if a command of root may reach the host. Older agents ignore it, and let it.
    host_access: bool = False
    #: The trace that the order belongs to; None for none. Older agents ignore it.
    trace: Annotated[OrderTrace | None, OMITTED_IF_NONE] = None
    #: The grant of policy.
    grant: Grant
    #: The request.
    request: ExecRequest


class SignedRequest(Claims):
    """A request that its requester signed, since it comes through Redis and not over an authenticated connection."""

    type: Literal["tachikoma-request+jws"] = "tachikoma-request+jws"
    #: Version of the format.
    v: int = FORMATS["request"]
    #: SPIFFE ID of the orchestrator that it is addressed to.
    aud: str
    #: Second since the epoch from which on the request must not be admitted.
    exp: int
    #: Id of the execution, so that reading the message twice gives one execution.
    jti: Identifier
    #: The request, with the same id.
    request: ExecRequest

    @model_validator(mode="after")
    def _one_id(self) -> Self:
        if self.jti != self.request.id:
            raise ValueError("names another execution than its request")
        return self


class ParkedRequest(Claims):
    """A request that waits for an approval. No agent accepts it as an order, and Redis cannot replace it."""

    type: Literal["tachikoma-parked+jws"] = "tachikoma-parked+jws"
    #: Id of the execution.
    jti: Identifier
    #: The request, with the authenticated requester.
    request: ExecRequest
    #: IP address that the request came from; empty if it is unknown.
    client_ip: str = ""


class CancelOrder(Claims):
    """An order to an agent to kill an execution, or never to start it."""

    type: Literal["tachikoma-cancel+jws"] = "tachikoma-cancel+jws"
    #: SPIFFE ID of the agent that it is addressed to.
    aud: str
    #: SPIFFE ID of the caller who cancelled.
    sub: str
    #: SPIFFE ID that must be the requester of the execution; empty if an operator cancelled, who may cancel all.
    requested_by: str = ""
    #: Id of the execution.
    jti: Identifier


#: The number of an attachment to a session.
Epoch = Annotated[int, Field(ge=1, lt=2**32)]
#: The public half of an ephemeral X25519 key: 32 bytes in base64url without padding.
EphemeralHalf = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{43}$")]


class SessionOffer(Claims):
    """An orchestrator's offer to an agent to begin an epoch of a session, for one caller."""

    # A newer writer may add fields that this version ignores.
    model_config = ConfigDict(frozen=True, extra="ignore")

    type: Literal["tachikoma-session-offer+jws"] = "tachikoma-session-offer+jws"
    #: Version of the format.
    v: int = FORMATS["session"]
    #: SPIFFE ID of the agent that it is addressed to.
    aud: str
    #: SPIFFE ID of the caller who attaches.
    sub: str
    #: Second since the epoch from which on the offer must not be accepted.
    exp: int
    #: Id of the execution.
    jti: Identifier
    #: SHA-256 of the order.
    order_sha256: Digest
    #: Number of the attachment. The agent accepts only a higher one than before.
    epoch: Epoch
    #: The orchestrator's ephemeral half.
    key: EphemeralHalf
    #: IP address of the caller; empty if it is unknown.
    client_ip: str = ""


class SessionAnswer(Claims):
    """An agent's answer to an offer."""

    type: Literal["tachikoma-session-answer+jws"] = "tachikoma-session-answer+jws"
    #: Version of the format.
    v: int = FORMATS["session"]
    #: SPIFFE ID of the orchestrator that made the offer.
    aud: str
    #: Id of the execution.
    jti: Identifier
    #: Number of the attachment.
    epoch: Epoch
    #: SHA-256 of the signed offer.
    offer_sha256: Digest
    #: The agent's ephemeral half.
    key: EphemeralHalf
    #: Number of input bytes that the command's terminal or pipe has taken. The orchestrator continues there.
    accepted: Count
    #: True if the input of the command has ended, so that no more is accepted.
    ended: bool = False


class Enrolment(Claims):
    """A permission to join once, for the holder of a secret. Redis stores it and cannot replace it."""

    type: Literal["tachikoma-enrolment+jws"] = "tachikoma-enrolment+jws"
    #: Id of the agent, or `user/<name>` for a person (`spiffe.Member.key`).
    agent: Annotated[str, Field(pattern=r"^(user/[A-Za-z0-9._-]+|[A-Za-z0-9_-]+)$", max_length=80)]
    #: SHA-256 of the secret, in hexadecimal.
    secret_sha256: Digest
    #: Time of the enrolment, in milliseconds since the epoch. One from before its owner's revocation is not accepted.
    made_ms: Milliseconds
    #: Second since the epoch from which on the permission is expired.
    exp: int
    #: SPIFFE ID of the operator.
    by: str
    #: Labels that are bound to the agent when the host joins. None: the agent's labels stay as they are.
    labels: BoundLabels | None = None


class AgentLabels(Claims):
    """The labels that an operator bound to an agent. Redis stores them and cannot replace them."""

    type: Literal["tachikoma-labels+jws"] = "tachikoma-labels+jws"
    #: Id of the agent.
    agent: Identifier
    #: All its labels.
    labels: BoundLabels
    #: Time of the change, in milliseconds since the epoch; later than that of the change before.
    at_ms: Milliseconds
    #: SPIFFE ID of the operator.
    by: str


class LifeRecord(Claims):
    """A life of Redis, as `orch:life` contains it: the time until a restart, a failover or a restore.

    Each of these changes the replication id of the server (`docs/decisions/0033-lives-of-redis.md`).
    """

    # A newer writer may add fields that this version ignores.
    model_config = ConfigDict(frozen=True, extra="ignore")

    type: Literal["tachikoma-life+jws"] = "tachikoma-life+jws"
    #: Number of the life, from 1 on.
    number: Count
    #: Lowest number of a life whose orders may start. Each life that lost data sets it to its own number.
    valid_from: Count
    #: Time up to which a loss of data is taken into account, in milliseconds by the clock of Redis; 0 for no loss yet.
    lost_ms: Milliseconds = 0
    #: `master_replid` of the server.
    replid: Annotated[str, Field(pattern=r"^[0-9a-f]{1,64}$")]


class RecordingSeal(Claims):
    """An orchestrator's statement about a finished recording. It is stored beside the recording."""

    # A newer writer may add fields that this version ignores.
    model_config = ConfigDict(frozen=True, extra="ignore")

    type: Literal["tachikoma-recording+jws"] = "tachikoma-recording+jws"
    #: Id of the execution.
    jti: Identifier
    #: Id of the agent.
    agent: Identifier
    #: SPIFFE ID of the requester.
    sub: str
    #: The policy that granted the request, as name@digest.
    policy: str
    #: The request, as far as it is retained; policy decides on it again when a caller wants to play the recording.
    request: AuditedRequest
    #: Beginning of the recording, in milliseconds since the epoch.
    began_ms: Milliseconds
    #: Its duration in microseconds.
    duration_us: Count
    #: Its size in bytes.
    size: Count
    #: Its SHA-256.
    sha256: Digest
    #: SHA-256 of the text that searches read.
    text_sha256: Digest
    #: Exit code of the command; -1 if it is unknown.
    exit_code: Annotated[int, Field(ge=-1, le=255)]
    #: Why it does not contain all output; empty if it does.
    problem: str = ""
    #: True if it contains input.
    has_input: bool = False


class AuditCheckpoint(Claims):
    """A checkpoint: the head of an audit log's chain up to a line."""

    type: Literal["tachikoma-checkpoint+jws"] = "tachikoma-checkpoint+jws"
    #: Number of the line in the chain.
    line: Count
    #: Digest of that line.
    head: Digest
    #: Number of the last event before the checkpoint.
    seq: Count


class OutputDigest(BaseModel):
    """Size and digests of one output stream in a receipt."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    #: Number of bytes that the command wrote.
    total_bytes: Count
    #: SHA-256 of all these bytes; empty if a restarted worker no longer had all of them.
    sha256: Digest | Literal[""]
    #: True if the result contains only head and tail.
    truncated: bool
    #: SHA-256 of the part in the result: all bytes, or head and tail.
    excerpt_sha256: Digest


class Receipt(Claims):
    """An agent's signed report about the end of an execution."""

    type: Literal["tachikoma-receipt+jws"] = "tachikoma-receipt+jws"
    #: Version of the format.
    v: int = FORMATS["receipt"]
    #: Id of the execution.
    jti: Identifier
    #: SHA-256 of the order; empty if the order could not be read again.
    order_sha256: str
    #: The final state.
    state: ExecState
    #: Exit code; 128+n after signal n; -1 if the command never ran or its exit code is unknown.
    exit_code: Annotated[int, Field(ge=-1, le=255)]
    #: Number of the signal that ended the command; 0 if none did.
    signal: Annotated[int, Field(ge=0, le=64)]
    #: Why the execution did not succeed, for people; else empty.
    error: Annotated[str, Field(max_length=8192)]
    #: Path of the file that was executed; empty if none was.
    executable: Annotated[str, Field(max_length=8192)]
    #: Start of the command by the agent's clock, in milliseconds since the epoch; 0 if it never started.
    started_ms: Milliseconds
    #: End of the execution by the agent's clock, in milliseconds since the epoch.
    ended_ms: Milliseconds
    #: Run time of the command in microseconds.
    duration_us: Count
    #: Number of the last chunk of output.
    chunks: Count
    #: Standard output.
    stdout: OutputDigest
    #: Standard error.
    stderr: OutputDigest
    #: Resources that the command used.
    usage: ResourceUsage = ResourceUsage()
    #: The agent's report about killing the command; None if it was not killed.
    kill: KillReceipt | None = None
    #: How the command was isolated; None if only its user separated it from others, or it never started.
    isolation: Annotated[IsolationReport | None, OMITTED_IF_NONE] = None

    @model_validator(mode="after")
    def _killed_means_gone(self) -> Self:
        killed = self.state in (ExecState.CANCELLED, ExecState.TIMED_OUT) and self.started_ms
        if killed and not (self.kill and self.kill.empty):
            raise ValueError(f"reports {self.state}, but not that all processes of the command are gone")
        return self
