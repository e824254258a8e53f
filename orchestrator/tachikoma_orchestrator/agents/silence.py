"""The silence of agents, and what it means for their executions.

Times are of the orchestrator's monotonic clock. After an interruption of Redis, agents get a full lease to send a
heartbeat again.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from datetime import timedelta

from tachikoma.streams.heartbeat import HEARTBEAT_SECONDS, LEASE_SECONDS
from tachikoma_orchestrator.agents.registry import AgentState

__all__ = ["RESULT_SECONDS", "Silence"]

#: Seconds for which an agent does not hold an execution before its missing result counts as lost: several heartbeats.
RESULT_SECONDS = 3 * HEARTBEAT_SECONDS


class Silence:
    """The agents without a heartbeat, and the executions without a result, with the times since when."""

    def __init__(self, lease: timedelta) -> None:
        """Begin without observations.

        Args:
            lease: time without a heartbeat after which an agent's executions are lost.
        """
        self._lease_seconds = lease.total_seconds()
        #: Start of the time in which Redis answered without interruption.
        self._answering_since = time.monotonic()
        #: Start of the silence of agents with open executions.
        self._silent_since: dict[str, float] = {}
        #: The executions that an earlier pass found to be claimed.
        self._claimed: set[str] = set()
        #: Start of the time in which an agent no longer held an execution and its result was gone.
        self._result_gone_since: dict[str, float] = {}

    def restart_leases(self) -> None:
        """Give every agent a full lease from now on, since heartbeats could not be read."""
        self._answering_since = time.monotonic()

    def forget_agents(self) -> None:
        """Forget since when agents are silent."""
        self._silent_since.clear()

    def hear(self, agents: Mapping[str, AgentState]) -> None:
        """Note which agents are online."""
        for agent, state in agents.items():
            if state.online:
                self._silent_since.pop(agent, None)

    def keep(self, exec_ids: Collection[str], agents: Collection[str]) -> None:
        """Forget all executions but the open ones, and all agents but theirs.

        The states of other agents are not read, so a silence that was noted would end unnoticed.
        """
        for agent in self._silent_since.keys() - set(agents):
            del self._silent_since[agent]
        self._claimed.intersection_update(exec_ids)
        for exec_id in self._result_gone_since.keys() - set(exec_ids):
            del self._result_gone_since[exec_id]

    def lost(self, agent: str, boot: str, state: AgentState | None, *, claimed: str = "") -> str:
        """Return why an execution that an agent claimed must be given up; empty if it need not be.

        A new claim shows that the agent lives: a worker that was stopped for longer than its lease may claim an
        execution just before its next heartbeat. So nothing is given up when a claim is found for the first time.

        Args:
            agent: the agent's id.
            boot: id of the journal that claimed it; empty if it is unknown.
            state: the agent's state; None if the agent is unknown.
            claimed: the execution; empty if Redis has no claim of it, nor a notice of its start.
        """
        now = time.monotonic()
        online = state is not None and state.online
        # Both times run from the start of the process on, so that they do not add up.
        silent = 0.0 if online else now - self._silent_since.setdefault(agent, now)
        is_new = bool(claimed) and claimed not in self._claimed
        if is_new:
            self._claimed.add(claimed)
        if now - self._answering_since < self._lease_seconds:
            return ""
        if state is not None and state.online:
            other = boot and state.heartbeat.boot != boot
            return "its agent lost its journal, so the result is unknown" if other else ""
        # The agent had been silent for its lease in Redis before it was noticed.
        silent += max(0.0, min(LEASE_SECONDS, self._lease_seconds - LEASE_SECONDS))
        if silent < self._lease_seconds or is_new:
            return ""
        return f"its agent sent no heartbeat for {silent:.0f} s" if state is not None else "its agent is unknown"

    def without_result(self, exec_id: str, agent: AgentState | None, *, has_result: bool) -> str:
        """Return why an execution is given up that its agent completed, if its result is gone; else empty.

        Args:
            exec_id: the execution, which its agent claimed.
            agent: its agent's state; None if the agent is unknown.
            has_result: True if Redis has a value for its result. It was not accepted.
        """
        held = None if agent is None or not agent.online else agent.heartbeat.executions
        if held is None or exec_id in held:
            self._result_gone_since.pop(exec_id, None)
            return ""
        since = self._result_gone_since.setdefault(exec_id, time.monotonic())
        if time.monotonic() - since < RESULT_SECONDS:
            return ""
        what = "its result in Redis is not accepted" if has_result else "its result in Redis is gone"
        return f"its agent no longer holds it, and {what}"
