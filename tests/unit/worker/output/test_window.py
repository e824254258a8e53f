"""The output window: unlimited without acknowledgements, short for a slow terminal, wide for a fast one."""

from __future__ import annotations

import asyncio
import heapq

import pytest
from hypothesis import given
from hypothesis import strategies as st

from patience import PATIENCE_SECONDS
from tachikoma_worker.output.window import AHEAD_SECONDS, PIPE_BYTES, TERMINAL_BYTES, OutputWindow

LEAST, MOST = TERMINAL_BYTES
#: Bytes of one chunk, as a pipe gives them.
CHUNK = 8192


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


async def has_room(window: OutputWindow, position: int) -> bool:
    waiting = asyncio.ensure_future(window.room(position))
    for _ in range(3):
        await asyncio.sleep(0)
    if waiting.done():
        return True
    waiting.cancel()
    return False


async def test_there_is_no_limit_until_output_is_acknowledged() -> None:
    window = OutputWindow(terminal=True)
    assert await has_room(window, 1 << 40)
    window.acknowledge(100)
    assert await has_room(window, 100 + LEAST - 1)
    assert not await has_room(window, 100 + LEAST)


async def test_waiting_output_continues_with_an_acknowledgement_and_without_a_caller() -> None:
    window = OutputWindow(terminal=True)
    window.acknowledge(0)
    for wake in (lambda: window.acknowledge(LEAST), window.open):
        waiting = asyncio.ensure_future(window.room(LEAST + 5))
        if window.size:
            await asyncio.sleep(0)
        wake()
        await asyncio.wait_for(waiting, PATIENCE_SECONDS)
        window.acknowledge(0)


async def test_an_acknowledgement_never_goes_back() -> None:
    window = OutputWindow(terminal=True)
    window.acknowledge(5000)
    window.acknowledge(10)
    assert await has_room(window, 5000 + LEAST - 1)


async def test_a_command_without_a_terminal_has_a_constant_window() -> None:
    window = OutputWindow()
    window.acknowledge(0)
    assert window.size == PIPE_BYTES
    assert not await has_room(window, PIPE_BYTES)


def simulate(rate: float, delay: float, seconds: float) -> tuple[float, int]:
    """Write without a pause to a terminal.

    Args:
        rate: bytes that it takes in a second.
        delay: time for its acknowledgements on top of that.
        seconds: how long.

    Returns:
        The rate that it reached, and the output that was under way at the end.
    """
    clock = Clock()
    window = OutputWindow(terminal=True, clock=clock)
    window.acknowledge(0)
    start, taken, shown, free = clock.now, 0, 0, clock.now
    under_way: list[tuple[float, int]] = []
    while clock.now - start < seconds:
        while taken - shown < window.size:
            taken += CHUNK
            window.taken(taken)
            free = max(free, clock.now) + CHUNK / rate
            heapq.heappush(under_way, (free + delay, taken))
        window._waited = True
        clock.now, shown = heapq.heappop(under_way)
        window.acknowledge(shown)
    return shown / seconds, taken - shown


@pytest.mark.parametrize("delay", [0.001, 0.02, 0.2])
@pytest.mark.parametrize("rate", [200_000.0, 2_000_000.0, 20_000_000.0])
def test_a_terminal_is_kept_busy_and_not_flooded(rate: float, delay: float) -> None:
    reached, ahead = simulate(rate, delay, 20)
    # With the smallest window, a far terminal is limited by its delay; a window of more than that is not needed.
    assert reached > 0.6 * min(rate, MOST / (delay + AHEAD_SECONDS))
    assert ahead <= max(2 * LEAST, rate * (2 * delay + 2 * AHEAD_SECONDS)) + CHUNK


@given(st.lists(st.tuples(st.sampled_from(["take", "acknowledge", "open"]), st.integers(0, 10**7), st.floats(0, 2))))
def test_whatever_a_caller_acknowledges_the_window_stays_in_its_bounds(steps: list[tuple[str, int, float]]) -> None:
    clock = Clock()
    window = OutputWindow(terminal=True, clock=clock)
    for kind, position, pause in steps:
        clock.now += pause
        if kind == "take":
            window.taken(position)
        elif kind == "acknowledge":
            window.acknowledge(position)
        else:
            window.open()
        assert LEAST <= window.size <= MOST
