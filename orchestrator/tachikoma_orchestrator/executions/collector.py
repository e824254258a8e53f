"""Records in the ledger what agents report: start notices and signed receipts.

Receipts arrive in Celery results over pub/sub, at the process whose lane the order names; the reaper finds the others.
A receipt is accepted only if the agent's own identity signed it, it answers the order that was sent, and its digests
match the output beside it.
"""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import structlog
from pydantic import TypeAdapter, ValidationError

from tachikoma.config import stages, tracing
from tachikoma.config.error_reporting import concerns
from tachikoma.config.stages import Stage
from tachikoma.errors import RecordAltered
from tachikoma.identity.signed_messages import Receipt
from tachikoma.identity.signing import CLOCK_SKEW_SECONDS, InvalidSignature, signer_begins
from tachikoma.identity.spiffe import InvalidIdentity
from tachikoma.identity.svid import SvidSource
from tachikoma.redis import keys
from tachikoma.redis.commands import Redis
from tachikoma.streams.heartbeat import Contender, Heartbeat, RememberedLife, Started
from tachikoma.vocabulary.audit import AuditCode
from tachikoma.vocabulary.clock import seconds_of_ms
from tachikoma_orchestrator.agents.observations import second_worker
from tachikoma_orchestrator.agents.registry import Registry
from tachikoma_orchestrator.audit.findings import Findings
from tachikoma_orchestrator.executions.evidence import Evidence, is_valid_now, output_of, signed_receipt
from tachikoma_orchestrator.executions.final_state import FinalState, VerifiedReceipt, matches
from tachikoma_orchestrator.executions.ledger import Ledger
from tachikoma_orchestrator.executions.restoration import Restoration
from tachikoma_orchestrator.executions.transitions import TransitionOutcome
from tachikoma_orchestrator.executions.waiters import Completions
from tachikoma_orchestrator.metrics import measure_receipt
from tachikoma_orchestrator.store.subscriber import Subscriber

__all__ = ["Collector"]

log = structlog.get_logger(__name__)

#: A younger receipt was signed with a certificate that is valid, or was valid a moment ago.
FRESH_SECONDS = 2 * CLOCK_SKEW_SECONDS

_Notice: TypeAdapter[Heartbeat | Started | Contender | RememberedLife] = TypeAdapter(
    Heartbeat | Started | Contender | RememberedLife
)


