"""The player of recordings: what it writes, and how long it waits."""

from __future__ import annotations

from tachikoma.cli.commands.player import Pace, play
from tachikoma.sessions.asciicast import CastEvent

EVENTS = [
    CastEvent(0, "m", "attached"), CastEvent(1_000_000, "o", "one"), CastEvent(2_000_000, "i", "typed"),
    CastEvent(12_000_000, "o", "zwei ä"), CastEvent(12_500_000, "x", "0"),
]  # fmt: skip


async def played(pace: Pace) -> tuple[bytes, list[float]]:
    written, waited = bytearray(), []

    async def write(data: bytes) -> None:
        written.extend(data)

    async def sleep(seconds: float) -> None:
        waited.append(seconds)

    await play(EVENTS, write, pace, sleep)
    return bytes(written), waited


async def test_output_comes_at_its_times_and_nothing_else_is_written() -> None:
    assert await played(Pace()) == ("onezwei ä".encode(), [1, 1, 10, 0.5])


async def test_it_is_faster_and_long_pauses_are_cut() -> None:
    assert (await played(Pace(speed=2, idle_seconds=4)))[1] == [0.5, 0.5, 2, 0.25]


async def test_everything_before_the_begin_is_shown_at_once() -> None:
    assert await played(Pace(from_us=10_000_000)) == ("onezwei ä".encode(), [2, 0.5])
