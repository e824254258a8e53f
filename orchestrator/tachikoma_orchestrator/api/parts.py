"""The parts of the orchestrator that the gRPC services use."""

from __future__ import annotations

from dataclasses import dataclass

from tachikoma.identity.svid import SvidSource
from tachikoma.policy.watch import PolicyWatch
from tachikoma.redis.commands import Redis
from tachikoma_orchestrator.admission.admit import Admitter
from tachikoma_orchestrator.admission.approvals import Approvals
from tachikoma_orchestrator.agents.membership import Membership
from tachikoma_orchestrator.agents.registry import Registry
from tachikoma_orchestrator.audit.trail import AuditTrail
from tachikoma_orchestrator.executions.evidence import Evidence
from tachikoma_orchestrator.executions.ledger import Ledger
from tachikoma_orchestrator.executions.waiters import Completions
from tachikoma_orchestrator.schedules.runner import ScheduleRunner
from tachikoma_orchestrator.store.subscriber import Subscriber

__all__ = ["ServiceParts"]


@dataclass(frozen=True, slots=True)
class ServiceParts:
    """What a process gives to its services; they share the parts with the background tasks."""

    redis: Redis
    #: The orchestrator's own identity.
    identity: SvidSource
    policies: PolicyWatch
    trail: AuditTrail
    ledger: Ledger
    evidence: Evidence
    admitter: Admitter
    approvals: Approvals
    #: Calls that wait for the result of an execution.
    completions: Completions
    subscriber: Subscriber
    registry: Registry
    membership: Membership
    #: None if the orchestrator has no schedules.
    schedule_runner: ScheduleRunner | None
