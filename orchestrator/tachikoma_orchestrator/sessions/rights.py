"""The right to be attached to a session: decided again at each attach, and whenever policy changes."""

from __future__ import annotations

from pydantic import ValidationError

from tachikoma.errors import InvalidRequest
from tachikoma.vocabulary.audit import AuditedRequest
from tachikoma.vocabulary.requests import ExecRequest
from tachikoma_orchestrator.executions.record import Record, record_altered

__all__ = ["recorded_request"]


def recorded_request(record: Record) -> ExecRequest:
    """Return the request of an execution as far as the ledger has it, for a new decision of policy.

    Secrets in its command are masked, and the values of its variables are left out.

    Raises:
        RecordAltered: the record contains no valid request.
    """
    try:
        audited = AuditedRequest.model_validate_json(record.request)
        return audited.as_request(record.agent, id=record.exec_id, requested_by=record.requested_by)
    except (ValidationError, InvalidRequest) as error:
        raise record_altered(record.exec_id, f"its request in the ledger cannot be read: {str(error)[:200]}") from None
