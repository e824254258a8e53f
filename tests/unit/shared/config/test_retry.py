"""Back-off."""

from __future__ import annotations

import asyncio

import pytest

from tachikoma.config.retry import Backoff


def test_delays_double_up_to_the_limit_and_begin_again_after_a_success() -> None:
    backoff = Backoff(0.5, 3)
    assert [backoff.advance() for _ in range(5)] == [0.5, 1, 2, 3, 3]
    backoff.reset()
    assert backoff.next_seconds == 0.5
    assert backoff.advance() == 0.5


def test_equal_bounds_give_a_constant_delay() -> None:
    backoff = Backoff(2, 2)
    assert [backoff.advance() for _ in range(3)] == [2, 2, 2]


async def test_waiting_takes_the_next_delay(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    backoff = Backoff(1, 4)
    for _ in range(4):
        await backoff.wait()
    assert slept == [1, 2, 4, 4]


@pytest.mark.parametrize(("first", "limit"), [(0, 1), (-1, 1), (2, 1)])
def test_impossible_delays_are_refused(first: float, limit: float) -> None:
    with pytest.raises(ValueError, match="0 < first_seconds <= limit_seconds"):
        Backoff(first, limit)
