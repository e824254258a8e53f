"""`tachikoma batches`: the forms of its output, and beginnings of ids."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from tachikoma.errors import InvalidRequest, NotFound
from tachikoma.vocabulary.batches import BatchResult, BatchState, BatchStatus, BatchUpdate, TargetState

IDS = ("4f1c2a9d8e7b", "4f1c00000000")


def batch(batch_id: str) -> BatchStatus:
    return BatchStatus(
        id=batch_id, state=BatchState.RUNNING, requested_by="spiffe://x/user/alice", command=("true",),
        digest="00" * 32, total=2, totals={TargetState.RUNNING: 1, TargetState.SUCCEEDED: 1}, failures=0, reason="",
        submit_time=datetime.now(UTC),
    )  # fmt: skip


@pytest.fixture
def known(client: Any) -> Any:
    """A client that knows two batches."""
    found = {batch_id: batch(batch_id) for batch_id in IDS}

    def checked(answer: Callable[[BatchStatus], Any]) -> Callable[..., Any]:
        def call(batch_id: str, **_: Any) -> Any:
            if batch_id not in found:
                raise NotFound(f"there is no batch {batch_id!r}")
            return answer(found[batch_id])

        return call

    def updates(status: BatchStatus) -> tuple[BatchUpdate, ...]:
        result = BatchResult(agent_id="web-1", exec_id="e-1", state=TargetState.SUCCEEDED)
        return BatchUpdate(status=status), BatchUpdate(result=result)

    client.answers |= {
        "watch_batch": checked(updates), "cancel_batch": checked(lambda status: status),
        "batches": tuple(found.values()),
    }  # fmt: skip
    return client


@pytest.mark.parametrize("command", ["status", "cancel"])
def test_a_beginning_of_the_id_is_enough(run: Any, known: Any, command: str) -> None:
    assert run("batches", command, "4f1c2", "-o", "name").out == f"{IDS[0]}\n"
    error = run("batches", command, "4f1c").error
    assert isinstance(error, InvalidRequest)
    assert str(error).startswith("2 batches begin with '4f1c': 4f1c2a9d8e7b, 4f1c00000000")
    assert isinstance(run("batches", command, "4f1").error, NotFound)
    assert isinstance(run("batches", command, "999999").error, NotFound)


def test_jsonl_is_one_line(run: Any, known: Any) -> None:
    shown = run("batches", "status", IDS[0], "-o", "jsonl").out
    assert shown.count("\n") == 1
    assert json.loads(shown) == json.loads(run("batches", "status", IDS[0], "-o", "json").out)
    assert json.loads(shown)["results"][0]["agentId"] == "web-1"
    assert run("batches", "cancel", IDS[0], "-o", "jsonl").out.count("\n") == 1


def test_people_read_the_state_and_the_totals(run: Any, known: Any) -> None:
    shown = run("batches", "status", IDS[0])
    assert "running" in shown.out
    assert "1 of 2 targets succeeded" in shown.err
    assert "1 executions are being cancelled" in run("batches", "cancel", IDS[0]).out
