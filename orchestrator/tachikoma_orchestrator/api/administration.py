"""The RPCs about what is there: agents, policy, audit trail and schedules; almost all of them for operators only."""

from __future__ import annotations

from typing import Any

from tachikoma.client import wire
from tachikoma.errors import FailedPrecondition, InvalidRequest, NotFound, PermissionDenied
from tachikoma.exec.v1 import remote_execution_pb2 as pb
from tachikoma.exec.v1.remote_execution_pb2_grpc import RemoteExecutionServicer
from tachikoma_orchestrator.admission.approvals import checked_reason
from tachikoma_orchestrator.agents.membership import Membership
from tachikoma_orchestrator.api.guard import current_peer
from tachikoma_orchestrator.caller import Peer
from tachikoma_orchestrator.processes.parts import Core
from tachikoma_orchestrator.schedules.runner import ScheduleRunner

__all__ = ["Administration", "page"]

#: Page of a list where the caller names none, and the largest.
DEFAULT_PAGE = 100
MAX_PAGE = 1000
#: Due times where the caller does not say how many.
DEFAULT_DUE_TIMES = 10


def page(asked: int, what: str) -> int:
    """How many of something a caller gets.

    Raises:
        InvalidRequest: it asks for too many.
    """
    if asked > MAX_PAGE:
        raise InvalidRequest(f"{what} is at most {MAX_PAGE}")
    return asked or DEFAULT_PAGE


