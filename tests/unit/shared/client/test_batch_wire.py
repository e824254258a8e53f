"""Batches between the vocabulary and protobuf; `test_wire.py` looks at each field of the tables."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tachikoma.client import batch_wire
from tachikoma.errors import InvalidRequest, ServerError
from tachikoma.exec.v1 import remote_execution_pb2 as pb
from tachikoma.vocabulary.batches import (
    BatchPreview,
    BatchRequest,
    BatchResult,
    BatchState,
    BatchStatus,
    BatchUpdate,
    HealthGate,
    PreviewedTarget,
    StopCause,
    TargetState,
)
from tachikoma.vocabulary.limits import ResourceLimits

NOW = datetime(2026, 1, 31, 12, 0, 0, 123456, tzinfo=UTC)
STATUS = BatchStatus(
    id="b-1", state=BatchState.STOPPED, requested_by="spiffe://tachikoma.local/user/alice", command=("uptime", "ä"),
    digest="ab" * 32, total=3, totals={TargetState.FAILED: 2, TargetState.NOT_STARTED: 1}, failures=2, reason="why",
    submit_time=NOW, end_time=NOW + timedelta(seconds=1),
)  # fmt: skip
REQUEST = BatchRequest(
    id="b-1", targets=("web[1-9]", "!web7"), command=("echo", "{agent}"), work_dir="/srv", environment={"A": "b"},
    stdin=b"\0\xff", timeout=timedelta(seconds=5), user="web", limits=ResourceLimits(pids=5), parallel="25%", canary=2,
    wave="10%", pause=timedelta(seconds=3), stop_after="3", stop_on=(StopCause.DENIED, StopCause.EXPIRED),
    deadline=timedelta(hours=2), retry_of="b-0", retry_states=(TargetState.FAILED, TargetState.NOT_STARTED),
    gate=HealthGate(agent_id="lb1", command=("curl", "-f", "x"), timeout=timedelta(seconds=3)),
)  # fmt: skip


def over_the_wire(message: Any) -> Any:
    """The message as the other side gets it."""
    return type(message).FromString(message.SerializeToString())


@pytest.mark.parametrize(
    "request_", [REQUEST, BatchRequest(targets=("a",), command=("b",)), BatchRequest(retry_of="b-0")]
)
def test_a_request_arrives_as_it_was_sent(request_: BatchRequest) -> None:
    assert batch_wire.request_from_pb(over_the_wire(batch_wire.request_to_pb(request_))) == request_


def test_what_a_request_leaves_out_has_its_default() -> None:
    read = batch_wire.request_from_pb(pb.BatchRequest(id="b", targets=["a"], command=["b"]))
    assert read == BatchRequest(id="b", targets=("a",), command=("b",))


@pytest.mark.parametrize(
    ("message", "named"),
    [
        (pb.BatchRequest(command=["x"]), "targets and command are required"),
        (pb.BatchRequest(targets=["a"], command=["x"], parallel="0"), "parallel: must be more than zero"),
        (pb.BatchRequest(targets=["a"], command=["x"], stop_after="many"), "neither a number nor a percentage"),
        (pb.BatchRequest(targets=["a"], command=["x"], stop_on=[99]), "99 is no StopCause"),
    ],
)
def test_a_bound_that_is_broken_is_named(message: pb.BatchRequest, named: str) -> None:
    with pytest.raises(InvalidRequest, match=named):
        batch_wire.request_from_pb(message)


@pytest.mark.parametrize(
    "update",
    [
        BatchUpdate(status=STATUS),
        BatchUpdate(status=STATUS.model_copy(update={"end_time": None})),
        BatchUpdate(result=BatchResult(agent_id="web1", state=TargetState.UNREACHABLE, error="OFFLINE")),
        BatchUpdate(
            result=BatchResult(
                agent_id="web1", exec_id="e", state=TargetState.FAILED, exit_code=2, error="x", stdout_sha256="ab" * 32,
                stderr_sha256="cd" * 32, stdout_bytes=2**40, stderr_bytes=1, stdout=b"", stderr=b"\xff",
            )
        ),
    ],
)  # fmt: skip
def test_an_update_arrives_as_it_was_sent(update: BatchUpdate) -> None:
    assert batch_wire.update_from_pb(over_the_wire(batch_wire.update_to_pb(update))) == update


def test_a_preview_arrives_as_it_was_sent() -> None:
    preview = BatchPreview(
        digest="ab" * 32, time=NOW,
        targets=(
            PreviewedTarget(agent_id="a", state=TargetState.PENDING),
            PreviewedTarget(agent_id="b", state=TargetState.DENIED, reason="why"),
        ),
    )  # fmt: skip
    assert batch_wire.preview_from_pb(over_the_wire(batch_wire.preview_to_pb(preview))) == preview


def test_a_state_of_a_newer_server_is_an_error_of_ours() -> None:
    with pytest.raises(ServerError):
        batch_wire.status_from_pb(pb.BatchStatus(id="b", state=99))  # type: ignore[arg-type]
