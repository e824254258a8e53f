"""Folds what agents report into the ledger: started notices and signed receipts.

Receipts come as Celery results, over pub/sub; the reaper finds those that pub/sub missed. A receipt counts only when
the agent's own identity signed it, it answers the order that was sent, and its digests fit the output beside it.
"""

from __future__ import annotations

import base64
import json
import time
from typing import Any

import structlog
from pydantic import TypeAdapter, ValidationError

from tachikoma.config.error_reporting import concerns
from tachikoma.errors import RecordAltered
from tachikoma.identity.signed_messages import CLOCK_SKEW_SECONDS, InvalidSignature, Receipt, signer_begins, verify
from tachikoma.identity.spiffe import InvalidIdentity, agent_id
from tachikoma.identity.svid import SvidSource
from tachikoma.redis import keys
from tachikoma.redis.commands import Redis
from tachikoma.streams.heartbeat import Heartbeat, Started
from tachikoma.vocabulary.audit import AuditCode
from tachikoma.vocabulary.states import ExecState
from tachikoma_orchestrator.agents.registry import Registry
from tachikoma_orchestrator.audit.findings import Findings
from tachikoma_orchestrator.executions.evidence import Evidence, Result, fits
from tachikoma_orchestrator.executions.ledger import Ledger
from tachikoma_orchestrator.executions.waiters import Endings
from tachikoma_orchestrator.store.subscriber import Subscriber

__all__ = ["Collector"]

log = structlog.get_logger(__name__)

#: A receipt that is younger is one of a certificate that is valid, or was a moment ago.
FRESH_SECONDS = 2 * CLOCK_SKEW_SECONDS

_Notice: TypeAdapter[Heartbeat | Started] = TypeAdapter(Heartbeat | Started)


