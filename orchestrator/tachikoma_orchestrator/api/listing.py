"""The conditions of a caller's list of executions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tachikoma.client import wire
from tachikoma.errors import InvalidRequest
from tachikoma.exec.v1 import remote_execution_pb2 as pb
from tachikoma.policy.patterns import AgentSelector, PatternError
from tachikoma.vocabulary.states import ExecState
from tachikoma_orchestrator.api.page_token import PageToken
from tachikoma_orchestrator.api.times import milliseconds_of
from tachikoma_orchestrator.executions.record import Record

__all__ = ["ListFilter", "is_named"]


@dataclass(frozen=True, slots=True)
class ListFilter:
    """The conditions that a listed execution meets."""

    #: Exact id of the agent; empty for any.
    agent: str
    #: Pattern of the agent's id or labels; None for any.
    agents: AgentSelector | None
    #: SPIFFE ID of the requester, or the last parts of it; empty for any.
    requested_by: str
    #: Empty for any.
    states: frozenset[ExecState]
    #: Whether executions in a final state are included.
    ended: bool
    #: Accepted at or after `since_ms` and before `until_ms`, in milliseconds since the epoch; 0 for any.
    since_ms: int
    until_ms: int

    @classmethod
    def from_pb(cls, request: pb.ListRequest) -> ListFilter:
        """Read the filter of a request.

        Raises:
            InvalidRequest: a pattern, a state or a time is not valid.
        """
        try:
            agents = AgentSelector(request.agents) if request.agents else None
        except PatternError as error:
            raise InvalidRequest(f"agents: {error}") from None
        states = wire.states_from_pb(request.states)
        return cls(
            agent=request.agent_id,
            agents=agents,
            requested_by=request.requested_by,
            states=states,
            ended=request.include_ended or any(state.terminal for state in states),
            since_ms=milliseconds_of(request.since, "since") if request.HasField("since") else 0,
            until_ms=milliseconds_of(request.until, "until") if request.HasField("until") else 0,
        )

    @property
    def start(self) -> PageToken | None:
        """The position in the index of times at which the list begins; None for the newest execution."""
        return PageToken(self.until_ms - 1, 0) if self.until_ms and self.ended else None

    def matches(self, record: Record, labels: Callable[[str], Mapping[str, str]]) -> bool:
        """Return True if an execution meets all conditions; `labels` returns those of an agent."""
        if self.agent and record.agent != self.agent:
            return False
        if not is_named(record.requested_by, self.requested_by):
            return False
        if record.state not in self.states if self.states else record.state.terminal and not self.ended:
            return False
        if not self.since_ms <= record.admitted_ms < (self.until_ms or 2**63):
            return False
        return self.agents is None or self.agents.matches(record.agent, labels(record.agent))


def is_named(spiffe_id: str, wanted: str) -> bool:
    """Return True if a filter names a requester: by the SPIFFE ID, or by its last parts as lists show it (`user/anna`).

    An empty filter names each requester.
    """
    return wanted in ("", spiffe_id) or spiffe_id.endswith(f"/{wanted}")
