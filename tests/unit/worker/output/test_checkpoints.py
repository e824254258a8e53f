"""Checkpoints of a terminal's modes, in its output."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tachikoma.sessions.modes import MAX_CHECKPOINT, Modes
from tachikoma_worker.output.checkpoints import Checkpoints

PARTS = (b"text\r\n", b"\x1b[?2004h", b"\x1b[?2004l", b"\x1b[?1049h", b"\x1b[2;20r", b"\x1b[?", b"25l", "é".encode())


def modes_of(output: bytes) -> str:
    modes = Modes()
    modes.feed(output.decode(errors="replace"))
    return modes.checkpoint()


def test_the_chunk_after_a_change_has_a_checkpoint_and_others_have_none() -> None:
    checkpoints = Checkpoints(10**6)
    found = [checkpoints.before(data, 100) for data in (b"a", b"\x1b[?2004h", b"b", b"c", b"\x1b[?2004l", b"d")]
    assert [bool(modes) for modes in found] == [False, False, True, False, False, True]
    assert found[2].decode() == modes_of(b"\x1b[?2004h")


def test_no_part_of_the_log_is_without_one_for_longer_than_the_interval() -> None:
    checkpoints = Checkpoints(1000)
    found = [bool(checkpoints.before(b"x", 100)) for _ in range(31)]
    assert [number for number, has in enumerate(found) if has] == [10, 20, 30]


def test_no_checkpoint_is_within_a_sequence_or_a_character() -> None:
    checkpoints = Checkpoints(0)
    assert checkpoints.before(b"a\x1b[?20", 1)
    assert not checkpoints.before(b"04h", 1)
    assert checkpoints.before("é".encode()[:1], 1)
    assert not checkpoints.before("é".encode()[1:], 1)
    assert checkpoints.before(b"b", 1).decode() == modes_of(b"\x1b[?2004h")


def test_a_later_worker_goes_on_with_the_modes_and_stores_them_first() -> None:
    first = Checkpoints(10**6)
    first.before(b"\x1b[?2004h\x1b[3;9r", 100)
    second = Checkpoints(10**6, first.current())
    assert second.before(b"x", 100).decode() == modes_of(b"\x1b[?2004h\x1b[3;9r")
    assert not second.before(b"y", 100)


@given(st.lists(st.sampled_from(PARTS), max_size=30), st.integers(0, 500))
def test_each_checkpoint_has_the_modes_of_the_output_before_it(parts: list[bytes], interval: int) -> None:
    checkpoints, output = Checkpoints(interval), b""
    for part in parts:
        modes = checkpoints.before(part, 100)
        if modes:
            assert modes.decode() == modes_of(output)
        output += part


def test_a_checkpoint_is_bounded() -> None:
    checkpoints = Checkpoints(0)
    every = b"".join(b"\x1b[?%dh" % number for number in range(3000))
    checkpoints.before(every + b"\x1b]2;" + "é".encode() * 256 + b"\x07\x1b[4h\x1b[1;2r\x1b=", 1)
    modes = checkpoints.before(b"x", 1)
    assert 256 < len(modes) < MAX_CHECKPOINT