class Collector:
    """Listens to all agents."""

    def __init__(
        self,
        redis: Redis,
        ledger: Ledger,
        endings: Endings,
        registry: Registry,
        identity: SvidSource,
        evidence: Evidence,
        findings: Findings,
    ) -> None:
        self._redis = redis
        self._ledger = ledger
        self._endings = endings
        self._registry = registry
        self._identity = identity
        self._evidence = evidence
        self._findings = findings

    def attach(self, subscriber: Subscriber) -> None:
        """Listen through a subscription."""
        subscriber.on_pattern(keys.ALL_RESULTS, self._on_result)
        subscriber.on_pattern(keys.ALL_EVENTS, self._on_notice)
        subscriber.on_pattern(keys.ENDED, self._on_ended)
        subscriber.on_pattern(keys.APPROVED, self._on_approved)
        subscriber.on_gap(self._on_gap)

    async def _on_result(self, channel: str, raw: bytes) -> None:
        try:
            agent, exec_id = keys.execution_of_channel(channel)
        except ValueError:
            # A result of some other Celery task in the same Redis.
            return
        concerns(exec_id)
        await self.fold(agent, exec_id, raw)

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
        else:
            await self._registry.heard(agent, raw)

    async def _on_ended(self, _channel: str, raw: bytes) -> None:
        await self._resolve(raw.decode())

    async def _on_approved(self, _channel: str, raw: bytes) -> None:
        self._endings.approvals.tell(raw.decode(), None)

    async def _on_gap(self) -> None:
        for exec_id in self._endings.approvals.all_awaited():
            record = await self._ledger.record(exec_id)
            if record is None or record.state is not ExecState.PENDING_APPROVAL:
                self._endings.approvals.tell(exec_id, None)
        for exec_id in self._endings.all_awaited():
            record = await self._ledger.record(exec_id)
            if record is None or record.state.terminal:
                await self._resolve(exec_id)
                continue
            raw = await self._redis.get(keys.result(record.agent, exec_id))
            if raw is not None:
                await self.fold(record.agent, exec_id, raw)

    async def _resolve(self, exec_id: str) -> None:
        """Tell the waiters of an execution if the ledger says that it has ended."""
        if not self._endings.awaited(exec_id):
            return
        record = await self._ledger.record(exec_id)
        if record is not None and record.state.terminal:
            try:
                self._endings.resolve(await self._evidence.response(record))
            except RecordAltered as error:
                self._endings.fail(exec_id, error)

    def verify(self, agent: str, exec_id: str, raw: bytes) -> Result | str:
        """The receipt in a Celery result, or why it must not be believed."""
        try:
            meta: Any = json.loads(raw)
            result = meta["result"]
            token, stdout, stderr = (
                result["receipt"],
                base64.b64decode(result["stdout"], validate=True),
                base64.b64decode(result["stderr"], validate=True),
            )
            bundle = self._identity.current().bundle
            # It may have been written while no orchestrator was there to read it.
            receipt = verify(token, Receipt, bundle, agent_id(bundle.trust_domain, agent), kept=True)
            revoked = self._registry.revocations.latest(agent)
            if revoked is not None and (why := revoked.refusal(agent, signer_begins(token))):
                raise InvalidSignature(f"is not believed: {why}")
            if receipt.jti != exec_id:
                raise InvalidSignature(f"is the receipt of {receipt.jti}")
            if not receipt.state.terminal:
                raise InvalidSignature(f"says {receipt.state}, which is no end")
            if not (fits(stdout, receipt.stdout) and fits(stderr, receipt.stderr)):
                raise InvalidSignature("does not fit the output beside it")
        except (InvalidSignature, InvalidIdentity) as error:
            return f"a receipt {error}"
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return "a result that is none"
        return Result(receipt, token, stdout, stderr)

    async def fold(self, agent: str, exec_id: str, raw: bytes) -> bool:
        """Take a Celery result into the ledger, and tell whoever waits.

        Returns:
            Whether the execution has ended now; False when the result must not be believed.
        """
        result = self.verify(agent, exec_id, raw)
        if isinstance(result, str):
            await self._refuse(agent, exec_id, result)
            return False
        if await self._is_of_before(exec_id, result.receipt):
            await self._refuse(agent, exec_id, "a receipt is older than the execution")
            return False
        outcome = await self._ledger.ended(agent, exec_id, result.receipt, result.token)
        if outcome in ("ORDER", "MISSING"):
            await self._refuse(agent, exec_id, "a receipt answers no order that this agent was sent")
            return False
        if outcome == "STATE":
            await self._late(agent, exec_id, result)
        if outcome == "DONE":
            self._endings.resolve(result.response(agent))
        else:
            # Another orchestrator was first, or it had ended otherwise: the ledger says how.
            await self._resolve(exec_id)
        return True

    async def _refuse(self, agent: str, exec_id: str, reason: str) -> None:
        log.warning("receipt.refused", agent=agent, id=exec_id, reason=reason)
        await self._findings.add(AuditCode.RECEIPT_REFUSED, exec_id, f"{reason}, in the name of {agent[:64]}")

    async def _is_of_before(self, exec_id: str, receipt: Receipt) -> bool:
        """Whether a receipt says that it was signed before its execution was asked for.

        Who has the key of a certificate that has ended can still sign, as of a time when it had not: but not for what
        was asked for afterwards. A receipt that comes as it is signed needs no look at the record.
        """
        if receipt.iat >= time.time() - FRESH_SECONDS:
            return False
        record = await self._ledger.record(exec_id)
        return record is not None and receipt.iat < record.admitted_ms / 1000 - CLOCK_SKEW_SECONDS

    async def _late(self, agent: str, exec_id: str, result: Result) -> None:
        """A receipt for what had ended otherwise: the end stands, the receipt goes on the record."""
        record = await self._ledger.record(exec_id)
        if record is None or record.receipt == result.token:
            # Another orchestrator folded the same receipt.
            return
        if record.receipt or not record.state.terminal:
            why = f"a receipt says {result.receipt.state} of it, while the ledger says {record.state}"
            await self._refuse(agent, exec_id, why)
            return
        await self._ledger.late(record, result.receipt, result.token)
