"""The screen of a session from the output in Redis."""

from __future__ import annotations

import pytest

from chunks import append
from output_frames import new_log
from tachikoma.redis.commands import Redis
from tachikoma.streams.frames import STDOUT
from tachikoma.vocabulary.messages import OutputKind
from tachikoma.vocabulary.requests import WindowSize
from tachikoma.vocabulary.results import ExecOutput
from tachikoma_orchestrator.executions.follower import Follower
from tachikoma_orchestrator.sessions import restoration
from tachikoma_orchestrator.sessions.restoration import restored_screen
from tachikoma_orchestrator.sessions.screen import open_screen
from tachikoma_orchestrator.sessions.sizes import SizeHistory
from tachikoma_orchestrator.store.subscriber import Subscriber


async def restored(redis: Redis, sizes: SizeHistory, window: WindowSize) -> tuple[list[ExecOutput], Follower]:
    follower = Follower(redis, Subscriber(redis), "web-1", "job-7", 0)
    return [message async for message in restored_screen("job-7", follower, sizes, window)], follower


def shown(messages: list[ExecOutput], window: WindowSize) -> list[str]:
    screen = open_screen(window)
    for message in messages:
        assert message.kind is OutputKind.SCREEN
        screen.feed(message.data)
    return screen.text()


async def test_the_output_so_far_is_drawn_and_the_follower_continues(redis: Redis) -> None:
    log = new_log(redis)
    window = WindowSize(4, 10)
    sizes = SizeHistory()
    sizes.add(0, window)
    await append(log, [(STDOUT, b"0123456789ab\r\n")])
    # The terminal was 20 columns wide from here on.
    sizes.add(14, WindowSize(4, 20))
    await append(log, [(STDOUT, b"0123456789ab\x1b[1")])
    messages, follower = await restored(redis, sizes, WindowSize(4, 20))
    assert shown(messages, WindowSize(4, 20))[:2] == ["0123456789ab", "0123456789ab"]
    assert (messages[-1].seq, messages[-1].offset) == (2, 29)
    await append(log, [(STDOUT, b"Gcd")])
    later = [output async for output in follower.replay()]
    assert [output.data for output in later] == [b"Gcd"]
    assert shown([*messages, later[0].model_copy(update={"kind": OutputKind.SCREEN})], WindowSize(4, 20))[1] == (
        "cd23456789ab"
    )


async def test_the_begin_of_an_output_that_was_cut_counts(redis: Redis) -> None:
    log = new_log(redis, log_bytes=8000)
    await append(log, [(STDOUT, b"\x1b[?1049h\x1b[?2004h")])
    for number in range(200):
        await append(log, [(STDOUT, b"\x1b[Hnumber %3d " % number + b"x" * 60)])
    messages, _ = await restored(redis, SizeHistory(), WindowSize(24, 80))
    drawing = b"".join(message.data for message in messages)
    assert b"\x1b[?2004h" in drawing.partition(b"\x1b[2J")[2]
    assert shown(messages, WindowSize(24, 80))[0].startswith("number 199 x")


async def test_a_session_without_output_has_an_empty_screen(redis: Redis) -> None:
    messages, follower = await restored(redis, SizeHistory(), WindowSize(24, 80))
    assert shown(messages, WindowSize(24, 80)) == [""] * 24
    assert (follower.seq, messages[-1].seq, messages[-1].offset) == (0, 0, 0)


async def test_a_large_drawing_comes_in_parts(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    log = new_log(redis)
    await append(log, [(STDOUT, b"".join(b"\x1b[38;5;%dm%d\r\n" % (n % 256, n) for n in range(3000)))])
    monkeypatch.setattr(restoration, "PART_BYTES", 1000)
    messages, _ = await restored(redis, SizeHistory(), WindowSize(24, 80))
    assert len(messages) > 5
    # A caller whose connection breaks before the last part begins again.
    assert [message.seq for message in messages[:-1]] == [0] * (len(messages) - 1)
    assert messages[-1].seq == 1
    assert shown(messages, WindowSize(24, 80))[22] == "2999"