class Collector:
    """Receives the reports of all agents."""

    def __init__(
        self,
        redis: Redis,
        ledger: Ledger,
        completions: Completions,
        registry: Registry,
        identity: SvidSource,
        evidence: Evidence,
        findings: Findings,
    ) -> None:
        self._redis = redis
        self._ledger = ledger
        self._completions = completions
        self._registry = registry
        self._identity = identity
        self._evidence = evidence
        self._findings = findings
        self._restoration: Restoration | None = None

    def restore_with(self, restoration: Restoration) -> None:
        """Set the part that restores an agent's records after the agent has rewritten its reports."""
        self._restoration = restoration

    def attach(self, subscriber: Subscriber, lane: int) -> None:
        """Receive reports through a subscriber: the results of one lane, and all notices."""
        subscriber.on_pattern(keys.reports_to(lane), self._on_result)
        subscriber.on_pattern(keys.ALL_EVENTS, self._on_notice)
        subscriber.on_pattern(keys.ENDED, self._on_ended)
        subscriber.on_pattern(keys.APPROVED, self._on_approved)

    async def _on_result(self, channel: str, raw: bytes) -> None:
        try:
            agent, exec_id = keys.execution_of_channel(channel)
        except ValueError:
            log.warning("report.unreadable", channel=channel[:200])
            return
        concerns(exec_id)
        stages.begin(exec_id)
        with tracing.remembered(exec_id, "result"):
            await self.fold(agent, exec_id, raw)
            stages.passed(Stage.RECORD)

    async def _on_notice(self, channel: str, raw: bytes) -> None:
        agent = keys.agent_of_channel(channel)
        revoked = self._registry.revocations.active(agent)
        if revoked is not None:
            why = f"it was revoked at {revoked.at:%Y-%m-%d %H:%M:%S} UTC and still sends messages"
            await self._findings.add_of_agent(AuditCode.NOTICE_REFUSED, agent, why)
            return
        try:
            notice = _Notice.validate_json(raw)
        except ValidationError as error:
            log.warning("notice.unreadable", agent=agent, error=str(error)[:500])
            return
        if isinstance(notice, Started):
            await self._ledger.started(agent, notice.id, notice.started_ms)
        elif isinstance(notice, Contender):
            self._registry.observations.contended(agent, notice)
            await self._findings.add_of_agent(AuditCode.AGENT_CONTESTED, agent, second_worker(notice))
        elif isinstance(notice, RememberedLife):
            self._registry.learn_life(notice.record)
        else:
            await self._registry.heard(agent, raw)
            if self._restoration is not None:
                await self._restoration.heard(agent, notice.life)

    async def _on_ended(self, _channel: str, raw: bytes) -> None:
        await self.deliver(raw.decode())

    async def _on_approved(self, _channel: str, raw: bytes) -> None:
        self._completions.approvals.resolve(raw.decode(), None)

    async def deliver(self, exec_id: str) -> None:
        """Deliver an execution's final state to its waiting callers, if the ledger has one.

        Raises:
            RecordAltered: the value in Redis is no record.
        """
        if not self._completions.awaited(exec_id):
            return
        record = await self._ledger.record(exec_id)
        if record is not None and record.state.terminal:
            self._completions.deliver(await self._evidence.final_state(record), record.order_sha256)

    def verify(self, agent: str, exec_id: str, raw: bytes) -> VerifiedReceipt | str:
        """Return the verified receipt in a Celery result, or why it is not accepted."""
        try:
            meta: Any = json.loads(raw)
            token = meta["result"]["receipt"]
            stdout, stderr = output_of(meta["result"])
            self._verify(agent, exec_id, verified := VerifiedReceipt(self._signed(agent, token), token, stdout, stderr))
        except (InvalidSignature, InvalidIdentity) as error:
            return f"a receipt {error}"
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return "a result without a receipt"
        return verified

    def _signed(self, agent: str, token: str) -> Receipt:
        """Return the result that the agent signed, possibly while no orchestrator was running."""
        return signed_receipt(self._identity.current().bundle, agent, token)

    def _verify(self, agent: str, exec_id: str, verified: VerifiedReceipt) -> None:
        """Raise InvalidSignature if a signed receipt is not one for this execution and this output."""
        receipt = verified.receipt
        revoked = self._registry.revocations.latest(agent)
        if revoked is not None and (why := revoked.refusal(agent, signer_begins(verified.token, Receipt))):
            raise InvalidSignature(f"is not accepted: {why}")
        if receipt.jti != exec_id:
            raise InvalidSignature(f"is the receipt of {receipt.jti}")
        if not receipt.state.terminal:
            raise InvalidSignature(f"says {receipt.state}, which is no final state")
        if not (matches(verified.stdout, receipt.stdout) and matches(verified.stderr, receipt.stderr)):
            raise InvalidSignature("does not match the output beside it")

    async def fold(self, agent: str, exec_id: str, raw: bytes) -> bool:
        """Verify a Celery result, record it in the ledger, and deliver it to waiting callers.

        A verified receipt answers the callers that wait for its order, also if the ledger lost their record.

        Returns:
            True if the execution has a final state now; False if the result is not accepted.
        """
        verified = self.verify(agent, exec_id, raw)
        stages.passed(Stage.CHECK)
        if isinstance(verified, str):
            await self._refuse(agent, exec_id, verified)
            return False
        answered = any(order.answered_by(agent, verified.receipt) for order in self._completions.orders(exec_id))
        if not answered:
            return await self._record(agent, exec_id, verified, answered=False)
        recording = asyncio.ensure_future(self._record(agent, exec_id, verified, answered=True))
        # The answer does not wait for the reply of Redis, since it rests on the receipt. A caller's next question does.
        self._completions.note_recording(exec_id, recording)
        await asyncio.sleep(0)
        self._completions.answer(agent, verified)
        return await recording

    async def _record(self, agent: str, exec_id: str, verified: VerifiedReceipt, *, answered: bool) -> bool:
        """Record a verified receipt in the ledger; `answered` is True if callers wait for its order. As `fold`."""
        receipt = verified.receipt
        if not answered and await self._is_older(agent, exec_id, verified):
            await self._refuse(agent, exec_id, "a receipt is older than the execution")
            return False
        outcome = await self._ledger.complete(agent, exec_id, receipt, verified.token)
        unknown = (TransitionOutcome.ORDER, TransitionOutcome.MISSING)
        if outcome in unknown and await self._restored(agent, exec_id):
            outcome = await self._ledger.complete(agent, exec_id, receipt, verified.token)
        if outcome in unknown:
            if answered:
                why = f"the ledger lost its record; its agent reports {receipt.state}"
                await self._findings.add_lost(exec_id, agent, why)
            else:
                await self._refuse(agent, exec_id, "a receipt answers no order that this agent was sent")
            return False
        if outcome is TransitionOutcome.DONE:
            measure_receipt(receipt)
            self._completions.deliver(FinalState.with_receipt(agent, verified), receipt.order_sha256)
            return True
        # Another orchestrator recorded it first, or the execution ended without it: the ledger has the final state.
        await self._audit_late(agent, exec_id, verified)
        await self.deliver(exec_id)
        return True

    async def _restored(self, agent: str, exec_id: str) -> bool:
        return self._restoration is not None and await self._restoration.restore(agent, exec_id)

    async def _refuse(self, agent: str, exec_id: str, reason: str) -> None:
        log.warning("receipt.refused", agent=agent, id=exec_id, reason=reason)
        await self._findings.add(AuditCode.RECEIPT_REFUSED, exec_id, f"{reason}, in the name of {agent[:64]}")

    async def _is_older(self, agent: str, exec_id: str, verified: VerifiedReceipt) -> bool:
        """Return True if a receipt was signed before its execution was requested.

        The holder of an expired certificate's key can still sign as of a time when it was valid, but not for an
        execution that was requested later. A receipt that was signed just now needs no look at the record. With a
        certificate that is valid now, an older time only means that the agent's clock is slow.
        """
        receipt = verified.receipt
        if receipt.iat >= time.time() - FRESH_SECONDS:
            return False
        try:
            record = await self._ledger.record(exec_id)
        except RecordAltered:
            return False
        if record is None or receipt.iat + CLOCK_SKEW_SECONDS >= seconds_of_ms(record.admitted_ms):
            return False
        return not is_valid_now(self._identity.current().bundle, agent, verified.token)

    async def _audit_late(self, agent: str, exec_id: str, verified: VerifiedReceipt) -> None:
        """Audit a receipt for an execution that had ended without it; the final state stays."""
        record = await self._ledger.record(exec_id)
        if record is None or record.receipt == verified.token:
            # Another orchestrator recorded the same receipt.
            return
        if record.receipt or not record.state.terminal:
            why = f"a receipt says {verified.receipt.state}, while the ledger says {record.state}"
            await self._refuse(agent, exec_id, why)
            return
        await self._ledger.audit_late(record, verified.receipt, verified.token)
