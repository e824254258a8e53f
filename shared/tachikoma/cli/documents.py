"""The JSON document of each command, for its schema in `docs/json.md` and for tests.

Most documents are values of the vocabulary. Those that only the command line has are defined here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

from pydantic import TypeAdapter

from tachikoma.cli.batch_view import BatchReport
from tachikoma.cli.host_setup import HostSetup, JoinedAgent
from tachikoma.cli.policy_documents import (
    PolicyChanges,
    PolicyExplanation,
    PolicyReport,
    PolicyTestReport,
)
from tachikoma.cli.result import ExecResult
from tachikoma.diagnosis.findings import BackupFacts, Diagnosis, Health, RedisReport, RestoreReport
from tachikoma.vocabulary.agents import AgentInfo, Enrolment, Revocation
from tachikoma.vocabulary.audit import ExecAuditLog
from tachikoma.vocabulary.batches import BatchApproval, BatchPreview, BatchStatus, BatchUpdate
from tachikoma.vocabulary.model import Model
from tachikoma.vocabulary.policies import PolicyStatus
from tachikoma.vocabulary.recordings import RecordingInfo
from tachikoma.vocabulary.results import Approval, CancelResponse, ExecOutput, ExecStatus
from tachikoma.vocabulary.schedules import ScheduledRun, ScheduleStatus
from tachikoma.vocabulary.types import Timestamp
from tachikoma.vocabulary.users import UserEnrolment, UserInfo

__all__ = [
    "DOCUMENTS",
    "AgentUnderBundle",
    "AuditReport",
    "AuthorityFacts",
    "CertificateFacts",
    "Document",
    "ErrorDocument",
    "ErrorFacts",
    "IdentityCheck",
    "IdentityFacts",
    "IssuedIdentity",
    "OwnIdentity",
    "ScheduleReport",
    "SettingFacts",
    "SettingsCheck",
    "VersionFacts",
]


class ErrorFacts(Model):
    """The error that ended a command."""

    #: Stable name of the kind of error, such as `AGENT_OFFLINE`.
    reason: str
    #: Name of the gRPC status code.
    code: str
    #: The message for people.
    message: str
    #: Facts for programs, such as the rule that decided.
    metadata: dict[str, str]
    #: Delay after which a retry may succeed; null if a retry does not help.
    retry_after_seconds: float | None


class ErrorDocument(Model):
    """The last line of standard error when a command fails with `-o json` or `-o jsonl`."""

    error: ErrorFacts


class VersionFacts(Model):
    """The versions of this installation."""

    #: Version of this package.
    version: str
    #: Version of Python.
    python: str


class SettingFacts(Model):
    """One setting of a part."""

    #: Its environment variable.
    setting: str
    #: Its value as it is written in the environment; empty if it is not set. Passwords are `***`.
    value: str
    #: `option`, `environment`, `file`, `default` or `missing`.
    origin: str


class SettingsCheck(Model):
    """The result of checking the settings of a part."""

    #: Name of the part.
    part: str
    #: Number of its settings.
    settings: int
    #: Source of the settings: `environment`, or the unit with its files.
    source: str
    #: Variables that look like settings, and that no part reads.
    unknown: tuple[str, ...]
    #: Files that are set and cannot be read, in words; empty if there are none.
    problems: tuple[str, ...]


class CertificateFacts(Model):
    """One certificate."""

    #: Its subject, as in RFC 4514.
    subject: str
    #: Serial number, in hexadecimal.
    serial: str
    #: Time from which the certificate is valid.
    not_before: Timestamp
    #: Time until which the certificate is valid.
    not_after: Timestamp
    #: SHA-256 of the public key, in hexadecimal.
    key: str


class IdentityFacts(Model):
    """An identity, and the roots that it trusts."""

    #: SPIFFE ID of the identity.
    spiffe_id: str
    #: Folder or address that it comes from.
    source: str
    usable: bool
    #: Why it cannot be used; empty if it can.
    problem: str
    #: Time at which its certificate expires.
    expires: Timestamp
    #: Its certificate, then the intermediate ones.
    chain: tuple[CertificateFacts, ...]
    #: The root certificates of each trust domain, by its name.
    bundles: dict[str, tuple[CertificateFacts, ...]]


class OwnIdentity(Model):
    """The caller's identity, compared with a planned bundle."""

    spiffe_id: str
    #: Why it would be refused; empty if it would be accepted.
    problem: str


class AgentUnderBundle(Model):
    """An agent, compared with a planned bundle."""

    id: str
    #: True if its latest heartbeat has not expired.
    online: bool
    #: Time at which its certificate expires; null if the agent does not report it.
    expires: Timestamp | None
    #: SHA-256 of the public key of the root that signed its chain, in hexadecimal; empty if it is unknown.
    root: str
    #: Why it would be refused; empty if it would be accepted.
    problem: str
    #: SHA-256 of the public key of each planned root that the agent does not trust yet.
    roots_not_trusted: tuple[str, ...]


class IdentityCheck(Model):
    """The effect that a planned bundle would have on the caller and on all agents."""

    #: True if the bundle would cause no problem.
    ok: bool
    you: OwnIdentity
    agents: tuple[AgentUnderBundle, ...]


class AuthorityFacts(Model):
    """A certificate authority."""

    #: Folder of its key and certificate.
    folder: str
    #: True if it is a root; false if another authority signed it.
    root: bool
    #: Trust domain of the identities that it issues.
    trust_domain: str
    #: Time at which its certificate expires.
    expires: Timestamp


class IssuedIdentity(Model):
    """An identity that was written into a folder."""

    #: Folder of the identity.
    folder: str
    #: SPIFFE ID of the identity.
    spiffe_id: str
    #: Time at which its certificate expires.
    expires: Timestamp


