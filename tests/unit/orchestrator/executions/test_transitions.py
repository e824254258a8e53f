"""Changes of a record, as the arguments of their script."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import pytest

from tachikoma.identity.signed_messages import OutputDigest, Receipt
from tachikoma.vocabulary.results import KillReceipt
from tachikoma.vocabulary.states import ExecState
from tachikoma_orchestrator.executions.record import REPORTED
from tachikoma_orchestrator.executions.transitions import FENCE, Transition, receipt_fields

ALICE, BOB = "spiffe://x/user/alice", "spiffe://x/user/bob"


def receipt(**values: Any) -> Receipt:
    digest = OutputDigest(total_bytes=3, sha256="ab" * 32, truncated=False, excerpt_sha256="ab" * 32)
    defaults: dict[str, Any] = {
        "iss": "spiffe://x/agent/web-1", "iat": 1, "jti": "job-7", "order_sha256": "order", "exit_code": 0, "signal": 0,
        "state": ExecState.SUCCEEDED, "error": "", "executable": "/bin/true", "started_ms": 5, "ended_ms": 7,
        "duration_us": 2000, "chunks": 2, "stdout": digest, "stderr": digest,
    }  # fmt: skip
    return Receipt(**{**defaults, **values})


def arguments(transition: Transition) -> dict[str, Any]:
    """What the script gets, after the way through JSON; lists of names and values as dictionaries."""
    found: dict[str, Any] = json.loads(json.dumps(transition.arguments(keep_seconds=60)))
    for name in ("fields", "event"):
        found[name] = dict(zip(found[name][::2], found[name][1::2], strict=True))
    return found


def test_a_receipt_sets_every_field_that_is_compared_with_it_later() -> None:
    kill = KillReceipt(empty=True, whole=True, signals=(15, 9))
    for signed in (receipt(), receipt(state=ExecState.TIMED_OUT, kill=kill)):
        assert tuple(receipt_fields(signed, "token")) == REPORTED


def test_a_completion_answers_its_order_and_reports_the_start() -> None:
    found = arguments(Transition.completion("web-1", "job-7", receipt(), "token"))
    assert (found["sources"], found["target"], found["terminal"]) == (["QUEUED", "STARTED"], "SUCCEEDED", True)
    assert (found["order_sha256"], found["start_ms"], found["keep_seconds"]) == ("order", "5", 60)
    assert (found["event"]["event"], found["event"]["start_ms"]) == ("succeeded", "5")
    never_started = Transition.completion("web-1", "job-7", receipt(started_ms=0), "token")
    assert arguments(never_started)["start_ms"] == ""


def test_an_approval_sets_a_new_deadline() -> None:
    found = arguments(
        Transition.approval(
            "web-1", "job-7", wait=timedelta(minutes=3), by=BOB, reason="ok", digest="ab" * 32, waits=True
        )
    )
    assert (found["sources"], found["target"], found["terminal"]) == (["PENDING_APPROVAL"], "QUEUED", False)
    assert (found["wait_ms"], found["fields"]["waits"], found["event"]["actor"]) == (180_000, "1", BOB)


@pytest.mark.parametrize("fence", [True, False])
def test_a_settlement_says_why_and_may_fence(fence: bool) -> None:
    found = arguments(
        Transition.settlement(
            "web-1", "job-7", [ExecState.QUEUED], ExecState.CANCELLED, reason="why", by=ALICE, fence=fence
        )
    )
    assert found["fence"] == (FENCE if fence else "")
    assert found["fields"] == {"error": "why", "cancel_requested_by": ALICE}
    assert found["event"] == {
        "event": "cancelled", "id": "job-7", "agent_id": "web-1", "authorized": "1", "reason": "why", "actor": ALICE,
    }  # fmt: skip


def test_only_a_cancelled_execution_says_who_cancelled_it() -> None:
    lost = Transition.settlement("web-1", "job-7", [ExecState.STARTED], ExecState.LOST, reason="", by=BOB, fence=False)
    assert arguments(lost)["fields"] == {"error": ""}


def test_a_cancel_request_and_a_start_leave_what_they_do_not_change() -> None:
    asked = arguments(Transition.cancel_request("web-1", "job-7", BOB))
    assert (asked["target"], asked["terminal"], asked["wait_ms"]) == ("", False, 0)
    started = arguments(Transition.start("web-1", "job-7", 5))
    assert (started["target"], started["fields"]) == ("STARTED", {"started_ms": "5"})


def test_each_change_has_an_id_of_its_own_and_keeps_it() -> None:
    one, other = (Transition.start("web-1", "job-7", 5) for _ in range(2))
    assert one.change_id != other.change_id
    assert one.arguments(keep_seconds=1) == one.arguments(keep_seconds=1)
