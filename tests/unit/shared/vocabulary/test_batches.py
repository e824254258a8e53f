"""Requests of batches: their bounds, shares and variables."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tachikoma.errors import InvalidRequest
from tachikoma.vocabulary.batches import BatchRequest, HealthGate, TargetState, share_of, substituted
from tachikoma.vocabulary.states import ExecState


def make(**values: Any) -> BatchRequest:
    return BatchRequest(**{"id": "b-1", "targets": ("web*",), "command": ("true",), **values})


def test_every_final_state_of_an_execution_is_one_of_a_target() -> None:
    assert {TargetState(state) for state in ExecState if state.terminal} < set(TargetState)


@pytest.mark.parametrize(
    ("share", "total", "number"),
    [("3", 100, 3), ("25%", 200, 50), ("1%", 10, 1), ("0%", 10, 0), ("100%", 7, 7), ("33%", 10, 3)],
)
def test_shares(share: str, total: int, number: int) -> None:
    assert share_of(share, total) == number


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("{agent}", "web1"),
        ("--host={agent}.example", "--host=web1.example"),
        ("{label:role}-{label:role}", "db-db"),
        ("{{agent}}", "{agent}"),
        ("{{label:role}}", "{label:role}"),
        ("{print $1}", "{print $1}"),
        ("{}", "{}"),
        ("{other}", "{other}"),
    ],
)
def test_variables(text: str, value: str) -> None:
    assert substituted(text, "web1", {"role": "db"}) == value


def test_a_missing_label_is_named() -> None:
    with pytest.raises(ValueError, match="no label 'site'"):
        substituted("{label:site}", "web1", {"role": "db"})


@given(st.text(alphabet="{}agentlabel: x", max_size=30))
def test_a_value_is_never_read_as_a_variable(value: str) -> None:
    assert substituted("{label:a}", "web1", {"a": value}) == value


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"targets": ()}, "targets and command are required"),
        ({"command": ()}, "targets and command are required"),
        ({"parallel": "0"}, "parallel must be more than zero"),
        ({"parallel": "101%"}, "neither a number nor a percentage"),
        ({"parallel": "-1"}, "neither a number nor a percentage"),
        ({"wave": "0%"}, "wave must be more than zero"),
        ({"stop_after": "0"}, "stopAfter must be more than zero"),
        ({"deadline": 0}, "deadline must be longer than zero"),
        ({"deadline": timedelta(days=8)}, "at most 7 days"),
        ({"pause": 7200}, "pause must not be longer"),
        ({"retry_states": (TargetState.LOST,)}, "retryStates needs retryOf"),
        ({"work_dir": "relative"}, "is not an absolute path"),
        ({"command": ("x" * 200_000,)}, "at most 131072"),
    ],
)
def test_bounds(values: dict[str, Any], message: str) -> None:
    with pytest.raises((ValidationError, InvalidRequest), match=message):
        make(**values)


def test_a_retry_needs_neither_targets_nor_command() -> None:
    assert BatchRequest(retry_of="b-0").command == ()


def test_the_digest_is_of_everything_but_the_id() -> None:
    one = make()
    assert one.digest(("web1",)) == make(id="b-2").digest(("web1",))
    others = [make(command=("false",)), make(parallel="3"), make(stop_after="1"), make(user="web")]
    assert len({one.digest(("web1",)), one.digest(("web2",)), *(other.digest(("web1",)) for other in others)}) == 6


def test_the_request_of_a_target_is_an_ordinary_one() -> None:
    batch = make(
        command=("echo", "{agent}"), user="web", timeout=5, environment={"A": "b"}, stdin=b"x", work_dir="/srv"
    )
    request = batch.execution("e-1", "web1", {})
    assert (request.id, request.agent_id, request.command) == ("e-1", "web1", ("echo", "web1"))
    assert (request.user, request.timeout, request.environment, request.stdin, request.work_dir) == (
        "web", timedelta(seconds=5), {"A": "b"}, b"x", "/srv",
    )  # fmt: skip


@pytest.mark.parametrize(("parallel", "total", "number"), [("50", 10, 50), ("10%", 5, 1), ("100%", 5000, 1000)])
def test_the_number_at_once_has_bounds(parallel: str, total: int, number: int) -> None:
    assert make(parallel=parallel).parallel_of(total) == number


def test_a_gate_is_an_ordinary_request_and_part_of_the_digest() -> None:
    gate = HealthGate(agent_id="lb1", command=("curl", "-f", "{agent}"))
    request = gate.execution("g-1")
    assert (request.id, request.agent_id, request.command) == ("g-1", "lb1", ("curl", "-f", "{agent}"))
    assert request.timeout == timedelta(minutes=1)
    assert make(gate=gate).digest(("web1",)) != make().digest(("web1",))


@pytest.mark.parametrize(
    ("values", "message"),
    [({"command": ()}, "command"), ({"timeout": -1}, "timeout"), ({"command": ("a\0",)}, "NUL|null|control")],
)
def test_bounds_of_a_gate(values: dict[str, Any], message: str) -> None:
    with pytest.raises((ValidationError, InvalidRequest), match=message):
        HealthGate(**{"agent_id": "lb1", "command": ("true",), **values})
