"""The RPCs that show, approve and reject executions that need an approval."""

from __future__ import annotations

from tachikoma.client import wire
from tachikoma.config.error_reporting import concerns
from tachikoma.exec.v1 import remote_execution_pb2 as pb
from tachikoma_orchestrator.api.guard import current_peer
from tachikoma_orchestrator.api.service import Service

__all__ = ["ApprovalCalls"]


class ApprovalCalls(Service):
    """`ListApprovals`, `GetApproval`, `Approve` and `Reject`."""

    async def ListApprovals(  # noqa: N802
        self, request: pb.ListApprovalsRequest, context: object
    ) -> pb.ListApprovalsResponse:
        peer = current_peer()
        pending = await self._parts.approvals.pending(peer, everybody=self._is_operator(peer))
        return pb.ListApprovalsResponse(executions=[wire.status_to_pb(status) for status in pending])

    async def GetApproval(self, request: pb.GetApprovalRequest, context: object) -> pb.Approval:  # noqa: N802
        concerns(request.id)
        return wire.approval_to_pb(await self._parts.approvals.describe(request.id, current_peer()))

    async def Approve(self, request: pb.ApproveRequest, context: object) -> pb.ExecStatus:  # noqa: N802
        concerns(request.id)
        await self._parts.approvals.approve(request.id, request.digest.hex(), request.reason, current_peer())
        return wire.status_to_pb((await self._existing(request.id)).status())

    async def Reject(self, request: pb.RejectRequest, context: object) -> pb.ExecStatus:  # noqa: N802
        concerns(request.id)
        await self._parts.approvals.reject(request.id, request.reason, current_peer())
        return wire.status_to_pb((await self._existing(request.id)).status())
