"""The RPCs about schedules, for operators only."""

from __future__ import annotations

from tachikoma.client import wire
from tachikoma.errors import FailedPrecondition
from tachikoma.exec.v1 import remote_execution_pb2 as pb
from tachikoma_orchestrator.admission.approvals import checked_reason
from tachikoma_orchestrator.api.service import Service, page_size
from tachikoma_orchestrator.schedules.runner import ScheduleRunner

__all__ = ["ScheduleCalls"]

#: Scheduled times in a response when the caller requests no number.
DEFAULT_DUE_TIMES = 10


class ScheduleCalls(Service):
    """`ListSchedules`, `NextDueTimes`, `PauseSchedule`, `ResumeSchedule`, `RunSchedule` and `ListScheduledRuns`."""

    def _schedules(self, action: str) -> tuple[ScheduleRunner, str]:
        """Return the schedules and the caller, who is an operator.

        Raises:
            PermissionDenied: the caller is not an operator.
            FailedPrecondition: the orchestrator has no schedules.
        """
        peer = self._operator(action)
        if self._parts.schedule_runner is None:
            raise FailedPrecondition("this orchestrator has no schedules; set TACHIKOMA_SCHEDULES to their file")
        return self._parts.schedule_runner, str(peer)

    async def ListSchedules(  # noqa: N802
        self, request: pb.ListSchedulesRequest, context: object
    ) -> pb.ListSchedulesResponse:
        runner, _ = self._schedules("see schedules")
        statuses = await runner.statuses()
        return pb.ListSchedulesResponse(schedules=map(wire.schedule_to_pb, statuses), error=runner.error)

    async def NextDueTimes(self, request: pb.NextDueTimesRequest, context: object) -> pb.NextDueTimesResponse:  # noqa: N802
        runner, _ = self._schedules("see schedules")
        limit = page_size(request.limit, "limit") if request.limit else DEFAULT_DUE_TIMES
        response = pb.NextDueTimesResponse()
        for due in await runner.next_due(request.name, limit=limit):
            response.due.add().FromDatetime(due)
        return response

    async def PauseSchedule(self, request: pb.PauseScheduleRequest, context: object) -> pb.Schedule:  # noqa: N802
        runner, peer = self._schedules("pause schedules")
        self._parts.trail.check()
        reason = checked_reason(request.reason)
        return wire.schedule_to_pb(await runner.pause(request.name, by=peer, reason=reason))

    async def ResumeSchedule(self, request: pb.ResumeScheduleRequest, context: object) -> pb.Schedule:  # noqa: N802
        runner, peer = self._schedules("resume schedules")
        self._parts.trail.check()
        return wire.schedule_to_pb(await runner.resume(request.name, by=peer))

    async def RunSchedule(self, request: pb.RunScheduleRequest, context: object) -> pb.ScheduledRun:  # noqa: N802
        runner, peer = self._schedules("run schedules")
        self._parts.trail.check()
        return wire.scheduled_run_to_pb(await runner.run_now(request.name, by=peer))

    async def ListScheduledRuns(  # noqa: N802
        self, request: pb.ListScheduledRunsRequest, context: object
    ) -> pb.ListScheduledRunsResponse:
        runner, _ = self._schedules("see schedules")
        runs = await runner.runs(request.name, limit=page_size(request.limit, "limit"))
        return pb.ListScheduledRunsResponse(runs=map(wire.scheduled_run_to_pb, runs))