class LoggedIn(Model):
    """The identity and the profile that a login created."""

    #: SPIFFE ID of the person.
    spiffe_id: str
    #: Folder of the identity.
    identity: str
    #: File of the client profile.
    profile: str
    #: host:port of the orchestrator.
    address: str


class RenewedIdentity(Model):
    """The result of `identity renew`."""

    #: Folder of the identity.
    folder: str
    #: SPIFFE ID of its owner.
    spiffe_id: str
    #: Time at which its certificate expires.
    expires: Timestamp
    #: True if the certificate is a new one.
    renewed: bool


class AuditReport(Model):
    """The result of verifying an audit log."""

    lines: int
    events: int
    checkpoints: int
    #: Number of events after the last checkpoint; no signature covers them yet.
    unsigned: int
    #: Number (`seq`) of the first event.
    first_seq: int
    #: Number (`seq`) of the last event.
    last_seq: int
    #: SHA-256 of the last line, in hexadecimal.
    head: str
    #: Events that Redis lost, in words. The files are unaltered, so a gap is no finding.
    gaps: tuple[str, ...]
    #: Alterations of the files, in words, each with file and line; empty if there are none.
    findings: tuple[str, ...]


class ScheduleReport(Model):
    """A file of schedules, or a folder of them, that has no mistake."""

    file: str
    #: Number of schedules.
    schedules: int
    #: Doubtful rules, in words; empty if there are none.
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Document:
    """The document of a command."""

    #: The command line without options, or with those that choose this document.
    command: str
    #: Type of the document, or of one of its lines.
    kind: Any
    #: Whether there is one object a line, also with `-o json`.
    lines: bool = False
    #: Whether it is an array.
    lists: bool = False

    @classmethod
    def list_of(cls, command: str, kind: Any) -> Self:
        """Make the document of a command that prints an array."""
        return cls(command, tuple[kind, ...], lists=True)

    def schema(self) -> dict[str, Any]:
        """Return its JSON schema (2020-12)."""
        return TypeAdapter(self.kind).json_schema(mode="serialization", by_alias=True)


#: Every document, by command.
DOCUMENTS = (
    Document.list_of("agents", AgentInfo),
    Document("agents drain", AgentInfo),
    Document("agents resume", AgentInfo),
    Document("agents label", AgentInfo),
    Document.list_of("agents enroll", Enrolment),
    Document("agents revoke", Revocation),
    Document("login", LoggedIn),
    Document.list_of("users ls", UserInfo),
    Document("users add", UserEnrolment),
    Document("users revoke", UserInfo),
    Document.list_of("config show", SettingFacts),
    Document("config check", SettingsCheck),
    Document("doctor", Diagnosis),
    Document.list_of("approvals", ExecStatus),
    Document("approvals ID", Approval),
    Document("approve", ExecStatus),
    Document("reject", ExecStatus),
    Document.list_of("audit tail", ExecAuditLog),
    Document("audit tail --follow", ExecAuditLog, lines=True),
    Document.list_of("audit show", ExecAuditLog),
    Document("audit verify", AuditReport),
    Document("audit export", ExecAuditLog, lines=True),
    Document.list_of("batches ls", BatchStatus),
    Document("batches status", BatchReport),
    Document.list_of("batches approvals", BatchStatus),
    Document("batches approvals ID", BatchApproval),
    Document("batches approve", BatchStatus),
    Document("batches reject", BatchStatus),
    Document("batches cancel", BatchStatus),
    Document("batches retry", BatchReport),
    Document("batches retry -o jsonl", BatchUpdate, lines=True),
    Document("batches retry --detach", BatchStatus),
    Document("batches retry --preview", BatchPreview),
    Document("batches logs", ExecOutput, lines=True),
    Document.list_of("cancel", CancelResponse),
    Document("exec", ExecResult),
    Document("exec -o jsonl", ExecOutput, lines=True),
    Document("exec --detach", ExecStatus),
    Document("identity show", IdentityFacts),
    Document("identity check", IdentityCheck),
    Document("identity renew", RenewedIdentity),
    Document("identity ca init", AuthorityFacts),
    Document("identity ca issue", IssuedIdentity),
    Document("logs", ExecOutput, lines=True),
    Document("orchestrator health", Health),
    Document("policy check", PolicyReport),
    Document("policy explain", PolicyExplanation),
    Document("policy test", PolicyTestReport),
    Document("policy status", PolicyStatus),
    Document("policy diff", PolicyChanges),
    Document.list_of("ps", ExecStatus),
    Document.list_of("recordings ls", RecordingInfo),
    Document("redis check", RedisReport),
    Document("redis backup", BackupFacts),
    Document("redis restore", RestoreReport),
    Document("run", BatchReport),
    Document("run -o jsonl", BatchUpdate, lines=True),
    Document("run --detach", BatchStatus),
    Document("run --preview", BatchPreview),
    Document("schedule check", ScheduleReport),
    Document.list_of("schedule ls", ScheduleStatus),
    Document.list_of("schedule next", Timestamp),
    Document("schedule pause", ScheduleStatus),
    Document("schedule resume", ScheduleStatus),
    Document("schedule run", ScheduledRun),
    Document.list_of("schedule history", ScheduledRun),
    Document.list_of("sessions ls", ExecStatus),
    Document("sessions close", CancelResponse),
    Document("setup", HostSetup),
    Document("status", ExecStatus),
    Document("version", VersionFacts),
    Document("worker health", Health),
    Document("worker install", HostSetup),
    Document("worker join", JoinedAgent),
    Document("any command that fails", ErrorDocument),
)
