"""Agents as callers see them: state, identity, enrolment, revocation."""

from __future__ import annotations

from pydantic import Field

from tachikoma.vocabulary.model import Model
from tachikoma.vocabulary.types import Identifier, Timestamp

__all__ = ["AgentInfo", "AgentTrust", "Enrolment", "Revocation"]


class AgentTrust(Model):
    """An agent's identity and trusted roots, as the agent reports them."""

    #: SPIFFE ID of the agent.
    spiffe_id: str
    #: Time at which its certificate expires.
    expires: Timestamp
    #: SHA-256 of the public key of the root that signed its chain, in hexadecimal; empty if its own bundle has none.
    root: str = ""
    #: SHA-256 of the public key of each root in the bundle of its own trust domain.
    bundle: tuple[str, ...] = ()


class AgentInfo(Model):
    """An agent, as its heartbeats and the orchestrator's records describe it."""

    #: Id of the agent.
    id: Identifier
    #: True if its latest heartbeat has not expired.
    online: bool = False
    #: Time of its latest heartbeat; None if there was none.
    last_seen: Timestamp | None = None
    #: Version of Tachikoma that it runs.
    version: str = ""
    #: Name of its host.
    hostname: str = ""
    #: Labels that operators bound to it. Policies, targets and schedules select agents by them.
    labels: dict[str, str] = Field(default_factory=dict)
    #: Labels that it reports about itself; they grant nothing.
    reported_labels: dict[str, str] = Field(default_factory=dict)
    #: Number of executions that it runs now.
    running: int = 0
    #: Number of executions that it may run at once.
    slots: int = 0
    #: Number of orders on its queues.
    queued: int = 0
    #: Load average over one minute.
    load: float = 0.0
    #: Share of its memory that is in use, 0 to 1.
    memory_used: float = 0.0
    #: Share of the disk of its data directory that is in use, 0 to 1.
    disk_used: float = 0.0
    #: Limits and protections that its host cannot enforce, for people.
    warnings: tuple[str, ...] = ()
    #: Levels of isolation that its host can enforce, such as "private"; empty if it does not report them.
    isolation: tuple[str, ...] = ()
    #: True if it accepts no new executions.
    draining: bool = False
    #: SPIFFE ID of the operator who drained it; empty if it is not draining.
    drained_by: str = ""
    #: The operator's reason.
    drain_reason: str = ""
    #: Its identity; None if it has not reported one.
    trust: AgentTrust | None = None
    #: True if it is revoked.
    revoked: bool = False
    #: SPIFFE ID of the operator who revoked it; empty if it is not revoked.
    revoked_by: str = ""
    #: The operator's reason.
    revoke_reason: str = ""


class Enrolment(Model):
    """A token with which one host may join as an agent."""

    #: Id of the agent.
    agent_id: Identifier
    #: The token for `tachikoma worker join`. Any host that has it may join, once. `repr()` leaves it out.
    token: str = Field(repr=False)
    #: Time at which the token expires.
    expires: Timestamp


class Revocation(Model):
    """The effects of revoking an agent."""

    #: Id of the agent.
    agent_id: Identifier
    #: Number of executions that waited on its queues; they end CANCELLED and never start.
    cancelled: int = 0
    #: Number of executions that had started; they end LOST, since their outcome is unknown.
    lost: int = 0
    #: Steps that remain to be done by hand, for people.
    warnings: tuple[str, ...] = ()
