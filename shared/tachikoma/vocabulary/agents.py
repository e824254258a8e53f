"""Agents as callers see them: state, identity, enrolment, revocation."""

from __future__ import annotations

from pydantic import Field

from tachikoma.vocabulary.model import Model
from tachikoma.vocabulary.types import Identifier, Timestamp

__all__ = ["AgentInfo", "AgentTrust", "Enrolment", "Revocation"]


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
