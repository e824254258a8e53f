"""The parts that both processes of the orchestrator need: the gRPC server and the submitter.

A `Core` admits requests and learns of their results. It belongs to one event loop.
"""

from __future__ import annotations

import asyncio
import platform
from collections.abc import Sequence
from pathlib import Path

import structlog
from redis.exceptions import RedisError

from tachikoma.config import error_reporting
from tachikoma.config.tasks import Supervisor
from tachikoma.errors import ConfigurationError
from tachikoma.identity.open import open_identity
from tachikoma.identity.spiffe import InvalidIdentity
from tachikoma.identity.svid import SvidSource
from tachikoma.policy.watch import PolicyWatch
from tachikoma.redis import keys
from tachikoma.redis.access import RedisAccess, connect
from tachikoma.vocabulary.addresses import HostPort
from tachikoma.vocabulary.audit import AuditCode
from tachikoma_orchestrator.admission.admit import Admitter
from tachikoma_orchestrator.agents.registry import Registry
from tachikoma_orchestrator.audit.findings import Findings
from tachikoma_orchestrator.audit.refusals import RefusalBudget
from tachikoma_orchestrator.audit.trail import AuditTrail
from tachikoma_orchestrator.batches.room import Batches
from tachikoma_orchestrator.executions.cancel import sent_cancels
from tachikoma_orchestrator.executions.collector import Collector
from tachikoma_orchestrator.executions.evidence import Evidence
from tachikoma_orchestrator.executions.ledger import Ledger
from tachikoma_orchestrator.executions.restoration import Restoration
from tachikoma_orchestrator.executions.waiters import Completions
from tachikoma_orchestrator.executions.waiting_callers import WaitingCallers
from tachikoma_orchestrator.metrics import POLICIES, POLICY_ERROR, POLICY_SINCE, classify_agents, serve_metrics
from tachikoma_orchestrator.processes.measuring import Measuring
from tachikoma_orchestrator.processes.settings import OrchestratorSettings
from tachikoma_orchestrator.schedules.runner import ScheduleRunner
from tachikoma_orchestrator.schedules.sources import open_schedules
from tachikoma_orchestrator.schedules.store import ScheduleStore
from tachikoma_orchestrator.store.known import Known, share_known
from tachikoma_orchestrator.store.lives import Lives
from tachikoma_orchestrator.store.subscriber import Subscriber

__all__ = ["Core"]

log = structlog.get_logger(__name__)

#: Seconds between two looks at the policy file.
POLICY_SECONDS = 1.0
#: Shortest key of the HMAC over commands.
MIN_KEY_BYTES = 32


