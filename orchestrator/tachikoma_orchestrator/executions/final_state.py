"""The final state of an execution, as it is delivered to waiting callers.

Receipts, expiry, loss, cancellation, rejection and a record that cannot be trusted all become one `FinalState`. It can
be made for every record in a final state, so no waiting caller is left without an answer.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import timedelta

from pydantic import ValidationError

from tachikoma.errors import RecordAltered, ResultUnknown, Unavailable
from tachikoma.identity.signed_messages import OutputDigest, Receipt
from tachikoma.vocabulary.clock import optional_from_ms
from tachikoma.vocabulary.model import describe_validation_error
from tachikoma.vocabulary.results import ExecResponse, OutputSummary
from tachikoma.vocabulary.states import ExecState
from tachikoma_orchestrator.executions.record import Record, record_altered

__all__ = ["FinalState", "VerifiedReceipt", "matches"]


@dataclass(frozen=True, slots=True)
class VerifiedReceipt:
    """A receipt whose signature was verified, with the output excerpts that it confirms."""

    receipt: Receipt
    #: The signed text.
    token: str
    stdout: bytes
    stderr: bytes


@dataclass(frozen=True, slots=True)
class FinalState:
    """The final state of an execution: the response for its callers, or the reason why no response can be trusted."""

    exec_id: str
    answer: ExecResponse | RecordAltered | ResultUnknown | Unavailable

    @classmethod
    def with_receipt(cls, agent: str, verified: VerifiedReceipt) -> FinalState:
        """Return the final state that the agent signed."""
        receipt = verified.receipt
        return cls(
            receipt.jti,
            ExecResponse(
                id=receipt.jti,
                agent_id=agent,
                state=receipt.state,
                exit_code=receipt.exit_code,
                signal=receipt.signal,
                stdout=verified.stdout,
                stderr=verified.stderr,
                stdout_summary=_summary(receipt.stdout, verified.stdout),
                stderr_summary=_summary(receipt.stderr, verified.stderr),
                start_time=optional_from_ms(receipt.started_ms),
                end_time=optional_from_ms(receipt.ended_ms),
                duration=timedelta(microseconds=receipt.duration_us),
                error=receipt.error,
                cancelled=receipt.state is ExecState.CANCELLED,
                usage=receipt.usage,
                kill=receipt.kill,
                isolation=receipt.isolation,
                receipt=verified.token,
            ),
        )

    @classmethod
    def without_receipt(cls, record: Record) -> FinalState:
        """Return the final state of an execution that only the ledger ended, with its reason.

        It expired, was lost, or was cancelled or rejected before it started. Exit code and output are unknown.
        """
        try:
            result = record.result()
            response = ExecResponse(
                id=record.exec_id,
                agent_id=record.agent,
                state=record.state,
                exit_code=-1,
                start_time=result.start_time,
                end_time=result.settle_time,
                error=record.error,
                cancelled=record.state is ExecState.CANCELLED,
            )
        except RecordAltered as error:
            return cls(record.exec_id, error)
        except ValidationError as error:
            return cls(record.exec_id, record_altered(record.exec_id, describe_validation_error(error)))
        return cls(record.exec_id, response)

    def response(self) -> ExecResponse:
        """Return the response for a caller.

        Raises:
            RecordAltered: the record cannot be trusted, so the final state is unknown.
            ResultUnknown: the record is gone, so the final state is unknown.
            Unavailable: the agent has not reported since a new life of Redis began.
        """
        if isinstance(self.answer, (RecordAltered, ResultUnknown, Unavailable)):
            # A new error for each caller: one that is raised several times collects the traces of all.
            raise type(self.answer)(str(self.answer), metadata=self.answer.metadata)
        return self.answer


def matches(excerpt: bytes, digest: OutputDigest) -> bool:
    """Return True if an excerpt of output is the one that was signed."""
    return hashlib.sha256(excerpt).hexdigest() == digest.excerpt_sha256 and (
        digest.truncated or (len(excerpt) == digest.total_bytes and digest.sha256 == digest.excerpt_sha256)
    )


def _summary(digest: OutputDigest, excerpt: bytes) -> OutputSummary:
    truncated = digest.truncated or len(excerpt) < digest.total_bytes
    return OutputSummary(total_bytes=digest.total_bytes, sha256=digest.sha256, truncated=truncated)
