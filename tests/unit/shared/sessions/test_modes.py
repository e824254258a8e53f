"""Modes of a terminal that a drawing of its screen does not contain."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tachikoma.sessions.modes import MAX_CHECKPOINT, MAX_SEQUENCE, MAX_TITLE, Modes

SEQUENCES = (
    "\x1b[?1000h", "\x1b[?1000l", "\x1b[?1006;2004h", "\x1b[?2004l", "\x1b=", "\x1b>", "\x1b[5 q", "\x1b[ q",
    "\x1b[>4;2m", "\x1b[>4m", "\x1b]2;a title\x07", "\x1b]0;other\x1b\\", "\x1bc", "\x1b[!p", "text", "\x1b[31m",
    "\x1b[?25l", "\x1b[?;h",
)  # fmt: skip


def restored(*parts: str) -> str:
    modes = Modes()
    for part in parts:
        modes.feed(part)
    return modes.restore()


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("", ""),
        ("\x1b[?2004h", "\x1b[?2004h"),
        ("\x1b[?2004h\x1b[?2004l", ""),
        ("\x1b[?1002;1006h", "\x1b[?1002h\x1b[?1006h"),
        ("\x1b=", "\x1b="),
        ("\x1b=\x1b>", ""),
        ("\x1b[4 q", "\x1b[4 q"),
        ("\x1b[4 q\x1b[ q", ""),
        ("\x1b[>4;2m", "\x1b[>4;2m"),
        ("\x1b[>4;2m\x1b[>4m", ""),
        ("\x1b]0;vi \x08notes\x07", "\x1b]2;vi notes\x07"),
        ("\x1b[?2004h\x1b=\x1b[4 q\x1bc", ""),
        ("\x1b[?2004h\x1b[!p", ""),
        # Modes that the drawing itself contains, or that are unknown.
        ("\x1b[?25l\x1b[?1049h\x1b[?1h\x1b[?77777h", ""),
    ],
)
def test_what_a_program_has_set_is_restored(output: str, expected: str) -> None:
    assert restored(output) == expected


@given(st.lists(st.sampled_from(SEQUENCES), max_size=20), st.lists(st.integers(0, 300), max_size=10))
def test_it_does_not_matter_where_the_output_is_cut(sequences: list[str], cuts: list[int]) -> None:
    output = "".join(sequences)
    ends = sorted({cut for cut in cuts if cut < len(output)})
    parts = [output[start:end] for start, end in zip([0, *ends], [*ends, len(output)], strict=True)]
    assert restored(*parts) == restored(output)


@given(st.text(max_size=200))
def test_modes_restore_themselves(output: str) -> None:
    once = restored(output)
    assert restored(once) == once


DRAWING = (
    "\x1b[?25l", "\x1b[?25h", "\x1b[?7l", "\x1b[?6h", "\x1b[?1h", "\x1b[?1049h", "\x1b[?1049l", "\x1b[?47h",
    "\x1b[2;20r", "\x1b[r", "\x1b[4h", "\x1b[4l", "\x1b(0", "\x1b(B",
)  # fmt: skip


@given(st.lists(st.sampled_from(SEQUENCES + DRAWING), max_size=20), st.lists(st.sampled_from(SEQUENCES + DRAWING)))
def test_a_checkpoint_sets_all_modes_whatever_was_set_before(output: list[str], before: list[str]) -> None:
    wanted, other = Modes(), Modes()
    wanted.feed("".join(output))
    other.feed("".join(before))
    other.feed(wanted.checkpoint())
    assert other.checkpoint() == wanted.checkpoint()
    assert other.restore() == wanted.restore()
    assert len(wanted.checkpoint().encode()) < MAX_CHECKPOINT


@pytest.mark.parametrize("sequence", [*SEQUENCES, *DRAWING])
def test_a_sequence_is_unfinished_until_its_last_character(sequence: str) -> None:
    if not sequence.startswith("\x1b") or sequence.endswith("m"):
        return
    for length in range(1, len(sequence)):
        modes = Modes()
        modes.feed("text" + sequence[:length])
        assert modes.unfinished
    modes.feed(sequence[length:])
    assert not modes.unfinished


def test_a_sequence_without_an_end_is_not_retained_for_ever() -> None:
    modes = Modes()
    for _ in range(100):
        modes.feed("\x1b]2;" + "x" * 1000)
    assert len(modes._rest) <= MAX_SEQUENCE
    assert len(restored("\x1b]2;" + "x" * 1000 + "\x07")) == MAX_TITLE + len("\x1b]2;\x07")
