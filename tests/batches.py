"""Batches on a real Redis, without processes around them: agents that are heard of, and end what they are sent."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path
from typing import Any

from admissions import DOMAIN, ORCHESTRATOR, Stand, peer
from tachikoma.dev.ca import DevelopmentCA
from tachikoma.identity.file_source import FileSvidSource
from tachikoma.identity.signed_messages import OutputDigest, Receipt, WorkOrder
from tachikoma.identity.signing import sign, verify
from tachikoma.identity.spiffe import agent_id
from tachikoma.identity.svid import Svid
from tachikoma.redis import keys
from tachikoma.redis.commands import Redis
from tachikoma.vocabulary.batches import BatchRequest, BatchResult, BatchStatus
from tachikoma.vocabulary.labels import LabelChange
from tachikoma.vocabulary.policies import RateLimitConfig
from tachikoma.vocabulary.results import KillReceipt
from tachikoma.vocabulary.states import ExecState
from tachikoma_orchestrator.audit.findings import Findings
from tachikoma_orchestrator.batches.room import Batches
from tachikoma_orchestrator.executions.evidence import Evidence
from tachikoma_orchestrator.executions.transitions import TransitionOutcome
from tachikoma_orchestrator.store.subscriber import Subscriber

__all__ = ["BatchStand"]

EMPTY = OutputDigest(total_bytes=0, sha256="0" * 64, truncated=False, excerpt_sha256="0" * 64)


class BatchStand:
    """An orchestrator's batches, with agents that are online."""

    def __init__(self, stand: Stand, drivers: int) -> None:
        self.stand = stand
        self.redis = stand.redis
        evidence = Evidence(stand.redis, Findings(stand.redis, stand.trail), stand.identity, stand.registry.revocations)
        self.subscribers = [Subscriber(stand.redis) for _ in range(drivers)]
        self.rooms = [
            Batches.over(
                stand.redis, stand.ledger, stand.admitter, stand.registry, stand.identity, evidence,
                subscriber, retention=timedelta(hours=1),
            )
            for subscriber in self.subscribers
        ]  # fmt: skip
        self.store = self.rooms[0].store
        #: How often each agent was sent an order.
        self.sent: dict[str, int] = {}

    @classmethod
    async def make(
        cls, redis: Redis, folder: Path, agents: int, *, drivers: int = 1, rate_limit: RateLimitConfig | None = None
    ) -> BatchStand:
        """Make one with the agents web-1, web-2, …"""
        stand = await Stand.make(redis, folder, rate_limit=rate_limit)
        for number in range(1, agents + 1):
            await stand.heard(f"web-{number}")
        return cls(stand, drivers)

    async def bind(self, *agents: str, **labels: str) -> None:
        """Bind labels to agents, as an operator does."""
        for agent in agents:
            await self.stand.registry.bound.change(agent, LabelChange(labels, ()), peer())

    async def submit(self, **values: Any) -> str:
        """Submit a batch and return its id."""
        request = BatchRequest(**{"targets": ("web-*",), "command": ("true",), **values})
        return (await self.rooms[0].submission.submit(request, peer())).id

    async def step(self, batch_id: str, driver: int = 0) -> None:
        """Let a driver take one step with a batch, whichever holds the lease."""
        await self.rooms[driver].driver.drive(batch_id)

    async def step_at_once(self, batch_ids: Iterable[str]) -> None:
        """Let all drivers take a step with all of some batches, at once."""
        await asyncio.gather(
            *(self.step(batch_id, driver) for batch_id in batch_ids for driver in range(len(self.rooms)))
        )

    async def status(self, batch_id: str) -> BatchStatus:
        """The status of a batch."""
        status = await self.store.status(batch_id)
        assert status is not None
        return status

    async def results(self, batch_id: str) -> dict[str, BatchResult]:
        """The ended targets of a batch."""
        return await self.store.results(batch_id)

    async def running(self, batch_id: str) -> list[str]:
        """The agents whose execution has not ended."""
        return sorted((await self.store.not_ended(batch_id))[1])

    async def take(self, agent: str) -> WorkOrder | None:
        """Take an order from an agent's queue; None if there is none."""
        message: bytes | None = await self.redis.execute_command("RPOP", keys.queue(agent))
        if message is None:
            return None
        self.sent[agent] = self.sent.get(agent, 0) + 1
        token = json.loads(json.loads(message)["body"])[0][0]
        return verify(token, WorkOrder, self.stand.identity.current().bundle, ORCHESTRATOR)

    async def end(
        self, agent: str, state: ExecState = ExecState.SUCCEEDED, *,
        exit_code: int = 0, sha256: str = "0" * 64, signed: bool = False,
    ) -> WorkOrder:  # fmt: skip
        """Let an agent take its order and end it, recorded as its receipt would be; `signed` if that is verified."""
        order = await self.take(agent)
        assert order is not None, f"{agent} was sent nothing"
        record = await self.stand.ledger.record(order.jti)
        assert record is not None
        killed = KillReceipt(empty=True, whole=True) if state is ExecState.TIMED_OUT else None
        receipt = Receipt(
            iss=str(agent_id(DOMAIN, agent)), iat=int(time.time()),
            jti=order.jti, order_sha256=record.order_sha256, state=state, exit_code=exit_code,
            signal=0, error="", executable="/usr/bin/true", started_ms=1, ended_ms=2, duration_us=1000, chunks=0,
            stdout=EMPTY.model_copy(update={"sha256": sha256}), stderr=EMPTY, kill=killed,
        )  # fmt: skip
        token = sign(self._identity(agent), receipt) if signed else "the receipt"
        outcome = await self.stand.ledger.complete(agent, order.jti, receipt, token)
        assert outcome is TransitionOutcome.DONE
        return order

    async def receipts(self, *exec_ids: str) -> str:
        """The digest over the receipts of executions, as their own events have them."""
        digests = [(await self.stand.events(exec_id))[-1].evidence_sha256 for exec_id in exec_ids]
        assert all(digests)
        return hashlib.sha256("".join(f"{digest}\n" for digest in digests).encode()).hexdigest()

    def _identity(self, agent: str) -> Svid:
        """The identity of an agent, by the authority of the stand."""
        folder = self.stand.file.parent
        if not (folder / agent).exists():
            DevelopmentCA(folder / "ca", DOMAIN).issue(agent_id(DOMAIN, agent), folder / agent)
        return FileSvidSource(folder / agent).current()
