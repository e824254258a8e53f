"""The parts of batches in one process, put together."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from tachikoma.identity.svid import SvidSource
from tachikoma.redis.commands import Redis
from tachikoma_orchestrator.admission.admit import Admitter
from tachikoma_orchestrator.agents.registry import Registry
from tachikoma_orchestrator.batches.approvals import BatchApprovals
from tachikoma_orchestrator.batches.driver import BatchDriver
from tachikoma_orchestrator.batches.gates import HealthGates
from tachikoma_orchestrator.batches.starter import Starter
from tachikoma_orchestrator.batches.store import BatchStore
from tachikoma_orchestrator.batches.submission import BatchSubmission
from tachikoma_orchestrator.batches.watch import BatchWatch
from tachikoma_orchestrator.executions.evidence import Evidence
from tachikoma_orchestrator.executions.ledger import Ledger
from tachikoma_orchestrator.store.subscriber import Subscriber

__all__ = ["Batches"]


@dataclass(frozen=True, slots=True)
class Batches:
    """The parts of batches; they share the process's ledger and admission."""

    store: BatchStore
    submission: BatchSubmission
    watch: BatchWatch
    driver: BatchDriver
    approvals: BatchApprovals
    starter: Starter

    @classmethod
    def over(
        cls, redis: Redis, ledger: Ledger, admitter: Admitter, registry: Registry, identity: SvidSource,
        evidence: Evidence, subscriber: Subscriber, *, retention: timedelta,
    ) -> Batches:  # fmt: skip
        """Put the parts together; `retention` is the time for which ended batches are retained."""
        store = BatchStore(redis, retention=retention)
        starter = Starter(admitter, ledger, registry, store)
        gates = HealthGates(admitter, ledger, evidence, starter)
        driver = BatchDriver(store, starter, gates, ledger.trail, identity)
        driver.attach(subscriber)
        return cls(
            store,
            BatchSubmission(store, starter, admitter, registry, identity),
            BatchWatch(store, ledger, evidence, subscriber),
            driver,
            BatchApprovals(store, starter, ledger.trail, identity),
            starter,
        )
