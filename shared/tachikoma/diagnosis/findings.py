"""The result of a check: findings, and the report that contains them."""

from __future__ import annotations

from tachikoma.vocabulary.model import Model
from tachikoma.vocabulary.types import Timestamp

__all__ = ["BackupFacts", "Diagnosis", "Finding", "Health", "RedisReport", "RestoreReport"]


class Finding(Model):
    """A difference between the state of the host and the needs of a part."""

    #: The setting, file, port, user or unit.
    where: str
    #: The difference and its consequence.
    what: str
    #: What the operator can do about it.
    remedy: str


class Diagnosis(Model):
    """All findings about one part."""

    #: Name of the part, or `client`.
    part: str
    #: Version of Tachikoma.
    version: str
    #: Name of this host.
    hostname: str
    #: Source of the settings: `environment`, or the unit with its files; empty for a client.
    settings: str = ""
    #: Checks that this user could not make, with the reason.
    unchecked: tuple[str, ...] = ()
    findings: tuple[Finding, ...]


class RedisReport(Model):
    """All findings about a Redis server, its replicas and its Sentinels."""

    #: Name and version of the server.
    version: str
    #: Agents that the server knows or that have a password, except revoked ones.
    agents: tuple[str, ...]
    findings: tuple[Finding, ...]


class BackupFacts(Model):
    """The contents of a backup of Redis."""

    #: Folder of the backup.
    folder: str
    #: Time of the backup.
    made_at: Timestamp
    #: Name and version of the server.
    server: str
    #: Number of keys.
    keys: int
    #: Number (`seq`) of the latest audit event.
    audit_seq: int
    #: Number of files.
    files: int
    #: Size of all files together.
    total_bytes: int


class RestoreReport(Model):
    """The result of checking a backup, and of restoring it."""

    backup: BackupFacts
    #: Folder in which a server can start with the backup; empty if the backup was only checked, or is damaged.
    restored_into: str
    #: Why the backup cannot be used; empty if it can.
    damage: tuple[Finding, ...]
    #: What to do after the restore.
    remarks: tuple[Finding, ...]


class Health(Model):
    """A part on this host that works; a command that finds none fails instead."""

    #: `orchestrator` or `worker`.
    part: str
    #: Number of slots in use; null for an orchestrator.
    running: int | None = None
    #: Number of slots; null for an orchestrator.
    slots: int | None = None
