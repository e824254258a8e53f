"""The right to be attached to a session: decided again at each attach, and whenever policy changes."""

from __future__ import annotations

from datetime import timedelta

from pydantic import ValidationError

from tachikoma.vocabulary.audit import AuditedRequest
from tachikoma.vocabulary.requests import ExecRequest
from tachikoma_orchestrator.executions.record import Record, record_altered

__all__ = ["recorded_request"]


def recorded_request(record: Record) -> ExecRequest:
    """Return the request of an execution as far as the ledger has it, for a new decision of policy.

    Secrets in its command are masked, and the values of its variables are left out.

    Raises:
        RecordAltered: it is no request.
    """
    try:
        audited = AuditedRequest.model_validate_json(record.request)
        return ExecRequest(
            id=record.exec_id,
            agent_id=record.agent,
            command=audited.command,
            work_dir=audited.work_dir,
            environment=dict.fromkeys(audited.environment, ""),
            timeout=None if audited.timeout is None else timedelta(seconds=audited.timeout),
            user=audited.user,
            interactive=audited.interactive,
            tty=audited.tty,
            requested_by=record.requested_by,
        )
    except (ValidationError, OverflowError) as error:
        raise record_altered(record.exec_id, f"its request in the ledger cannot be read: {str(error)[:200]}") from None
