"""Requests of batches: their bounds and digests."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from pydantic import ValidationError

from tachikoma.errors import InvalidRequest
from tachikoma.vocabulary.batches import BatchRequest, HealthGate, TargetState
from tachikoma.vocabulary.states import ExecState


def make(**values: Any) -> BatchRequest:
    return BatchRequest(**{"id": "b-1", "targets": ("web*",), "command": ("true",), **values})


def test_every_final_state_of_an_execution_is_one_of_a_target() -> None:
    assert {TargetState(state) for state in ExecState if state.terminal} < set(TargetState)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"targets": ()}, "targets and command are required"),
        ({"command": ()}, "targets and command are required"),
        ({"parallel": "0"}, "parallel: must be more than zero"),
        ({"parallel": "101%"}, "neither a number nor a percentage"),
        ({"parallel": "-1"}, "neither a number nor a percentage"),
        ({"wave": "0%"}, "wave: must be more than zero"),
        ({"stop_after": "0"}, "stop_after: must be more than zero"),
        ({"deadline": 0}, "deadline must be longer than zero"),
        ({"deadline": timedelta(days=8)}, "at most 7 days"),
        ({"pause": 7200}, "pause must not be longer"),
        (
            {"retry_states": (TargetState.LOST,)},
            "^invalid BatchRequest: retry_states: only for a batch that runs an earlier one again$",
        ),
        ({"work_dir": "relative"}, "^invalid BatchRequest: work_dir: .* is not an absolute path"),
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
