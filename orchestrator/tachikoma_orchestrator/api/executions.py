"""The RPCs that run, show and cancel one execution."""

from __future__ import annotations

from tachikoma.client import wire
from tachikoma.config import stages
from tachikoma.config.stages import Stage
from tachikoma.exec.v1 import remote_execution_pb2 as pb
from tachikoma.vocabulary.results import CancelOutcome, CancelResponse
from tachikoma.vocabulary.states import ExecState
from tachikoma_orchestrator.api.guard import current_peer
from tachikoma_orchestrator.api.service import Service
from tachikoma_orchestrator.caller import Peer
from tachikoma_orchestrator.executions.cancel import send_cancel
from tachikoma_orchestrator.executions.record import Record
from tachikoma_orchestrator.executions.transitions import TransitionOutcome
from tachikoma_orchestrator.executions.waiters import AwaitedOrder

__all__ = ["ExecutionCalls"]


class ExecutionCalls(Service):
    """`Execute`, `Submit`, `Status` and `Cancel`."""

    async def Execute(self, request: pb.ExecRequest, context: object) -> pb.ExecResponse:  # noqa: N802
        wanted = await self._request(request)
        stages.identify(wanted.id)
        stages.passed(Stage.READ)
        with self._parts.completions.expect(wanted.id) as end:
            new = await self._parts.admitter.admit(wanted, current_peer())
            self._parts.completions.note_order(wanted.id, AwaitedOrder(wanted.agent_id, ""))
            if not new:
                await self._resolve_if_ended(wanted.id)
            response = (await end).response()
            stages.passed(Stage.WAIT)
        if response.agent_id != wanted.agent_id:
            reason = f"the ledger has its result from {response.agent_id}, but it was requested for {wanted.agent_id}"
            raise await self._parts.evidence.altered(wanted.id, reason)
        answer = wire.response_to_pb(response)
        stages.passed(Stage.ANSWER)
        return answer

    async def Submit(self, request: pb.ExecRequest, context: object) -> pb.ExecStatus:  # noqa: N802
        wanted = await self._request(request)
        await self._parts.admitter.admit(wanted, current_peer())
        return wire.status_to_pb((await self._existing(wanted.id)).status())

    async def Status(self, request: pb.StatusRequest, context: object) -> pb.StatusResponse:  # noqa: N802
        record = await self._record(request.id)
        return pb.StatusResponse(status=wire.status_to_pb(await self._parts.evidence.status(record)))

    async def Cancel(self, request: pb.CancelRequest, context: object) -> pb.CancelResponse:  # noqa: N802
        peer = current_peer()
        outcome = await self._cancel(await self._record(request.id), peer)
        status = await self._parts.evidence.status(await self._existing(request.id))
        return wire.cancel_to_pb(CancelResponse(outcome=outcome, status=status))

    async def _cancel(self, record: Record, peer: Peer) -> CancelOutcome:
        """Cancel an execution in whichever state it is; it may advance between the steps, but never goes back.

        Raises:
            Unavailable: Redis has lost its record, so nobody knows whether it goes on.
        """
        if record.state.terminal:
            return CancelOutcome.ALREADY_ENDED
        if await self._withdraw(record, ExecState.PENDING_APPROVAL, "withdrawn before it was approved", peer):
            return CancelOutcome.CANCELLED
        if await self._withdraw(record, ExecState.QUEUED, "cancelled before it started", peer):
            return CancelOutcome.CANCELLED
        outcome = await self._parts.ledger.request_cancel(record.agent, record.exec_id, str(peer))
        if outcome is TransitionOutcome.MISSING:
            raise self._lost(record.exec_id)
        if outcome is not TransitionOutcome.DONE:
            return CancelOutcome.ALREADY_ENDED
        await send_cancel(
            self._parts.redis,
            self._parts.identity,
            record.agent,
            record.exec_id,
            by=str(peer),
            # The ledger could be altered. The agent compares the requester with the one in the signed order.
            requested_by="" if self._is_operator(peer) else str(peer),
        )
        return CancelOutcome.REQUESTED

    async def _withdraw(self, record: Record, state: ExecState, reason: str, peer: Peer) -> bool:
        """Cancel an execution that is still in the given state; return False if it is not.

        A queued execution is fenced: the claim is taken, so that the agent can never start it.
        """
        outcome = await self._parts.ledger.settle(
            record.agent,
            record.exec_id,
            [state],
            ExecState.CANCELLED,
            reason=reason,
            by=str(peer),
            fence=state is ExecState.QUEUED,
        )
        return outcome is TransitionOutcome.DONE
