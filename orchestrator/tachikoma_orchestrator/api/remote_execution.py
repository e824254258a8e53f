"""The gRPC service `tachikoma.exec.v1.RemoteExecution`, put together from one class per noun."""

from __future__ import annotations

from tachikoma_orchestrator.api.agents import AgentCalls
from tachikoma_orchestrator.api.approvals import ApprovalCalls
from tachikoma_orchestrator.api.batches import BatchCalls
from tachikoma_orchestrator.api.oversight import OversightCalls
from tachikoma_orchestrator.api.overview import OverviewCalls
from tachikoma_orchestrator.api.recordings import RecordingCalls
from tachikoma_orchestrator.api.schedules import ScheduleCalls
from tachikoma_orchestrator.api.sessions import SessionCalls
from tachikoma_orchestrator.api.users import UserCalls

__all__ = ["RemoteExecution"]


class RemoteExecution(
    SessionCalls,
    BatchCalls,
    OverviewCalls,
    RecordingCalls,
    ApprovalCalls,
    AgentCalls,
    UserCalls,
    OversightCalls,
    ScheduleCalls,
):
    """All RPCs of the service; each is a few lines over the domain."""
