"""The calls for agents, people, policy, the audit trail and schedules; most of them are for operators."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from tachikoma.client import wire
from tachikoma.client.retry import Calls
from tachikoma.exec.v1 import remote_execution_pb2 as pb
from tachikoma.vocabulary.durations import as_duration

if TYPE_CHECKING:
    from grpc.aio import UnaryStreamCall

    from tachikoma.exec.v1.remote_execution_pb2_grpc import RemoteExecutionAsyncStub
    from tachikoma.vocabulary.agents import AgentInfo, Enrolment, Revocation
    from tachikoma.vocabulary.audit import ExecAuditLog
    from tachikoma.vocabulary.policies import PolicyStatus
    from tachikoma.vocabulary.recordings import RecordingInfo
    from tachikoma.vocabulary.schedules import ScheduledRun, ScheduleStatus
    from tachikoma.vocabulary.users import UserEnrolment, UserInfo

__all__ = ["OversightCalls"]

#: Results of one call that names no number.
DEFAULT_PAGE = 100


class OversightCalls(Calls):
    """The calls of `AsyncClient` that are not about executions."""

    # --- agents, for operators except `agents` ------------------------------------------------------------------------

    async def agents(self) -> tuple[AgentInfo, ...]:
        """Return the known agents, by id."""
        answer = await self._call(lambda stub: stub.ListAgents(pb.ListAgentsRequest()))
        return tuple(wire.agent_from_pb(item) for item in answer.agents)

    async def drain_agent(self, agent_id: str, reason: str) -> AgentInfo:
        """Stop sending new executions to an agent; its present ones continue. For operators.

        Args:
            agent_id: the agent.
            reason: recorded in the audit trail.
        """
        message = pb.DrainAgentRequest(id=agent_id, reason=reason)
        return wire.agent_from_pb(await self._call(lambda stub: stub.DrainAgent(message)))

    async def resume_agent(self, agent_id: str) -> AgentInfo:
        """Send executions to a drained agent again. For operators."""
        message = pb.ResumeAgentRequest(id=agent_id)
        return wire.agent_from_pb(await self._call(lambda stub: stub.ResumeAgent(message)))

    async def label_agent(
        self, agent_id: str, labels: Mapping[str, str] | None = None, *, remove: Sequence[str] = ()
    ) -> AgentInfo:
        """Change the labels of an agent; others stay as they are. For operators. Safe to repeat.

        Args:
            agent_id: the agent.
            labels: labels to bind, with their new values.
            remove: names of labels to remove.
        """
        message = pb.LabelAgentRequest(id=agent_id, labels=labels or {}, remove=remove)
        return wire.agent_from_pb(await self._call(lambda stub: stub.LabelAgent(message)))

    async def enroll_agent(
        self, agent_id: str, ttl: timedelta | str | float = "15m", *, labels: Mapping[str, str] | None = None
    ) -> Enrolment:
        """Create a token with which one host may join once as an agent. For operators.

        Args:
            agent_id: the agent. Earlier tokens of this agent become invalid.
            ttl: lifetime of the token, at most a day: a timedelta, text such as "15m", or a number of seconds.
            labels: all labels of the agent once a host has joined. None or empty: those that it has.
        """
        message = wire.enroll_to_pb(agent_id, as_duration(ttl, "ttl"), labels or {})
        answer = await self._call(lambda stub: stub.EnrollAgent(message), repeat=False)
        return wire.enrolment_from_pb(agent_id, answer)

    async def revoke_agent(self, agent_id: str, reason: str) -> Revocation:
        """Revoke an agent at once, until it joins again. For operators. Safe to repeat.

        Args:
            agent_id: the agent.
            reason: recorded in the audit trail and shown to the requesters of its executions.
        """
        message = pb.RevokeAgentRequest(id=agent_id, reason=reason)
        return wire.revocation_from_pb(await self._call(lambda stub: stub.RevokeAgent(message)))

    # --- people, for operators ----------------------------------------------------------------------------------------

    async def enroll_user(self, name: str, ttl: timedelta | str | float = "15m") -> UserEnrolment:
        """Create a token with which one person may log in once. For operators.

        Args:
            name: the person: the last part of spiffe://<trust domain>/user/<name>. Earlier tokens of this person become
                invalid.
            ttl: lifetime of the token, at most a day: a timedelta, text such as "15m", or a number of seconds.
        """
        message = wire.enroll_user_to_pb(name, as_duration(ttl, "ttl"))
        answer = await self._call(lambda stub: stub.EnrollUser(message), repeat=False)
        return wire.user_enrolment_from_pb(name, answer)

    async def users(self) -> tuple[UserInfo, ...]:
        """Return the people that logged in with a token or were revoked, by name. For operators."""
        answer = await self._call(lambda stub: stub.ListUsers(pb.ListUsersRequest()))
        return tuple(wire.user_from_pb(item) for item in answer.users)

    async def revoke_user(self, name: str, reason: str) -> UserInfo:
        """Refuse every certificate of a person at once, until that person logs in with a new token. For operators.

        Calls in progress and interactive executions of the person end; other executions continue. Safe to repeat.

        Args:
            name: the person.
            reason: recorded in the audit trail.
        """
        message = pb.RevokeUserRequest(name=name, reason=reason)
        return wire.user_from_pb(await self._call(lambda stub: stub.RevokeUser(message)))

    # --- policy, audit and schedules, for operators -------------------------------------------------------------------

    async def policy_status(self) -> PolicyStatus:
        """Return the active policy of the orchestrator, and the mistake in a newer one. For operators."""
        return wire.policy_status_from_pb(
            await self._call(lambda stub: stub.GetPolicyStatus(pb.GetPolicyStatusRequest()))
        )

    async def audit(self, *, after: str = "", limit: int = 0, exec_id: str = "") -> tuple[ExecAuditLog, ...]:
        """Return events of the audit trail, oldest first. For operators.

        Args:
            after: only events after this cursor (`ExecAuditLog.cursor`); empty for the latest events.
            limit: at most n events, 1 to 1000; 0 for 100.
            exec_id: only events of this execution. The search goes through the whole trail, in many calls if needed.
        """
        found: list[ExecAuditLog] = []
        answer = await self._audit_page(after, "", limit, exec_id)
        while True:
            page = [wire.audit_from_pb(item) for item in answer.events]
            found = found + page if after else page + found
            missing = (limit or DEFAULT_PAGE) - len(found)
            if not exec_id or not answer.further or not missing:
                return tuple(found)
            positions = (answer.further, "") if after else ("", answer.further)
            answer = await self._audit_page(*positions, missing, exec_id)

    async def _audit_page(self, after: str, before: str, limit: int, exec_id: str) -> pb.ListAuditEventsResponse:
        message = pb.ListAuditEventsRequest(after=after, before=before, limit=limit, id=exec_id)
        return await self._call(lambda stub: stub.ListAuditEvents(message))

    async def recordings(
        self,
        *,
        exec_id: str = "",
        text: str = "",
        agent_id: str = "",
        requested_by: str = "",
        until: datetime | None = None,
        limit: int = 0,
    ) -> tuple[RecordingInfo, ...]:
        """Return finished recordings of interactive executions that this client may play, the newest first.

        Args:
            exec_id: only the recording of this execution.
            text: only recordings on whose screen this text was, in small or capital letters.
            agent_id: only recordings of this agent.
            requested_by: only recordings of this SPIFFE ID, or of one that ends with these parts: `user/anna`.
            until: only recordings that began before this time.
            limit: at most n recordings, 1 to 1000; 0 for 100.
        """
        message = pb.ListRecordingsRequest(
            id=exec_id, text=text, agent_id=agent_id, requested_by=requested_by,
            until=wire.timestamp_to_pb(until), limit=limit,
        )  # fmt: skip
        answer = await self._call(lambda stub: stub.ListRecordings(message))
        return tuple(wire.recording_from_pb(item) for item in answer.recordings)

    async def recording(self, exec_id: str) -> AsyncIterator[bytes]:
        """Yield a recording in parts, as asciicast of version 3.

        Raises:
            NotFound: this client may play no recording of this execution.
            OutputAltered: the recording is not the one that was signed.
        """
        message = pb.ReadRecordingRequest(id=exec_id)

        async def begin(stub: RemoteExecutionAsyncStub) -> UnaryStreamCall[pb.ReadRecordingRequest, pb.RecordingPart]:
            call = stub.ReadRecording(message)
            await call.wait_for_connection()
            return call

        call = await self._call(begin)
        # Each read is a call by itself, so that its error becomes one of ours.
        while isinstance(part := await self._call(lambda _: call.read(), repeat=False), pb.RecordingPart):
            yield part.data

    async def schedules(self) -> tuple[tuple[ScheduleStatus, ...], str]:
        """Return all schedules, and the mistake in a newer schedules file that keeps it inactive. For operators.

        The second value is empty if the newest file is active.
        """
        answer = await self._call(lambda stub: stub.ListSchedules(pb.ListSchedulesRequest()))
        return tuple(wire.schedule_from_pb(item) for item in answer.schedules), answer.error

    async def next_due_times(self, name: str, *, limit: int = 0) -> tuple[datetime, ...]:
        """Return the next scheduled times of a schedule; none if it is disabled. For operators.

        Args:
            name: the schedule.
            limit: at most n times, 1 to 1000; 0 for 10.
        """
        message = pb.NextDueTimesRequest(name=name, limit=limit)
        answer = await self._call(lambda stub: stub.NextDueTimes(message))
        return tuple(wire.timestamp_from_pb(item) for item in answer.due)

    async def pause_schedule(self, name: str, reason: str) -> ScheduleStatus:
        """Pause a schedule until it is resumed; runs in progress continue. For operators.

        Args:
            name: the schedule.
            reason: recorded in the audit trail.
        """
        message = pb.PauseScheduleRequest(name=name, reason=reason)
        return wire.schedule_from_pb(await self._call(lambda stub: stub.PauseSchedule(message)))

    async def resume_schedule(self, name: str) -> ScheduleStatus:
        """Resume a paused schedule. Runs that were due in the meantime stay skipped. For operators."""
        message = pb.ResumeScheduleRequest(name=name)
        return wire.schedule_from_pb(await self._call(lambda stub: stub.ResumeSchedule(message)))

    async def run_schedule(self, name: str) -> ScheduledRun:
        """Run a schedule now, even if it is paused. For operators."""
        message = pb.RunScheduleRequest(name=name)
        return wire.scheduled_run_from_pb(await self._call(lambda stub: stub.RunSchedule(message), repeat=False))

    async def scheduled_runs(self, name: str, *, limit: int = 0) -> tuple[ScheduledRun, ...]:
        """Return the outcomes of a schedule's scheduled times, the latest first. For operators.

        Args:
            name: the schedule.
            limit: at most n runs, 1 to 1000; 0 for 100.
        """
        message = pb.ListScheduledRunsRequest(name=name, limit=limit)
        answer = await self._call(lambda stub: stub.ListScheduledRuns(message))
        return tuple(wire.scheduled_run_from_pb(item) for item in answer.runs)
