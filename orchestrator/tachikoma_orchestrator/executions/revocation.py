"""The executions of revoked members.

Those of an agent get a final state, and those that it has started are cancelled. Of those of a person, the interactive
ones are cancelled: their caller would type on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import structlog

from tachikoma.errors import RecordAltered
from tachikoma.identity.spiffe import InvalidIdentity, Member, SpiffeId
from tachikoma.identity.svid import SvidSource
from tachikoma.redis import keys
from tachikoma.redis.commands import Redis
from tachikoma.vocabulary.states import ExecState
from tachikoma_orchestrator.agents.revocations import Revocations, Revoked
from tachikoma_orchestrator.agents.revoking import EndedExecutions
from tachikoma_orchestrator.executions.cancel import send_cancel
from tachikoma_orchestrator.executions.ledger import Ledger
from tachikoma_orchestrator.executions.record import Record
from tachikoma_orchestrator.executions.transitions import DISPATCHED, TransitionOutcome

__all__ = ["ExecutionsOfMembers", "end_revoked", "revocation_of_session"]

log = structlog.get_logger(__name__)

#: Records read in one step.
BATCH = 500


class ExecutionsOfMembers:
    """Cancels and ends executions of revoked members; implements `agents.revoking.MemberExecutions`."""

    def __init__(self, redis: Redis, ledger: Ledger, identity: SvidSource) -> None:
        """Prepare the revocation of executions.

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

    async def end_sessions(self, requester: SpiffeId, revoked: Revoked) -> None:
        """Cancel every interactive execution of a person that has not ended.

        Raises:
            redis errors: Redis failed; the reaper cancels the others.
        """
        for record in await self._matching(lambda record: record.requested_by == str(requester)):
            if _is_session(record):
                await self.end_session(record, revoked)

    async def end_session(self, record: Record, revoked: Revoked) -> bool:
        """Cancel an interactive execution of a revoked person. Safe to repeat.

        Returns:
            True if it has a final state now; False if its agent has the order to end it. Raises redis errors.
        """
        agent, exec_id, reason = record.agent, record.exec_id, revoked.session_error
        for state in (ExecState.PENDING_APPROVAL, ExecState.QUEUED):
            done = await self._ledger.settle(
                agent, exec_id, [state], ExecState.CANCELLED,
                reason=reason, by=revoked.by, fence=state is ExecState.QUEUED,
            )  # fmt: skip
            if done is TransitionOutcome.DONE:
                return True
        if record.cancel_requested_by != revoked.by:
            # Sent first: if this process ends before the record names the operator, a reaper sends it again.
            await send_cancel(self._redis, self._identity, agent, exec_id, by=revoked.by, requested_by="")
            await self._ledger.request_cancel(agent, exec_id, revoked.by, reason)
        return False

    async def _open(self, agent: str) -> list[Record]:
        """Return the agent's executions that have a place on its queue or have started."""
        return await self._matching(
            lambda record: record.agent == agent and record.state is not ExecState.PENDING_APPROVAL
        )

    async def _matching(self, wanted: Callable[[Record], bool]) -> list[Record]:
        """Return the wanted executions among those without a final state."""
        found, offset = [], 0
        while ids := await self._ledger.open_executions(offset=offset, limit=BATCH):
            found += [record for record in await self._ledger.records(ids) if wanted(record)]
            offset += len(ids)
        return found


def revocation_of_session(record: Record, revocations: Revocations) -> Revoked | None:
    """Return the revocation of a person that ends an execution; None if it may continue.

    It ends interactive ones that were requested before it, and all of a person that has not logged in again.
    """
    try:
        member = Member.of(SpiffeId.parse(record.requested_by))
    except InvalidIdentity:
        return None
    revoked = revocations.latest(member.key) if member is not None and not member.is_agent else None
    if revoked is None or not (revoked.active or record.admitted_ms <= revoked.at_ms):
        return None
    return revoked if _is_session(record) else None


def _is_session(record: Record) -> bool:
    """Return True if an execution is interactive. One whose record was altered counts as such, to be safe."""
    try:
        return record.status().interactive
    except RecordAltered as error:
        log.error("revocation.unreadable_execution", id=record.exec_id, reason=str(error))
        return True


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
