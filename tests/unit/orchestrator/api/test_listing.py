"""The conditions of a list."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tachikoma.errors import InvalidRequest
from tachikoma.exec.v1 import remote_execution_pb2 as pb
from tachikoma.vocabulary.states import ExecState
from tachikoma_orchestrator.api.listing import ListFilter
from tachikoma_orchestrator.api.page_token import PageToken

LABELS = {"web-1": {"role": "web"}, "db-1": {"role": "db"}}


def record(**changes: Any) -> Any:
    values = {"agent": "web-1", "requested_by": "alice", "state": ExecState.STARTED, "admitted_ms": 5000}
    return SimpleNamespace(**{**values, **changes})


def matches(request: pb.ListRequest, **changes: Any) -> bool:
    return ListFilter.from_pb(request).matches(record(**changes), lambda agent: LABELS[agent])


def at(seconds: int) -> Any:
    return {"seconds": seconds}


def test_without_conditions_only_unfinished_executions_are_listed() -> None:
    assert matches(pb.ListRequest())
    assert not matches(pb.ListRequest(), state=ExecState.SUCCEEDED)
    assert matches(pb.ListRequest(include_ended=True), state=ExecState.SUCCEEDED)


@pytest.mark.parametrize(
    ("request_", "changes", "expected"),
    [
        (pb.ListRequest(agent_id="web-1"), {}, True),
        (pb.ListRequest(agent_id="db-1"), {}, False),
        (pb.ListRequest(agents="web-*"), {}, True),
        (pb.ListRequest(agents="role=db"), {}, False),
        (pb.ListRequest(agents="role=db"), {"agent": "db-1"}, True),
        (pb.ListRequest(requested_by="alice"), {}, True),
        (pb.ListRequest(requested_by="bob"), {}, False),
        (pb.ListRequest(requested_by="alice"), {"requested_by": "spiffe://e/user/alice"}, True),
        (pb.ListRequest(requested_by="user/alice"), {"requested_by": "spiffe://e/user/alice"}, True),
        (pb.ListRequest(requested_by="ice"), {"requested_by": "spiffe://e/user/alice"}, False),
        (pb.ListRequest(requested_by="spiffe://other/user/alice"), {"requested_by": "spiffe://e/user/alice"}, False),
        (pb.ListRequest(states=[pb.EXEC_STATE_FAILED]), {"state": ExecState.FAILED}, True),
        (pb.ListRequest(states=[pb.EXEC_STATE_FAILED]), {"state": ExecState.STARTED}, False),
        (pb.ListRequest(since=at(5)), {}, True),
        (pb.ListRequest(since=at(6)), {}, False),
        (pb.ListRequest(until=at(6)), {}, True),
        (pb.ListRequest(until=at(5)), {}, False),
    ],
)
def test_an_execution_must_meet_each_condition(
    request_: pb.ListRequest, changes: dict[str, Any], expected: bool
) -> None:
    assert matches(request_, **changes) is expected


def test_a_final_state_includes_ended_executions() -> None:
    assert ListFilter.from_pb(pb.ListRequest(states=[pb.EXEC_STATE_LOST])).ended
    assert not ListFilter.from_pb(pb.ListRequest(states=[pb.EXEC_STATE_QUEUED])).ended


@pytest.mark.parametrize(
    "request_", [pb.ListRequest(agents="ro*le=x"), pb.ListRequest(states=[0]), pb.ListRequest(states=[99])]
)
def test_a_condition_that_is_not_valid_is_an_invalid_request(request_: pb.ListRequest) -> None:
    with pytest.raises(InvalidRequest):
        ListFilter.from_pb(request_)


def test_a_list_of_ended_executions_begins_before_its_upper_bound() -> None:
    assert ListFilter.from_pb(pb.ListRequest(until=at(5), include_ended=True)).start == PageToken(4999, 0)
    # The index of unfinished executions is sorted by their deadlines.
    assert ListFilter.from_pb(pb.ListRequest(until=at(5))).start is None
    assert ListFilter.from_pb(pb.ListRequest(include_ended=True)).start is None
