"""Verification of records: the ledger is compared with what was signed, because an attacker may own Redis.

An execution ended as its agent's receipt says. The receipt is stored in the record and verified each time a caller asks
for that execution. If there is a receipt, the other fields of the record are not trusted. Without a receipt, the ledger
is trusted only for final states that need none: expired, lost, cancelled before the start, or rejected by an approver.
`docs/decisions/0015` describes what an attacker that owns Redis can still do.
"""

from __future__ import annotations

import base64
import json
from typing import Any

import structlog
from redis.exceptions import ResponseError

from tachikoma.errors import RecordAltered
from tachikoma.identity.bundles import TrustBundle
from tachikoma.identity.signed_messages import Receipt
from tachikoma.identity.signing import InvalidSignature, signer_begins, verify
from tachikoma.identity.spiffe import InvalidIdentity, agent_id
from tachikoma.identity.svid import SvidSource
from tachikoma.redis import keys
from tachikoma.redis.access import wrong_type
from tachikoma.redis.commands import Redis
from tachikoma.vocabulary.audit import AuditCode
from tachikoma.vocabulary.clock import ms_of_seconds, optional_from_ms
from tachikoma.vocabulary.results import ExecStatus
from tachikoma.vocabulary.states import ExecState
from tachikoma_orchestrator.agents.revocations import Revocations
from tachikoma_orchestrator.audit.findings import Findings
from tachikoma_orchestrator.executions.final_state import FinalState, VerifiedReceipt, matches
from tachikoma_orchestrator.executions.record import Record, record_altered
from tachikoma_orchestrator.executions.transitions import receipt_fields

__all__ = ["Evidence", "is_valid_now", "not_a_record", "output_of", "signed_receipt"]

log = structlog.get_logger(__name__)


class Evidence:
    """The verified view of an execution."""

    def __init__(self, redis: Redis, findings: Findings, identity: SvidSource, revocations: Revocations) -> None:
        self._redis = redis
        self._findings = findings
        self._identity = identity
        self._revocations = revocations

    async def status(self, record: Record) -> ExecStatus:
        """Return the record for callers; its final state, if there is a receipt, as it was signed.

        Raises:
            RecordAltered: the record contains a final state that its agent did not sign.
        """
        receipt = await self._receipt(record)
        status = record.status()
        if receipt is None:
            return status.model_copy(update={"exit_code": -1})
        agrees = status.history and status.history[-1].state is receipt.state
        return status.model_copy(
            update={
                "state": receipt.state,
                "start_time": optional_from_ms(receipt.started_ms),
                "end_time": optional_from_ms(receipt.ended_ms),
                "exit_code": receipt.exit_code,
                "error": receipt.error,
                "history": status.history if agrees else (),
            }
        )

    async def final_state(self, record: Record) -> FinalState:
        """Return the final state of a completed execution, in every case in a form that can be delivered.

        The output is included while Redis has the agent's result, and its digest matches the signed one.
        """
        try:
            receipt = await self._receipt(record)
        except RecordAltered as error:
            return FinalState(record.exec_id, error)
        if receipt is None:
            return FinalState.without_receipt(record)
        stdout, stderr = await self._output(record, receipt)
        return FinalState.with_receipt(record.agent, VerifiedReceipt(receipt, record.receipt, stdout, stderr))

    async def altered(self, exec_id: str, reason: str) -> RecordAltered:
        """Audit that an execution's record cannot be trusted, and return the error for callers."""
        log.error("record.altered", id=exec_id, reason=reason)
        await self._findings.add(AuditCode.RECORD_ALTERED, exec_id, reason)
        return record_altered(exec_id, reason)

    async def _receipt(self, record: Record) -> Receipt | None:
        """Return the verified receipt of a record; None if its state needs no receipt.

        Raises:
            RecordAltered: the receipt is missing or not accepted.
        """
        if not record.receipt:
            if why := _needs_receipt(record):
                raise await self.altered(record.exec_id, why)
            return None
        try:
            receipt = self._verify(record)
        except (InvalidSignature, InvalidIdentity) as error:
            why = f"the ledger says {record.state}, but the receipt stored there {error}"
            raise await self.altered(record.exec_id, why) from None
        await self._compare(record, receipt)
        return receipt

    def _verify(self, record: Record) -> Receipt:
        """Verify the receipt of a record against its agent, its order and the agent's revocation.

        Raises:
            InvalidSignature, InvalidIdentity: the receipt is not accepted.
        """
        bundle = self._identity.current().bundle
        receipt = signed_receipt(bundle, record.agent, record.receipt)
        if receipt.jti != record.exec_id:
            raise InvalidSignature(f"is the receipt of {receipt.jti}")
        if receipt.order_sha256 not in ("", record.order_sha256):
            raise InvalidSignature("answers another order")
        if not receipt.state.terminal:
            raise InvalidSignature(f"says {receipt.state}, which is no final state")
        # A receipt signed before the revocation was recorded then, and stays valid.
        revoked = self._revocations.latest(record.agent)
        if revoked is not None and ms_of_seconds(receipt.iat) > revoked.at_ms:
            why = revoked.refusal(record.agent, signer_begins(record.receipt, Receipt))
            if why:
                raise InvalidSignature(f"is not accepted: {why}")
        return receipt

    async def _compare(self, record: Record, receipt: Receipt) -> None:
        """Audit the fields of a record that differ from its receipt. Callers still get what was signed."""
        signed = receipt_fields(receipt, record.receipt)
        wrong = [name for name, value in signed.items() if record.reported.get(name) != value]
        if record.state is not receipt.state:
            wrong.append("state")
        if wrong:
            why = f"the ledger's {', '.join(wrong)} differ from what the agent signed; callers get what was signed"
            await self._findings.add(AuditCode.RECORD_ALTERED, record.exec_id, why)
            log.error("record.altered", id=record.exec_id, agent=record.agent, fields=wrong)

    async def _output(self, record: Record, receipt: Receipt) -> tuple[bytes, bytes]:
        """Return the output in the agent's result; empty if the result is gone or not what was signed."""
        try:
            raw = await self._redis.get(keys.result(record.agent, record.exec_id))
            if raw is None:
                return b"", b""
            stdout, stderr = output_of(json.loads(raw)["result"])
            if matches(stdout, receipt.stdout) and matches(stderr, receipt.stderr):
                return stdout, stderr
        except ResponseError as error:
            # A value of another type stays for long: the callers of this execution would never be answered.
            if not wrong_type(error):
                raise
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            pass
        why = "the stored result contains another output than the agent signed; callers do not get it"
        log.error("result.altered", id=record.exec_id, agent=record.agent)
        await self._findings.add(AuditCode.OUTPUT_ALTERED, record.exec_id, why)
        return b"", b""


