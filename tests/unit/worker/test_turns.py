"""Requesters share an agent's slots, whatever they have put on its queues."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tachikoma_worker.turns import Turns

QUEUES = ["a", "b", "c", "d"]


def test_one_requester_leaves_slots_for_another() -> None:
    turns = Turns(64)
    taken = 0
    while "a" in turns.open(QUEUES):
        turns.begin("a")
        taken += 1
    assert taken == 60
    assert turns.open(QUEUES) == ["b", "c", "d"]


def test_the_reserve_is_shared_too_and_ends() -> None:
    turns = Turns(64)
    for _ in range(60):
        turns.begin("a")
    for queue in "bbcd":
        assert queue in turns.open(QUEUES)
        turns.begin(queue)
    assert turns.open(QUEUES) == []
    turns.end("a")
    # One free slot belongs to the reserve, and a has more than its part.
    assert turns.open(QUEUES) == ["b", "c", "d"]


def test_few_slots_have_no_reserve() -> None:
    turns = Turns(2)
    turns.begin("a")
    assert turns.open(QUEUES) == QUEUES
    turns.begin("a")
    assert turns.open(QUEUES) == []


def test_an_end_that_comes_twice_frees_no_slot_of_another_queue() -> None:
    turns = Turns(1)
    turns.begin("a")
    turns.end("b")
    assert turns.open(QUEUES) == []


def test_the_hub_is_woken_only_once_there_is_one() -> None:
    class Hub:
        calls: list[Any] = []  # noqa: RUF012 (read by the test)

        def call_later(self, seconds: float, action: Any) -> None:
            self.calls.append(seconds)
            action()

    turns, hub = Turns(1), Hub()
    turns.wake_after(1)
    turns.use(hub)
    turns.wake_after(2)
    assert hub.calls == [2]


@given(st.integers(1, 200), st.lists(st.sampled_from(QUEUES), max_size=400))
def test_no_more_than_the_slots_are_ever_occupied_and_no_slot_stays_free_for_long(
    slots: int, wanted: list[str]
) -> None:
    turns = Turns(slots)
    occupied: list[str] = []
    for queue in wanted:
        if queue in turns.open(QUEUES):
            turns.begin(queue)
            occupied.append(queue)
        elif occupied:
            turns.end(occupied.pop(0))
        assert len(occupied) <= slots
        if not occupied:
            assert turns.open(QUEUES) == QUEUES
