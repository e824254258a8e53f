"""The end of an execution whose recording policy requires, and which cannot be recorded."""

from __future__ import annotations

from tachikoma.errors import RecordAltered
from tachikoma.identity.svid import SvidSource
from tachikoma.redis.commands import Redis
from tachikoma.vocabulary.states import ExecState
from tachikoma_orchestrator.executions.cancel import send_cancel
from tachikoma_orchestrator.executions.ledger import Ledger

__all__ = ["end_unrecorded"]


async def end_unrecorded(redis: Redis, ledger: Ledger, identity: SvidSource, exec_id: str, reason: str) -> None:
    """Order the agent to end an execution, or withdraw it before it starts. It can be repeated. Raises redis errors.

    Args:
        redis, ledger: the connections and the executions.
        identity: of the orchestrator, which is the caller that cancels.
        exec_id: the execution.
        reason: why it cannot be recorded.
    """
    try:
        record = await ledger.record(exec_id)
    except RecordAltered:
        return
    if record is None or record.state.terminal:
        return
    by = str(identity.current().spiffe_id)
    if record.state in (ExecState.PENDING_APPROVAL, ExecState.QUEUED):
        await ledger.settle(
            record.agent, exec_id, [record.state], ExecState.CANCELLED,
            reason=f"it must be recorded: {reason}", by=by, fence=record.state is ExecState.QUEUED,
        )  # fmt: skip
        return
    await ledger.request_cancel(record.agent, exec_id, by)
    await send_cancel(redis, identity, record.agent, exec_id, by=by, requested_by="")