def read_audit_key(path: Path | None) -> bytes:
    """Read the key of the HMAC over commands; empty without a file.

    Raises:
        ConfigurationError: the file cannot be read, or is shorter than `MIN_KEY_BYTES`.
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


def _open_identity(settings: OrchestratorSettings) -> SvidSource:
    """Open the identity of the process. Raises ConfigurationError if it cannot be used."""
    identity = open_identity(settings.identity)
    try:
        identity.current().verify()
    except InvalidIdentity as error:
        raise ConfigurationError(f"the orchestrator's identity cannot be used: {error}") from error
    error_reporting.identify(identity.current().spiffe_id.trust_domain)
    return identity


class Core:
    """The parts of a process that admit requests and receive results."""

    def __init__(self, settings: OrchestratorSettings, name: str) -> None:
        """Put the parts together; nothing is sent yet.

        Args:
            settings: of the process.
            name: name of the process on its host, in Redis and in the audit trail.

        Raises:
            ConfigurationError: identity, policy or a key cannot be used.
        """
        self.name = name
        self.identity = _open_identity(settings)
        self.policies = PolicyWatch(settings.policy)
        self._connect(settings.redis(self.identity))
        self.trail = AuditTrail(
            self.redis, key=read_audit_key(settings.audit_key), refusals=RefusalBudget(settings.audit_refusals)
        )
        self.ledger = self._make_ledger(settings)
        self.completions = Completions()
        self.registry = Registry(self.redis, self.identity, self.lives)
        lane = keys.reply_lane(f"{name} on {platform.node()} at {settings.listen}")
        self._collect(lane)
        self.admitter = Admitter(
            self.ledger, self.trail, self.policies, self.identity, self.registry,
            rate_limit=settings.rate_limit, search_path=settings.search_path, sent=self.completions.note_order,
            lives=self.lives,
            reply=lane,
        )  # fmt: skip
        self._remember_in_new_lives()
        self.batches = self._make_batches(settings)
        #: None if no schedules are configured.
        self.schedule_runner = self._open_schedules(settings)

    def _connect(self, access: RedisAccess) -> None:
        """Make the connections to Redis."""
        self.access = access
        self._life_redis = connect(access, name=f"{self.name}-life", max_connections=2)
        #: What the process knows about Redis.
        self.known = Known()
        #: The lives of Redis. No other connection is used before the life of its server is recorded.
        self.lives = Lives(self._life_redis, self.identity, self.known, f"{self.name} on {platform.node()}")
        self.redis = connect(access, name=self.name, gate=self.lives)
        share_known(self.redis, self.known)
        self._subscriptions = connect(access, name=f"{self.name}-subscriber", max_connections=2)
        self.subscriber = Subscriber(self._subscriptions)

    def _collect(self, lane: int) -> None:
        """Receive the results of executions, also those that a gap of the subscription missed.

        Args:
            lane: where agents report to this process.
        """
        self.findings = Findings(self.redis, self.trail)
        self.evidence = Evidence(self.redis, self.findings, self.identity, self.registry.revocations)
        self.collector = Collector(
            self.redis, self.ledger, self.completions, self.registry, self.identity, self.evidence, self.findings
        )
        self.collector.attach(self.subscriber, lane)
        self._waiting_callers = WaitingCallers(
            self.redis, self.ledger, self.completions, self.collector, self.registry, self.lives
        )
        self.subscriber.on_gap(self._waiting_callers.check)
        self.subscriber.on_gap(self.registry.discover)

    def _remember_in_new_lives(self) -> None:
        """Write the facts that this process knows again when Redis has gone back to an older state."""
        self.lives.on_loss(self.registry.revocations.write_again)
        self.lives.on_loss(self.registry.bound.write_again)
        self.lives.on_loss(self.registry.drains.write_again)
        restoration = Restoration(self.redis, self.identity, self.lives, self.admitter.shown, self.collector.fold)
        self.lives.on_loss(self.ledger.write_again)
        self.lives.on_loss(sent_cancels(self.redis).write_again)
        self.collector.restore_with(restoration)
        self.admitter.wait_with(restoration)

    def _make_ledger(self, settings: OrchestratorSettings) -> Ledger:
        return Ledger(
            self.redis,
            self.trail,
            queue_size=settings.rate_limit.queue_size,
            approvals_size=settings.approvals_size,
            durable=settings.audit_durable,
            retention=settings.retention,
        )

    def _make_batches(self, settings: OrchestratorSettings) -> Batches:
        batches = Batches.over(
            self.redis, self.ledger, self.admitter, self.registry, self.identity, self.evidence, self.subscriber,
            retention=settings.retention,
        )  # fmt: skip
        # Before the final states: the last one of a cancelled batch would end it as one that is done.
        self.lives.on_loss(batches.store.reported.write_again, first=True)
        return batches

    def _open_schedules(self, settings: OrchestratorSettings) -> ScheduleRunner | None:
        if not settings.schedules:
            return None
        store = ScheduleStore(self.redis, retention=settings.retention)
        self.lives.on_loss(store.pauses.write_again)
        return ScheduleRunner(
            open_schedules(settings.schedules),
            store,
            self.ledger,
            self.trail,
            self.admitter,
            self.identity,
            self.batches,
        )

    async def start(self, supervisor: Supervisor) -> None:
        """Start the background parts.

        The life of Redis comes first, since no other connection is used before. Then revocations and labels are
        read once, if Redis is available, so that nothing of a revoked agent is accepted meanwhile.
        """
        await self.lives.look_if_available()
        supervisor.start(self.lives.run(), name="lives")
        await self.registry.revocations.refresh_if_available()
        supervisor.start(self.registry.revocations.run(), name="revocations")
        await self.registry.bound.refresh_if_available()
        supervisor.start(self.registry.bound.run(), name="labels")
        supervisor.start(self.registry.drains.run(), name="drains")
        supervisor.start(self.subscriber.run(), name="subscriber")
        supervisor.start(self._waiting_callers.run(), name="waiting-callers")
        supervisor.start(self._watch_policy(), name="policy")
        supervisor.start(self.trail.run_refusals(), name="refusals")
        supervisor.start(self.batches.driver.run(), name="batches")
        if self.schedule_runner is not None:
            supervisor.start(self.schedule_runner.watch_file(), name="schedules-file")

    def start_metrics(
        self, supervisor: Supervisor, address: HostPort | None, agent_class: str, followed: Sequence[Subscriber] = ()
    ) -> None:
        """Serve metrics, and measure in the background.

        Args:
            supervisor: of the background parts.
            address: where Prometheus reads them; None to measure nothing.
            agent_class: name of the label by which executions are counted; empty for none.
            followed: subscribers to the output and batches that callers of this process follow.

        Raises:
            ConfigurationError: the address cannot be listened on.
        """
        if address is None:
            return
        serve_metrics(address)
        classify_agents(agent_class, self.registry.bound.of)
        measuring = Measuring(
            self.redis, self.registry, self.ledger, self.completions, self.identity, self.lives, followed
        )
        supervisor.start(measuring.run(), name="metrics")

    async def aclose(self) -> None:
        """Close the connections."""
        await self._subscriptions.aclose()
        await self.redis.aclose()
        await self._life_redis.aclose()
        self.identity.close()

    async def _watch_policy(self) -> None:
        """Reload a changed policy file, and record in the audit trail which policy is active."""
        recorded = False
        self._measure_policy()
        while True:
            if not recorded:
                recorded = await self._record_policy()
            await asyncio.sleep(POLICY_SECONDS)
            # A large file takes seconds to parse; calls go on meanwhile.
            if await asyncio.to_thread(self.policies.reload):
                recorded = False
                self._measure_policy()
                self._log_policy()

    async def _record_policy(self) -> bool:
        """Record the active policy; return False if Redis is unavailable, so that it is tried again."""
        digest, place = self.policies.current.digest, f"{self.name} on {platform.node()}"
        code, reason = AuditCode.POLICY_CHANGED, f"{digest[:12]} is active in {place}"
        if self.policies.error:
            code, reason = AuditCode.POLICY_KEPT, f"{digest[:12]} stays active in {place}: {self.policies.error}"
        try:
            await self.trail.append(code, authorized="1", reason=reason, evidence_sha256=digest)
        except (RedisError, OSError):
            return False
        return True

    def _log_policy(self) -> None:
        if self.policies.error:
            log.error("policy.kept", reason=self.policies.error, active=self.policies.current.digest[:12])
        else:
            log.info("policy.changed", digest=self.policies.current.digest[:12])

    def _measure_policy(self) -> None:
        POLICIES.set(len(self.policies.current.policies))
        POLICY_SINCE.set(self.policies.since.timestamp())
        POLICY_ERROR.set(bool(self.policies.error))
