"""The executions of a revoked agent: those it has started are cancelled, and all get a final state."""

from __future__ import annotations

from collections.abc import Sequence

from tachikoma.identity.svid import SvidSource
from tachikoma.redis import keys
from tachikoma.redis.commands import Redis
from tachikoma.vocabulary.states import ExecState
from tachikoma_orchestrator.agents.revocations import Revoked
from tachikoma_orchestrator.agents.revoking import EndedExecutions
from tachikoma_orchestrator.executions.cancel import send_cancel
from tachikoma_orchestrator.executions.ledger import Ledger
from tachikoma_orchestrator.executions.record import Record
from tachikoma_orchestrator.executions.transitions import DISPATCHED, TransitionOutcome

__all__ = ["ExecutionsOfAgent", "end_revoked"]

#: Records read in one step.
BATCH = 500


class ExecutionsOfAgent:
    """Cancels and ends the executions of one agent; implements `agents.revoking.AgentExecutions`."""

    def __init__(self, redis: Redis, ledger: Ledger, identity: SvidSource) -> None:
        """Prepare the revocation of an agent's executions.

        Args:
            redis: the connections.
            ledger: the executions.
            identity: signs the cancel orders.
        """
        self._redis = redis
        self._ledger = ledger
        self._identity = identity

    async def open_ids(self, agent: str) -> list[str]:
        """Return the ids of the agent's executions that have not ended. Raises redis errors."""
        return [record.exec_id for record in await self._open(agent)]

    async def cancel_running(self, agent: str, *, by: str) -> None:
        """Send the agent a signed cancel order for each execution that it has claimed. Raises redis errors."""
        records = await self._open(agent)
        async with self._redis.pipeline(transaction=False) as pipe:
            for record in records:
                pipe.exists(keys.claim(agent, record.exec_id))
            claims = await pipe.execute() if records else []
        for record, claimed in zip(records, claims, strict=True):
            if claimed:
                await send_cancel(self._redis, self._identity, agent, record.exec_id, by=by, requested_by="")

    async def end_all(self, agent: str, revoked: Revoked, known: Sequence[str] = ()) -> EndedExecutions:
        """Give every execution of the agent a final state, except those that wait for an approval.

        Those have no order yet, and the agent may have joined again by the time of the approval.

        Args:
            agent: the agent.
            revoked: its revocation.
            known: executions that had not ended before the revocation. A reaper may have ended some for it.

        Returns:
            How many the revocation ended, by whichever process.

        Raises:
            redis errors: Redis failed; the reaper ends what is left.
        """
        ended = {}
        for record in await self._open(agent):
            if state := await end_revoked(self._ledger, record, revoked):
                ended[record.exec_id] = state
        others = await self._ledger.records([exec_id for exec_id in known if exec_id not in ended])
        ended |= {record.exec_id: record.state for record in others if record.error == revoked.execution_error}
        states = list(ended.values())
        return EndedExecutions(cancelled=states.count(ExecState.CANCELLED), lost=states.count(ExecState.LOST))

    async def _open(self, agent: str) -> list[Record]:
        """Return the agent's executions that have a place on its queue or have started."""
        found, offset = [], 0
        while ids := await self._ledger.open_executions(offset=offset, limit=BATCH):
            found += [record for record in await self._ledger.records(ids) if record.agent == agent]
            offset += len(ids)
        return [record for record in found if record.state is not ExecState.PENDING_APPROVAL]


async def end_revoked(ledger: Ledger, record: Record, revoked: Revoked) -> ExecState | None:
    """End an execution of a revoked agent: CANCELLED if it can be kept from starting, else LOST.

    Returns:
        The final state; None if the execution had ended before.
    """
    agent, exec_id = record.agent, record.exec_id
    done = await ledger.settle(
        agent, exec_id, [ExecState.QUEUED], ExecState.CANCELLED,
        reason=revoked.execution_error, by=revoked.by, fence=True,
    )  # fmt: skip
    if done is TransitionOutcome.DONE:
        return ExecState.CANCELLED
    # The agent has claimed it. Its report would not be accepted any more.
    done = await ledger.settle(
        agent, exec_id, DISPATCHED, ExecState.LOST,
        reason=revoked.execution_error, by=revoked.by, fence=False,
    )  # fmt: skip
    return ExecState.LOST if done is TransitionOutcome.DONE else None
