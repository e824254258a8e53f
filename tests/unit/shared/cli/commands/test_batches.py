"""`tachikoma batches`: the forms of its output, and beginnings of ids."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from tachikoma.errors import InvalidRequest, NotFound
from tachikoma.vocabulary.batches import BatchResult, BatchState, BatchStatus, BatchUpdate, TargetState
from tachikoma.vocabulary.messages import OutputKind
from tachikoma.vocabulary.results import ExecOutput

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


def chunk(kind: OutputKind, data: bytes = b"", *, missing: int = 0) -> ExecOutput:
    return ExecOutput(id="e", kind=kind, data=data, missing_bytes=missing)


@pytest.fixture
def written(known: Any) -> Any:
    """A client with the output of three executions of a batch."""
    states = {"web-10": TargetState.SUCCEEDED, "web-9": TargetState.FAILED, "db-1": TargetState.SUCCEEDED}
    results = [BatchResult(agent_id=name, exec_id=f"e-{name}", state=state) for name, state in states.items()]
    results.append(BatchResult(agent_id="gone", state=TargetState.UNREACHABLE))
    updates = (BatchUpdate(status=batch(IDS[0])), *(BatchUpdate(result=result) for result in results))
    output = (
        chunk(OutputKind.STDOUT, b"one\ntw"), chunk(OutputKind.STDERR, b"careful\n"), chunk(OutputKind.GAP, missing=3),
        chunk(OutputKind.STDOUT, b"o\tcells\r\n\x1b[2Jend"),
    )  # fmt: skip
    known.answers |= {"watch_batch": lambda *_, **__: updates, "attach": lambda *_, **__: output}
    return known


def test_logs_have_the_name_of_the_host_in_front_of_each_line(run: Any, written: Any) -> None:
    done = run("batches", "logs", IDS[0], "web-10")
    assert done.out.splitlines() == ["web-10  one", "web-10  two     cells", "web-10  \\x1b[2Jend"]
    assert done.err.splitlines() == ["web-10  careful", "web-10  3 bytes of output are missing"]


@pytest.mark.parametrize(
    ("arguments", "hosts"),
    [
        ((), ["db-1", "web-9", "web-10"]),
        (("web-[9-10]",), ["web-9", "web-10"]),
        (("web-*", "!web-9"), ["web-10"]),
        (("--state", "failed"), ["web-9"]),
        (("--state", "succeeded,failed", "web-*"), ["web-9", "web-10"]),
        (("gone",), []),
    ],
)
def test_logs_of_some_targets(run: Any, written: Any, arguments: tuple[str, ...], hosts: list[str]) -> None:
    shown = run("batches", "logs", IDS[0], *arguments).out
    assert list(dict.fromkeys(line.split()[0] for line in shown.splitlines())) == hosts
    assert len(run("batches", "logs", IDS[0], *arguments, "-o", "json").out.splitlines()) == 4 * len(hosts)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("web-77",), "no target of the batch that has ended: web-77"),
        (("mail-*",), "no agent matches 'mail-*'"),
        (("--state", "broken"), "--state: 'broken' is no state; write failed, or some of pending"),
    ],
)
def test_logs_of_what_is_not_there_are_refused(run: Any, written: Any, arguments: tuple[str, ...], reason: str) -> None:
    error = run("batches", "logs", IDS[0], *arguments).error
    assert isinstance(error, InvalidRequest)
    assert reason in str(error)
