"""`tachikoma batches approvals`, `approve` and `reject`."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tachikoma import BatchRequest, BatchState, InvalidRequest, NotFound, TargetState
from tachikoma.vocabulary.batches import ApprovalNeed, BatchApproval, BatchPreview, BatchStatus

DIGEST = "ab" * 32
NOW = datetime.now(UTC)
NEED = ApprovalNeed(policy="web", targets=12, above=10, approvers=("spiffe://example.org/user/boss",))
STATUS = BatchStatus(
    id="4f1c2a9d8e7b", state=BatchState.PENDING_APPROVAL, requested_by="spiffe://example.org/user/alice",
    command=("systemctl", "restart", "nginx"), digest="00" * 32, total=12, totals={TargetState.PENDING: 12},
    submit_time=NOW, deadline=NOW + timedelta(hours=1), needs=(NEED,),
)  # fmt: skip
REQUEST = BatchRequest(
    id=STATUS.id, targets=("web*",), command=("sh", "-c", "echo a\n echo b"), environment={"A": "1\nid  x"},
    stdin=b"first\n", parallel="4", canary=1, stop_after="2", timeout=timedelta(seconds=90),
)  # fmt: skip


@pytest.fixture
def waiting(client: Any) -> BatchApproval:
    """A batch that waits for its approval, and a client that knows it by its whole id."""
    found = BatchApproval(
        status=STATUS, request=REQUEST, targets=tuple(f"web{number:02}" for number in range(1, 13)), needs=(NEED,),
        denied=("web12",), digest=DIGEST,
    )  # fmt: skip

    def known(answer: Any) -> Any:
        def call(batch_id: str, *_: Any) -> Any:
            if batch_id != STATUS.id:
                raise NotFound(f"no batch {batch_id!r} waits for your approval")
            return answer

        return call

    client.answers |= {
        "batch_approvals": (STATUS,), "batch_approval": known(found),
        "approve_batch": known(STATUS.model_copy(update={"state": BatchState.RUNNING})),
        "reject_batch": known(STATUS.model_copy(update={"state": BatchState.REJECTED})),
    }  # fmt: skip
    return found


def test_waiting_batches_are_listed(run: Any, waiting: BatchApproval) -> None:
    lines = run("batches", "approvals").out.splitlines()
    assert lines[0].split() == ["BATCH", "TARGETS", "BY", "ASKED", "UNTIL", "APPROVERS", "COMMAND"]
    assert lines[1].split()[:3] == ["4f1c2a9d8e7b", "12", "user/alice"]
    assert "user/boss" in lines[1]
    assert json.loads(run("batches", "approvals", "-o", "json").out)[0]["needs"][0]["above"] == 10


def test_one_batch_is_shown_with_its_folded_targets_and_no_value_looks_like_another_fact(
    run: Any, waiting: BatchApproval
) -> None:
    lines = run("batches", "approvals", "4f1c").out.splitlines()
    facts = [(line[:14].strip(), line[14:].strip()) for line in lines]
    assert ("targets", "12: web[01-12]") in facts
    assert ("denied", "1: web12") in facts
    assert ("command", r"sh -c $'echo a\n echo b'") in facts
    assert ("variable", r"A=$'1\nid  x'") in facts
    assert ("canary", "1") in facts
    assert ("stop after", "2") in facts
    assert ("timeout", "1m30s") in facts
    assert ("| first") in [value for name, value in facts if not name]
    assert any("policy web requires an approval of 12 targets, more than 10, by" in line for line in lines)
    assert facts[-1] == ("digest", DIGEST)


def test_approve_shows_the_batch_and_asks_with_the_number_of_targets(
    run: Any, client: Any, waiting: BatchApproval
) -> None:
    done = run("batches", "approve", STATUS.id, answers=["y", "looks right"])
    assert "approve this on 12 targets?" in done.err
    assert done.out.endswith("4f1c2a9d8e7b: approved (RUNNING)\n")
    assert client.calls[-1] == ("approve_batch", (STATUS.id, DIGEST, "looks right"), {})
    assert run("batches", "approve", STATUS.id, answers=["n"]).code == 1
    assert client.calls[-1][0] == "batch_approval"


def test_a_reviewed_digest_is_approved_without_a_question(run: Any, client: Any, waiting: BatchApproval) -> None:
    done = run("batches", "approve", "4f1c2", "--digest", DIGEST, "-m", "change 4711", "-o", "name")
    assert done.out == "4f1c2a9d8e7b\n"
    assert client.calls[-1] == ("approve_batch", (STATUS.id, DIGEST, "change 4711"), {})


def test_reject_needs_a_reason(run: Any, client: Any, waiting: BatchApproval) -> None:
    assert run("batches", "reject", "4f1c", "-m", "too many").out == "4f1c2a9d8e7b: rejected (REJECTED)\n"
    assert client.calls[-1] == ("reject_batch", (STATUS.id, "too many"), {})
    assert isinstance(run("batches", "reject", STATUS.id).error, InvalidRequest)


@pytest.mark.parametrize("beginning", ["4f1", "9999"])
def test_an_unknown_beginning_is_reported(run: Any, waiting: BatchApproval, beginning: str) -> None:
    assert isinstance(run("batches", "approve", beginning, "--digest", DIGEST, "-m", "x").error, NotFound)


def test_a_preview_says_that_an_approval_is_required(run: Any, client: Any) -> None:
    client.answers["preview_batch"] = BatchPreview(digest=DIGEST, targets=(), needs=(NEED,))
    assert "policy web requires an approval of 12 targets" in run("run", "--preview", "web*", "--", "true").out
