"""The screen of a session from the output in Redis."""

from __future__ import annotations

import pytest

from chunks import append
from output_frames import new_log
from tachikoma.redis.commands import Redis
from tachikoma.streams.frames import FIELD, MODES, STDOUT, Frame
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


#: A program that changes the terminal between the retained beginning and the retained end of its output.
CHANGES = {
    "pasting": b"\x1b[?2004h",
    "mouse": b"\x1b[?1000h\x1b[?1006h",
    "the cursor": b"\x1b[?25l",
    "the alternate screen": b"\x1b[?1049h",
    "margins": b"\x1b[2;5r",
    "margins and origin": b"\x1b[2;5r\x1b[?6h",
    "no wrapping": b"\x1b[?7l",
    "keys of the cursor": b"\x1b[?1h\x1b=",
    "a title": "\x1b]2;é notes\x07".encode(),
    "an end of the alternate screen": b"\x1b[?1049l\x1b[r",
    "a reset": b"\x1bc",
    "in two parts": b"\x1b[?20",
}


def tail_of(columns: int) -> list[bytes]:
    """Output that draws the whole screen again, in whichever modes."""
    line = b"x" * (columns + 5)
    rows = [b"\x1b[%d;1H%d %s" % (row, row, line) for row in range(1, 7)]
    return [b"\x1b[H\x1b[2J", *rows] * 30


@pytest.mark.parametrize("change", list(CHANGES))
async def test_modes_that_changed_in_the_lost_middle_are_known(redis: Redis, change: str) -> None:
    window = WindowSize(6, 40)
    log = new_log(redis, log_bytes=12_000, terminal=True)
    whole = open_screen(window)
    begin = [b"\x1b[?1049h\x1b[2;4r\x1b[?2004h"] if "end" in change or "reset" in change else [b"$ "]
    middle = [b"filling %d\r\n" % number for number in range(100)]
    split = [b"04h"] if change == "in two parts" else []
    for part in [*begin, *middle, CHANGES[change], *split, *middle, *tail_of(window.columns)]:
        await append(log, [(STDOUT, part)])
        whole.feed(part)
    sizes = SizeHistory()
    sizes.add(0, window)
    messages, follower = await restored(redis, sizes, window)
    assert follower.modes is not None
    drawn = open_screen(window)
    for message in messages:
        drawn.feed(message.data)
    # Programs go on in the same modes.
    for later in (b"", b"\x1b[1;1Hone" + b"y" * 60, b"\x1b[5;1Htwo\r\nthree\r\nfour"):
        drawn.feed(later)
        whole.feed(later)
        assert drawn.text() == whole.text()
    after, wanted = (screen._modes.checkpoint() for screen in (drawn, whole))  # type: ignore[attr-defined]
    # The drawing selects the alternate screen by the sequence that all terminals know.
    assert after.replace("?1047h", "?1049h") == wanted


async def test_a_checkpoint_that_an_attacker_wrote_changes_only_the_drawing(redis: Redis) -> None:
    """The owner of Redis can change what is drawn anyway; it must not end the call, nor use much memory."""
    log = new_log(redis, log_bytes=8000, terminal=True)
    for number in range(200):
        await append(log, [(STDOUT, b"%d\r\n" % number)])
    for entry, fields in await redis.xrange(log._key, min="100-0"):
        await redis.execute_command("XDEL", log._key, entry)
        del fields
    frame = Frame(STDOUT, 1000, 900_000, 0, b"last")
    await redis.xadd(log._key, {FIELD: frame.encode(), MODES: b"\xff\x1b[9999999r" * 100_000}, id="1000-0")
    messages, _ = await restored(redis, SizeHistory(), WindowSize(24, 80))
    assert any("last" in line for line in shown(messages, WindowSize(24, 80)))
    assert sum(len(message.data) for message in messages) < 100_000


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
