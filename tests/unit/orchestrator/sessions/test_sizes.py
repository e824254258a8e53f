"""The sizes that a terminal has had."""

from __future__ import annotations

import pytest

from tachikoma.vocabulary.requests import WindowSize
from tachikoma_orchestrator.sessions.sizes import DEFAULT, MAX_SIZES, SizeHistory


def test_sizes_have_their_places_in_the_output() -> None:
    sizes = SizeHistory()
    assert sizes.first == DEFAULT
    sizes.add(0, WindowSize(33, 99))
    sizes.add(10, WindowSize(33, 99, 640, 480))
    sizes.add(20, WindowSize(0, 0))
    # A later size is not before an earlier one.
    sizes.add(5, WindowSize(40, 132))
    again = SizeHistory.parse(sizes.encode())
    assert again.first == WindowSize(33, 99)
    assert list(again.changes()) == [(20, DEFAULT), (20, WindowSize(40, 132))]


def test_the_oldest_are_forgotten() -> None:
    sizes = SizeHistory()
    for number in range(1, 200):
        sizes.add(number, WindowSize(number, 80))
    assert len(list(sizes.changes())) == MAX_SIZES - 1
    assert list(sizes.changes())[-1] == (199, WindowSize(199, 80))


@pytest.mark.parametrize("text", ["", "[]", "{", "7", "[[1]]", '[["a", 1, 2]]', "[[1e400, 1, 2]]", "[" * 100_000])
def test_a_text_that_is_no_history_is_an_empty_one(text: str) -> None:
    assert SizeHistory.parse(text).first == DEFAULT