class Administration(RemoteExecutionServicer):
    """Half of `tachikoma.exec.v1.RemoteExecution`; the other is in `service.py`."""

    def __init__(self, core: Core, membership: Membership) -> None:
        self._registry = core.registry
        self._policies = core.policies
        self._trail = core.trail
        self._membership = membership
        self._schedule_runner = core.schedule_runner

    def _operator(self, what: str) -> Peer:
        """The caller, who may do what only operators may.

        Raises:
            PermissionDenied: it is none.
        """
        peer = current_peer()
        if not self._policies.current.is_operator(str(peer)):
            raise PermissionDenied(f"only operators {what}", metadata={"rule": "operators"})
        return peer

    # --- agents -------------------------------------------------------------------------------------------------------

    async def ListAgents(  # noqa: N802
        self, request: pb.ListAgentsRequest, context: Any
    ) -> pb.ListAgentsResponse:
        return pb.ListAgentsResponse(agents=[wire.agent_to_pb(item) for item in await self._registry.describe()])

    async def DrainAgent(self, request: pb.DrainAgentRequest, context: Any) -> pb.Agent:  # noqa: N802
        peer = self._operator("drain agents")
        self._trail.check()
        await self._registry.drain(request.id, by=str(peer), reason=checked_reason(request.reason))
        return await self._agent(request.id)

    async def ResumeAgent(self, request: pb.ResumeAgentRequest, context: Any) -> pb.Agent:  # noqa: N802
        peer = self._operator("resume agents")
        self._trail.check()
        await self._registry.resume(request.id, by=str(peer))
        return await self._agent(request.id)

    async def EnrollAgent(  # noqa: N802
        self, request: pb.EnrollAgentRequest, context: Any
    ) -> pb.EnrollAgentResponse:
        peer = self._operator("enroll agents")
        self._trail.check()
        made = await self._membership.enrolments.enroll(request.id, request.ttl.ToTimedelta(), peer)
        return wire.enrolment_to_pb(made)

    async def RevokeAgent(  # noqa: N802
        self, request: pb.RevokeAgentRequest, context: Any
    ) -> pb.RevokeAgentResponse:
        # Not kept waiting by a sink of the audit trail: nothing gets in by it.
        peer = self._operator("revoke agents")
        done = await self._membership.revoker.revoke(request.id, checked_reason(request.reason), peer)
        return wire.revocation_to_pb(done)

    async def RenewAgent(  # noqa: N802
        self, request: pb.RenewAgentRequest, context: Any
    ) -> pb.RenewAgentResponse:
        made = await self._membership.renewals.renew(current_peer(), request.csr)
        return pb.RenewAgentResponse(
            certificate_chain=made.chain_pem, bundle=made.bundle_pem, renew_address=made.renew_address
        )

    async def _agent(self, agent: str) -> pb.Agent:
        found = next((item for item in await self._registry.describe() if item.id == agent), None)
        if found is None:
            raise NotFound(f"the agent {agent!r} is gone")
        return wire.agent_to_pb(found)

    # --- policy and audit ---------------------------------------------------------------------------------------------

    async def GetPolicyStatus(  # noqa: N802
        self, request: pb.GetPolicyStatusRequest, context: Any
    ) -> pb.PolicyStatus:
        self._operator("ask for the policy in force")
        return wire.policy_status_to_pb(self._policies.status())

    async def ListAuditEvents(  # noqa: N802
        self, request: pb.ListAuditEventsRequest, context: Any
    ) -> pb.ListAuditEventsResponse:
        self._operator("read the audit trail")
        if request.after and not all(part.isdecimal() for part in request.after.split("-", 1)):
            raise InvalidRequest(f"{request.after[:80]!r} is no cursor of the audit trail")
        limit = page(request.limit, "limit")
        events = await self._trail.read(after=request.after, limit=limit, exec_id=request.id)
        return pb.ListAuditEventsResponse(events=[wire.audit_to_pb(event) for event in events])

    # --- schedules ----------------------------------------------------------------------------------------------------

    def _schedules(self, what: str) -> tuple[ScheduleRunner, str]:
        """The schedules, and the caller, who is an operator.

        Raises:
            PermissionDenied: it is none.
            FailedPrecondition: there are no schedules.
        """
        peer = self._operator(what)
        if self._schedule_runner is None:
            raise FailedPrecondition("this orchestrator has no schedules; TACHIKOMA_SCHEDULES says where they are")
        return self._schedule_runner, str(peer)

    async def ListSchedules(  # noqa: N802
        self, request: pb.ListSchedulesRequest, context: Any
    ) -> pb.ListSchedulesResponse:
        runner, _ = self._schedules("see schedules")
        found = await runner.statuses()
        return pb.ListSchedulesResponse(schedules=map(wire.schedule_to_pb, found), error=runner.error)

    async def NextDueTimes(  # noqa: N802
        self, request: pb.NextDueTimesRequest, context: Any
    ) -> pb.NextDueTimesResponse:
        runner, _ = self._schedules("see schedules")
        limit = page(request.limit, "limit") if request.limit else DEFAULT_DUE_TIMES
        found = await runner.next_due(request.name, limit=limit)
        answer = pb.NextDueTimesResponse()
        for due in found:
            answer.due.add().FromDatetime(due)
        return answer

    async def PauseSchedule(self, request: pb.PauseScheduleRequest, context: Any) -> pb.Schedule:  # noqa: N802
        runner, peer = self._schedules("pause schedules")
        self._trail.check()
        reason = checked_reason(request.reason)
        return wire.schedule_to_pb(await runner.pause(request.name, by=peer, reason=reason))

    async def ResumeSchedule(self, request: pb.ResumeScheduleRequest, context: Any) -> pb.Schedule:  # noqa: N802
        runner, peer = self._schedules("resume schedules")
        self._trail.check()
        return wire.schedule_to_pb(await runner.resume(request.name, by=peer))

    async def RunSchedule(self, request: pb.RunScheduleRequest, context: Any) -> pb.ScheduledRun:  # noqa: N802
        runner, peer = self._schedules("run schedules")
        self._trail.check()
        return wire.scheduled_run_to_pb(await runner.run_now(request.name, by=peer))

    async def ListScheduledRuns(  # noqa: N802
        self, request: pb.ListScheduledRunsRequest, context: Any
    ) -> pb.ListScheduledRunsResponse:
        runner, _ = self._schedules("see schedules")
        found = await runner.runs(request.name, limit=page(request.limit, "limit"))
        return pb.ListScheduledRunsResponse(runs=map(wire.scheduled_run_to_pb, found))
