"""The result of a check: findings, and the report that contains them."""

from __future__ import annotations

from tachikoma.vocabulary.model import Model

__all__ = ["Finding", "Report"]


class Finding(Model):
    """A difference between the server and the requirements."""

    #: The setting, port or user.
    where: str
    #: The difference and its consequence.
    what: str
    #: What the operator of the server can do about it.
    remedy: str


class Report(Model):
    """All findings of one check."""

    #: Name and version of the server.
    version: str
    #: Agents that the server knows or that have a password, except revoked ones.
    agents: tuple[str, ...]
    findings: tuple[Finding, ...]
