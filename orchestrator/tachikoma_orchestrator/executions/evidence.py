"""What the ledger says, held against what was signed: whoever owns Redis can write anything into it.

How an execution ended is what its agent's receipt says, which stands in the record and is verified each time somebody
asks for that one execution. Beside a receipt the fields of the record count for nothing. Without one the ledger is
believed only in ends that can have none: that it expired, was lost, was cancelled before it started, or was rejected by
an approver. `docs/decisions/0015` says what that leaves to whoever owns Redis.
"""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import structlog

from tachikoma.errors import RecordAltered
from tachikoma.identity.signed_messages import InvalidSignature, OutputDigest, Receipt, signer_begins, verify
from tachikoma.identity.spiffe import InvalidIdentity, agent_id
from tachikoma.identity.svid import SvidSource
from tachikoma.redis import keys
from tachikoma.redis.commands import Redis
from tachikoma.vocabulary.audit import AuditCode
from tachikoma.vocabulary.clock import optional_from_ms
from tachikoma.vocabulary.results import ExecResponse, ExecStatus, OutputSummary
from tachikoma.vocabulary.states import ExecState
from tachikoma_orchestrator.agents.revocations import Revocations
from tachikoma_orchestrator.audit.findings import Findings
from tachikoma_orchestrator.executions.ledger import Record, receipt_fields

__all__ = ["Evidence", "Result", "fits"]

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Result:
    """A verified receipt with the output excerpts it vouches for."""

    receipt: Receipt
    token: str
    stdout: bytes
    stderr: bytes

    def response(self, agent: str) -> ExecResponse:
        """What callers are told."""
        receipt = self.receipt

        def summary(digest: OutputDigest, held: bytes) -> OutputSummary:
            truncated = digest.truncated or len(held) < digest.total_bytes
            return OutputSummary(total_bytes=digest.total_bytes, sha256=digest.sha256, truncated=truncated)

        return ExecResponse(
            id=receipt.jti,
            agent_id=agent,
            state=receipt.state,
            exit_code=receipt.exit_code,
            signal=receipt.signal,
            stdout=self.stdout,
            stderr=self.stderr,
            stdout_summary=summary(receipt.stdout, self.stdout),
            stderr_summary=summary(receipt.stderr, self.stderr),
            start_time=optional_from_ms(receipt.started_ms),
            end_time=optional_from_ms(receipt.ended_ms),
            duration=timedelta(microseconds=receipt.duration_us),
            error=receipt.error,
            cancelled=receipt.state is ExecState.CANCELLED,
            usage=receipt.usage,
            kill=receipt.kill,
        )


def fits(excerpt: bytes, digest: OutputDigest) -> bool:
    """Whether an excerpt is the one that was signed."""
    return hashlib.sha256(excerpt).hexdigest() == digest.excerpt_sha256 and (
        digest.truncated or (len(excerpt) == digest.total_bytes and digest.sha256 == digest.excerpt_sha256)
    )


