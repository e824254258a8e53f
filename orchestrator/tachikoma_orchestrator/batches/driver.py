"""The driver of batches: starts targets as the limits allow, releases waves, and ends batches whose deadline passed.

Every orchestrator runs one. All state is in Redis, and each decision is one script that checks the state again. So two
drivers of one batch do no harm, and a killed driver leaves nothing to repair. A short lease only avoids double work.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from contextlib import suppress

import structlog
from redis.exceptions import RedisError, ResponseError

from tachikoma.config import tracing
from tachikoma.errors import TachikomaError
from tachikoma.identity.signed_batches import ApprovedBatch
from tachikoma.identity.svid import SvidSource
from tachikoma.redis import keys
from tachikoma.redis.access import wrong_type
from tachikoma.vocabulary.audit import AuditCode
from tachikoma.vocabulary.batches import BatchState, TargetState
from tachikoma.vocabulary.clock import duration_ms
from tachikoma_orchestrator.audit.trail import AuditTrail
from tachikoma_orchestrator.batches.frozen import Frozen
from tachikoma_orchestrator.batches.gates import GateFinding, GateState, HealthGates
from tachikoma_orchestrator.batches.grounds import Grounds
from tachikoma_orchestrator.batches.starter import CHUNK, Starter
from tachikoma_orchestrator.batches.store import BatchProgress, BatchStore
from tachikoma_orchestrator.batches.verified import VerifiedBatches
from tachikoma_orchestrator.store.subscriber import Subscriber

__all__ = ["BatchDriver"]

log = structlog.get_logger(__name__)

#: Longest time between two looks at the open batches, in seconds; a change is noticed at once.
INTERVAL_SECONDS = 1.0
#: Lease of a driver over a batch, in seconds.
LEASE_SECONDS = 3


class BatchDriver:
    """Drives the open batches."""

    def __init__(
        self, store: BatchStore, starter: Starter, gates: HealthGates, trail: AuditTrail, identity: SvidSource
    ) -> None:
        self._store = store
        self._gates = gates
        self._starter = starter
        self._trail = trail
        self._name = f"{os.getpid()}-{secrets.token_hex(8)}"
        self._changed = asyncio.Event()
        self._verified = VerifiedBatches(store, identity)

    def attach(self, subscriber: Subscriber) -> None:
        """Notice changes of batches by a subscription. Use it before the subscriber runs."""
        subscriber.on_pattern(keys.BATCHES_CHANGED, self._on_change)

    async def _on_change(self, _: str, message: bytes) -> None:
        self._changed.set()

    async def run(self) -> None:
        """Drive the open batches until cancelled."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(INTERVAL_SECONDS):
                    await self._changed.wait()
            self._changed.clear()
            try:
                await self.drive_all()
            except (RedisError, OSError) as error:
                log.warning("batches.redis_unavailable", error=str(error))
                await asyncio.sleep(INTERVAL_SECONDS)

    async def drive_all(self) -> None:
        """Take one step with each open batch that no other orchestrator drives. Raises redis errors."""
        for batch_id in await self._store.open_batches():
            try:
                if await self._store.lead(batch_id, self._name, lease_seconds=LEASE_SECONDS):
                    await self.drive(batch_id)
            except TachikomaError as error:
                # For instance a full audit backlog: the batch waits, others go on.
                log.warning("batch.waits", batch=batch_id, reason=str(error))
            except ResponseError as error:
                if not wrong_type(error):
                    raise
                # A value that an attacker replaced holds back its own batch only.
                log.error("batch.unreadable", batch=batch_id, reason=str(error)[:300])
            except ValueError as error:
                log.error("batch.unreadable", batch=batch_id, reason=str(error)[:300])

    async def drive(self, batch_id: str) -> None:
        """Take one step with a batch: end it, start targets, or release its next wave.

        Raises:
            Unavailable: requests cannot be recorded now.
        """
        progress = await self._store.progress(batch_id)
        if progress is not None and progress.state is BatchState.PENDING_APPROVAL:
            await self._await_approval(batch_id, progress)
            return
        if progress is None or progress.state is not BatchState.RUNNING:
            return
        frozen = await self._verified.batch(batch_id)
        approval = await self._verified.approval(frozen) if frozen is not None and frozen.needs else None
        if frozen is None or (frozen.needs and approval is None):
            reason = f"its signed {'request' if frozen is None else 'approval'} cannot be verified"
            await self._store.halt(batch_id, BatchState.STOPPED, AuditCode.BATCH_STOPPED, reason)
            return
        if progress.now_ms >= progress.deadline_ms:
            await self._store.halt(batch_id, BatchState.EXPIRED, AuditCode.BATCH_EXPIRED, "its deadline passed")
            return
        if progress.waiting:
            await self._start(frozen, progress, approval)
        elif not progress.running:
            await self._next_wave(frozen, progress, approval)

    async def _await_approval(self, batch_id: str, progress: BatchProgress) -> None:
        """End a batch that was not approved in time."""
        if progress.now_ms >= progress.deadline_ms:
            await self._store.halt(
                batch_id, BatchState.EXPIRED, AuditCode.BATCH_EXPIRED, "it was not approved in time", waiting=True
            )

    async def _start(self, frozen: Frozen, progress: BatchProgress, approval: ApprovedBatch | None) -> None:
        room = min(progress.parallel - progress.running, CHUNK)
        agents = await self._starter.ready(frozen, progress.released, room) if room > 0 else []
        if not agents:
            return
        self._trail.check()
        with tracing.span("batch", {"tachikoma.batch.id": frozen.id}):
            changed = await self._starter.start(frozen, agents, approval)
        if changed and len(agents) == room:
            # More may be ready.
            self._changed.set()

    async def _next_wave(self, frozen: Frozen, progress: BatchProgress, approval: ApprovedBatch | None) -> None:
        """Release the next wave, when the last one has ended: after the canary only if all of it succeeded."""
        released, total = progress.released, len(frozen.targets)
        if released >= total:
            return
        if released and released == frozen.request.canary and not await self._canary_succeeded(frozen):
            return
        pause_ms = duration_ms(frozen.request.pause) if released else 0
        if pause_ms and not progress.paused_ms:
            await self._store.release(frozen.id, released, released, "")
            return
        if progress.now_ms < progress.paused_ms + pause_ms:
            return
        following = frozen.wave_end(released)
        gate = GateFinding(GateState.PASSED)
        if frozen.request.gate is not None:
            self._trail.check()
            gate = await self._gates.check(frozen, released, approval)
            if gate.state is GateState.OPEN:
                return
        reason = f"targets {released + 1} to {following} of {total}"
        last = frozen.last_wave(released)
        grounds = Grounds.of(await self._store.ends(frozen.id, last), gate.evidence)
        if last:
            reason = f"{reason}, after {grounds.text}"
        if gate.reason:
            reason = f"{gate.reason}, before {reason}"
        if gate.state is GateState.FAILED:
            await self._stop(frozen, reason, grounds.evidence)
        elif await self._store.release(frozen.id, released, following, reason, evidence=grounds.evidence):
            self._changed.set()

    async def _canary_succeeded(self, frozen: Frozen) -> bool:
        """Return True if the command succeeded on every target of the canary; else stop the batch."""
        canary = frozen.request.canary
        ended = await self._store.ends(frozen.id, frozen.targets[:canary])
        # A target whose entry cannot be read is not known to have succeeded.
        others = canary - sum(target.state is TargetState.SUCCEEDED for target in ended)
        if others:
            grounds = Grounds.of(ended)
            reason = f"{others} of the first {canary} targets did not succeed: {grounds.text}"
            await self._stop(frozen, reason, grounds.evidence)
        return not others

    async def _stop(self, frozen: Frozen, reason: str, evidence: str = "") -> None:
        await self._store.halt(frozen.id, BatchState.STOPPED, AuditCode.BATCH_STOPPED, reason, evidence=evidence)
