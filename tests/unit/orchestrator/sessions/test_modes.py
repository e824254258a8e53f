"""Modes of a terminal that a drawing of its screen does not contain."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tachikoma_orchestrator.sessions.modes import MAX_SEQUENCE, MAX_TITLE, Modes

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


def test_a_sequence_without_an_end_is_not_retained_for_ever() -> None:
    modes = Modes()
    for _ in range(100):
        modes.feed("\x1b]2;" + "x" * 1000)
    assert len(modes._rest) <= MAX_SEQUENCE
    assert len(restored("\x1b]2;" + "x" * 1000 + "\x07")) == MAX_TITLE + len("\x1b]2;\x07")
