"""The receipts on which a decision about a batch rests."""

from __future__ import annotations

import hashlib

from tachikoma.vocabulary.batches import TargetState
from tachikoma_orchestrator.batches.grounds import MAX_NAMED, Ended, Grounds


def ended(number: int, state: TargetState = TargetState.SUCCEEDED) -> Ended:
    return Ended(f"web-{number}", state, f"e{number}", f"{number:064x}")


def test_each_execution_is_named_and_the_digest_is_over_their_receipts_in_order() -> None:
    found = Grounds.of([ended(2), ended(1, TargetState.FAILED)])
    assert found.text == "e1 FAILED, e2 SUCCEEDED"
    assert found.evidence == hashlib.sha256(f"{2:064x}\n{1:064x}\n".encode()).hexdigest()


def test_the_receipt_of_a_gate_comes_last() -> None:
    found = Grounds.of([ended(1)], "ab")
    assert found.evidence == hashlib.sha256(f"{1:064x}\nab\n".encode()).hexdigest()
    assert found.text == "e1 SUCCEEDED"


def test_a_target_without_an_execution_is_named_by_its_agent_and_has_no_receipt() -> None:
    found = Grounds.of([Ended("web-1", TargetState.UNREACHABLE)])
    assert found == Grounds("web-1 UNREACHABLE", "")


def test_what_did_not_succeed_comes_first_and_the_rest_is_counted() -> None:
    targets = [ended(number) for number in range(1000)] + [ended(1000, TargetState.LOST)]
    found = Grounds.of(targets)
    assert found.text.startswith("e1000 LOST, e0 SUCCEEDED, ")
    assert found.text.endswith(f", {1001 - MAX_NAMED} more")
    assert found.text.count(",") == MAX_NAMED
    assert found.evidence != Grounds.of(targets[:-1]).evidence


def test_nothing_has_no_grounds() -> None:
    assert Grounds.of([]) == Grounds("", "")