class Evidence:
    """Tells of executions what can be believed."""

    def __init__(self, redis: Redis, findings: Findings, identity: SvidSource, revocations: Revocations) -> None:
        self._redis = redis
        self._findings = findings
        self._identity = identity
        self._revocations = revocations

    async def status(self, record: Record) -> ExecStatus:
        """The record for callers; its end, where it has one, as it was signed.

        Raises:
            RecordAltered: it says what nobody signed.
        """
        receipt = await self._receipt(record)
        status = record.status()
        if receipt is None:
            return status.model_copy(update={"exit_code": -1})
        told = status.history and status.history[-1].state is receipt.state
        return status.model_copy(
            update={
                "state": receipt.state,
                "start_time": optional_from_ms(receipt.started_ms),
                "end_time": optional_from_ms(receipt.ended_ms),
                "exit_code": receipt.exit_code,
                "error": receipt.error,
                "history": status.history if told else (),
            }
        )

    async def response(self, record: Record) -> ExecResponse:
        """How an ended execution ended, with its output while the agent's result is kept and is what was signed.

        Raises:
            RecordAltered: as for `status`.
        """
        receipt = await self._receipt(record)
        if receipt is None:
            return record.response()
        stdout, stderr = await self._output(record, receipt)
        return Result(receipt, "", stdout, stderr).response(record.agent)

    async def _receipt(self, record: Record) -> Receipt | None:
        """The receipt in a record; None where the ledger's own word is enough."""
        token = record.receipt
        if not token:
            if why := _unsigned(record):
                raise await self.altered(record.exec_id, why)
            return None
        bundle = self._identity.current().bundle
        try:
            receipt = verify(token, Receipt, bundle, agent_id(bundle.trust_domain, record.agent), kept=True)
            if receipt.jti != record.exec_id:
                raise InvalidSignature(f"is the receipt of {receipt.jti}")
            if receipt.order_sha256 not in ("", record.order_sha256):
                raise InvalidSignature("answers another order")
            if not receipt.state.terminal:
                raise InvalidSignature(f"says {receipt.state}, which is no end")
            # What was signed and folded before stands.
            revoked = self._revocations.latest(record.agent)
            later = revoked is not None and receipt.iat * 1000 > revoked.at_ms
            if revoked is not None and later and (why := revoked.refusal(record.agent, signer_begins(token))):
                raise InvalidSignature(f"is not believed: {why}")
        except (InvalidSignature, InvalidIdentity) as error:
            why = f"the ledger says {record.state} of it, but the receipt kept for that {error}"
            raise await self.altered(record.exec_id, why) from None
        # What was signed is known, so it can be told; but somebody wrote into the ledger.
        signed = receipt_fields(receipt, token)
        wrong = [name for name, value in signed.items() if record.fields.get(name.encode()) != value.encode()]
        if record.state is not receipt.state:
            wrong.append("state")
        if wrong:
            why = f"the ledger's {', '.join(wrong)} is not what its agent signed, which is told instead"
            await self._findings.add(AuditCode.RECORD_ALTERED, record.exec_id, why)
            log.error("record.altered", id=record.exec_id, agent=record.agent, fields=wrong)
        return receipt

    async def altered(self, exec_id: str, why: str) -> RecordAltered:
        """The error for callers, of what is on the record now."""
        log.error("record.altered", id=exec_id, reason=why)
        await self._findings.add(AuditCode.RECORD_ALTERED, exec_id, why)
        return RecordAltered(f"what became of {exec_id} cannot be told: {why}", metadata={"id": exec_id})

    async def _output(self, record: Record, receipt: Receipt) -> tuple[bytes, bytes]:
        raw = await self._redis.get(keys.result(record.agent, record.exec_id))
        if raw is None:
            return b"", b""
        try:
            result: Any = json.loads(raw)["result"]
            stdout = base64.b64decode(result["stdout"], validate=True)
            stderr = base64.b64decode(result["stderr"], validate=True)
            if fits(stdout, receipt.stdout) and fits(stderr, receipt.stderr):
                return stdout, stderr
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            pass
        why = "the result kept for it holds another output than its agent signed, which is not told"
        log.error("result.altered", id=record.exec_id, agent=record.agent)
        await self._findings.add(AuditCode.OUTPUT_ALTERED, record.exec_id, why)
        return b"", b""


def _unsigned(record: Record) -> str:
    """Why a record without a receipt cannot be believed; nothing where it can."""
    state, passed = record.state, record.passed
    if not state.terminal or state in (ExecState.EXPIRED, ExecState.LOST):
        return ""
    never_started = state is ExecState.CANCELLED and ExecState.STARTED not in passed
    never_queued = state is ExecState.REJECTED and passed[0] is ExecState.PENDING_APPROVAL and len(passed) == 2
    if never_started or never_queued:
        return ""
    return f"the ledger says {state} of it, and has no receipt of its agent for that"
