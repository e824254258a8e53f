"""The result of a check: findings, and the report that contains them."""

from __future__ import annotations

from tachikoma.vocabulary.model import Model

__all__ = ["Diagnosis", "Finding", "Health", "RedisReport"]


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


class Health(Model):
    """A part on this host that works; a command that finds none fails instead."""

    #: `orchestrator` or `worker`.
    part: str
    #: Number of slots in use; null for an orchestrator.
    running: int | None = None
    #: Number of slots; null for an orchestrator.
    slots: int | None = None