def not_a_record(exec_id: str, error: ResponseError) -> Exception:
    """Return the error for a key of another type, or the error of a Redis that cannot answer now."""
    text = f"its record in the ledger cannot be read: {error}"
    return record_altered(exec_id, text) if wrong_type(error) else error


def signed_receipt(bundle: TrustBundle, agent: str, token: str) -> Receipt:
    """Return the result that an agent signed, with a certificate that was valid at the signature or is valid now.

    An agent's clock may be wrong, so a time in the future, or before its certificate, is no reason to refuse a receipt.

    Raises:
        InvalidSignature: the agent did not sign it.
    """
    issuer = agent_id(bundle.trust_domain, agent)
    try:
        return verify(token, Receipt, bundle, issuer, kept=True, timely=False)
    except InvalidSignature as error:
        try:
            return verify(token, Receipt, bundle, issuer, timely=False)
        except InvalidSignature:
            raise error from None


def is_valid_now(bundle: TrustBundle, agent: str, token: str) -> bool:
    """Return whether an agent signed a receipt with a certificate that is valid now."""
    try:
        verify(token, Receipt, bundle, agent_id(bundle.trust_domain, agent), timely=False)
    except InvalidSignature:
        return False
    return True


def output_of(result: Any) -> tuple[bytes, bytes]:
    """Return the output excerpts in a Celery result: standard output and standard error.

    Raises:
        ValueError, TypeError, KeyError: the bytes are not the result of an agent.
    """
    return base64.b64decode(result["stdout"], validate=True), base64.b64decode(result["stderr"], validate=True)


def _needs_receipt(record: Record) -> str:
    """Return why a record without a receipt cannot be trusted; empty if it can."""
    state, states = record.state, record.states
    if not state.terminal or state in (ExecState.EXPIRED, ExecState.LOST):
        return ""
    never_started = state is ExecState.CANCELLED and ExecState.STARTED not in states
    never_queued = state is ExecState.REJECTED and states[0] is ExecState.PENDING_APPROVAL and len(states) == 2
    if never_started or never_queued:
        return ""
    return f"the ledger says {state}, and has no receipt of its agent for that"
