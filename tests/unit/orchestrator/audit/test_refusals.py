"""The budget of events about refusals: bounded for each subject, and nothing uncounted."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tachikoma.vocabulary.audit import AuditCode
from tachikoma_orchestrator.audit import refusals as module
from tachikoma_orchestrator.audit.refusals import REFILL_SECONDS, RefusalBudget, address_subject

ALICE, BOB = "spiffe://a/user/alice", "spiffe://a/user/bob"


class Clock:
    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


@pytest.mark.parametrize(
    ("address", "subject"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("2001:db8::1", "2001:db8::/64"),
        ("2001:db8::ffff:1", "2001:db8::/64"),
        ("2001:db8:0:1::1", "2001:db8:0:1::/64"),
        ("", "an unknown address"),
        ("unix:", "an unknown address"),
    ],
)
def test_an_address_without_an_identity_is_a_subject(address: str, subject: str) -> None:
    assert address_subject(address) == subject


def test_a_subject_has_its_burst_and_then_one_at_a_time() -> None:
    clock = Clock()
    budget = RefusalBudget(3, clock)
    assert [budget.admits(ALICE) for _ in range(5)] == [True, True, True, False, False]
    assert budget.admits(BOB)
    clock.seconds = REFILL_SECONDS
    assert [budget.admits(ALICE) for _ in range(2)] == [True, False]
    budget.give_back(ALICE)
    assert budget.admits(ALICE)


def test_what_is_left_out_is_counted_once_by_code() -> None:
    clock = Clock()
    budget = RefusalBudget(1, clock)
    budget.leave_out(ALICE, AuditCode.DENIED, 7)
    budget.leave_out(ALICE, AuditCode.MALFORMED)
    (left_out,) = budget.take_left_out()
    assert left_out.numbers == {AuditCode.DENIED: 7, AuditCode.MALFORMED: 1}
    assert left_out.reason == f"8 refusals of {ALICE} have no event of their own: 7 denied, 1 malformed"
    assert list(budget.take_left_out()) == []


def test_callers_with_many_addresses_share_one_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_SUBJECTS", 10)
    budget = RefusalBudget(2, Clock())
    admitted = sum(budget.admits(f"10.0.{number // 250}.{number % 250}") for number in range(1000))
    assert admitted == 10 + 2
    assert len(budget._budgets) == 11


@given(st.lists(st.tuples(st.sampled_from([ALICE, BOB]), st.floats(0, 500)), max_size=60), st.integers(1, 5))
def test_every_refusal_is_recorded_or_counted_and_the_recorded_ones_are_bounded(
    refusals: list[tuple[str, float]], burst: int
) -> None:
    clock = Clock()
    budget = RefusalBudget(burst, clock)
    recorded: Counter[str] = Counter()
    counted: Counter[str] = Counter()
    for subject, later in refusals:
        clock.seconds += later
        if budget.admits(subject):
            recorded[subject] += 1
        else:
            budget.leave_out(subject, AuditCode.DENIED)
    for left_out in budget.take_left_out():
        counted[left_out.subject] += left_out.numbers.total()
    assert recorded + counted == Counter(subject for subject, _ in refusals)
    assert all(number <= burst + clock.seconds / REFILL_SECONDS + 1e-6 for number in recorded.values())
