"""The report of a check of a Redis server."""

from __future__ import annotations

from tachikoma.diagnosis.findings import Finding
from tachikoma.vocabulary.model import Model

__all__ = ["Report"]


class Report(Model):
    """All findings of one check."""

    #: Name and version of the server.
    version: str
    #: Agents that the server knows or that have a password, except revoked ones.
    agents: tuple[str, ...]
    findings: tuple[Finding, ...]
