"""What every process of the orchestrator stands on, wired together: the gRPC server's and the submitter's."""

from __future__ import annotations

import asyncio
import platform
from contextlib import suppress
from pathlib import Path
from typing import Any

import structlog
from redis.exceptions import RedisError

from tachikoma.config import error_reporting
from tachikoma.errors import ConfigurationError
from tachikoma.identity.open import open_identity
from tachikoma.identity.spiffe import InvalidIdentity
from tachikoma.policy.watch import PolicyWatch
from tachikoma.redis.access import connect
from tachikoma.vocabulary.audit import AuditCode
from tachikoma_orchestrator.admission.admit import Admitter
from tachikoma_orchestrator.agents.registry import Registry
from tachikoma_orchestrator.audit.findings import Findings
from tachikoma_orchestrator.audit.trail import AuditTrail
from tachikoma_orchestrator.executions.collector import Collector
from tachikoma_orchestrator.executions.evidence import Evidence
from tachikoma_orchestrator.executions.ledger import Ledger
from tachikoma_orchestrator.executions.waiters import Completions
from tachikoma_orchestrator.metrics import POLICIES, POLICY_ERROR, POLICY_SINCE
from tachikoma_orchestrator.processes.settings import OrchestratorSettings
from tachikoma_orchestrator.schedules.runner import ScheduleRunner
from tachikoma_orchestrator.schedules.sources import open_schedules
from tachikoma_orchestrator.schedules.store import ScheduleStore
from tachikoma_orchestrator.store.subscriber import Subscriber

__all__ = ["Core"]

log = structlog.get_logger(__name__)

#: How often the policy file is looked at.
POLICY_SECONDS = 1.0
#: Shortest key of the HMAC over commands.
MIN_KEY_BYTES = 32


def _audit_key(path: Path | None) -> bytes:
    """The key of the HMAC over commands.

    Raises:
        ConfigurationError: it cannot be read, or is too short to be one.
    """
    if path is None:
        return b""
    try:
        key = path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"cannot read the audit key {path}: {error.strerror}") from error
    if len(key) < MIN_KEY_BYTES:
        raise ConfigurationError(f"the audit key {path} has {len(key)} bytes; at least {MIN_KEY_BYTES} are required")
    return key


class Core:
    """Admits requests and learns of their ends. For one event loop."""

    def __init__(self, settings: OrchestratorSettings, name: str) -> None:
        """Wire everything; nothing is sent yet.

        Args:
            settings: where everything is.
            name: what the process is called in Redis and on the audit trail.

        Raises:
            ConfigurationError: identity, policy or a key cannot be used.
        """
        self.name = name
        self.identity = open_identity(settings.identity)
        try:
            self.identity.current().verify()
        except InvalidIdentity as error:
            raise ConfigurationError(f"the orchestrator's identity cannot be used: {error}") from error
        error_reporting.identify(self.identity.current().spiffe_id.trust_domain)
        self.policies = PolicyWatch(settings.policy)
        self.access = settings.redis(self.identity)
        self.redis = connect(self.access, name=name)
        self._subscriptions = connect(self.access, name=f"{name}-subscriber", max_connections=2)
        self.trail = AuditTrail(self.redis, key=_audit_key(settings.audit_key))
        self.ledger = Ledger(
            self.redis,
            self.trail,
            queue_size=settings.rate_limit.queue_size,
            approvals_size=settings.approvals_size,
            durable=settings.audit_durable,
            retention=settings.retention,
        )
        self.completions = Completions()
        self.subscriber = Subscriber(self._subscriptions)
        self.registry = Registry(self.redis)
        self.findings = Findings(self.redis, self.trail)
        self.evidence = Evidence(self.redis, self.findings, self.identity, self.registry.revocations)
        self.collector = Collector(
            self.redis, self.ledger, self.completions, self.registry, self.identity, self.evidence, self.findings
        )
        self.collector.attach(self.subscriber)
        self.subscriber.on_gap(self.registry.discover)
        self.admitter = Admitter(
            self.ledger, self.trail, self.policies, self.identity, self.registry,
            rate_limit=settings.rate_limit, search_path=settings.search_path,
        )  # fmt: skip
        #: None where there are no schedules.
        self.schedule_runner: ScheduleRunner | None = None
        if settings.schedules:
            self.schedule_runner = ScheduleRunner(
                open_schedules(settings.schedules), ScheduleStore(self.redis, retention=settings.retention),
                self.ledger, self.trail, self.admitter, self.identity,
            )  # fmt: skip

    async def start(self) -> list[asyncio.Task[Any]]:
        """Start what runs as long as the process does; the caller cancels it, and ends when one of it does.

        The revoked agents are known before any message is accepted, if Redis is available.
        """
        await self.registry.revocations.refresh_if_available()
        parts = [self.registry.revocations.run(), self.subscriber.run(), self._watch_policy()]
        if self.schedule_runner is not None:
            parts.append(self.schedule_runner.watch_file())
        return [asyncio.create_task(part) for part in parts]

    async def aclose(self) -> None:
        """Close the connections."""
        await self._subscriptions.aclose()
        await self.redis.aclose()
        self.identity.close()

    async def _watch_policy(self) -> None:
        """Put the policy in force on the record, and every change of it, also where Redis is away meanwhile."""
        recorded = False
        self._measure_policy()
        where = f"{self.name} on {platform.node()}"
        while True:
            digest = self.policies.current.digest
            if not recorded:
                code, reason = AuditCode.POLICY_CHANGED, f"{digest[:12]} is in force in {where}"
                if self.policies.error:
                    code, reason = (
                        AuditCode.POLICY_KEPT,
                        f"{digest[:12]} stays in force in {where}: {self.policies.error}",
                    )
                with suppress(RedisError, OSError):
                    await self.trail.append(code, authorized="1", reason=reason, evidence_sha256=digest)
                    recorded = True
            await asyncio.sleep(POLICY_SECONDS)
            if not self.policies.reload():
                continue
            recorded = False
            self._measure_policy()
            if self.policies.error:
                log.error("policy.kept", reason=self.policies.error, in_force=self.policies.current.digest[:12])
            else:
                log.info("policy.changed", digest=self.policies.current.digest[:12])

    def _measure_policy(self) -> None:
        POLICIES.set(len(self.policies.current.policies))
        POLICY_SINCE.set(self.policies.since.timestamp())
        POLICY_ERROR.set(bool(self.policies.error))
