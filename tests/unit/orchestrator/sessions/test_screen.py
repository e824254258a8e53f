"""The model of a terminal: whatever a program wrote, the drawing of its screen leads to the same screen."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tachikoma.vocabulary.requests import WindowSize
from tachikoma_orchestrator.sessions import screen as screen_module
from tachikoma_orchestrator.sessions.screen import Screen, open_screen

SIZE = WindowSize(6, 20)
PARTS = st.one_of(
    # Controls come from the list below. Sequences that are none are not drawn the same in every case.
    st.text(st.characters(categories=("L", "N", "P", "S")), max_size=30),
    st.sampled_from(
        [
            "\x1b[?1049h", "\x1b[?1049l", "\x1b[?2004h", "\x1b[2J", "\x1b[H", "\x1b[5;10H", "\x1b[31m", "\x1b[0m",
            "\x1b[2;4r", "\x1b7", "\x1b8", "\x1b[?25l", "\x1b[K", "\x1b[L", "\x1b[3M", "日本", "e\u0301", "\r\n" * 9,
            "\x1b(0qqq\x1b(B", "\x1b[?7l", "\x1b[4h", "\x1b[1;38;5;200m", "\x1b[48;2;1;2;3m", "\t",
            "\x1b[?6h", "\x1bc", "\x1b[?1h",
        ]
    ),
)  # fmt: skip


def fed(data: bytes, size: WindowSize = SIZE) -> Screen:
    screen = open_screen(size)
    screen.feed(data)
    return screen


def on_screen(drawing: bytes) -> bytes:
    """The part of a drawing after the scrollback, of which the lines that leave a screen differ."""
    return drawing.rpartition(b"\x1b[H\x1b[2J")[2]


@given(st.lists(PARTS, max_size=30), st.integers(0, 1000))
def test_a_drawing_leads_to_the_same_screen_wherever_the_output_is_cut(parts: list[str], permille: int) -> None:
    output = "".join(parts).encode(errors="replace")
    cut = permille * len(output) // 1000
    undisturbed = fed(output[:cut])
    again = fed(b"something\x1b[31m\x1b[2;3r\x1b[?2004h")
    again.feed(undisturbed.draw())
    assert again.text() == undisturbed.text()
    assert on_screen(again.draw()) == on_screen(undisturbed.draw())
    undisturbed.feed(output[cut:])
    again.feed(output[cut:])
    assert again.text() == undisturbed.text()
    assert on_screen(again.draw()) == on_screen(undisturbed.draw())


def test_lines_above_the_screen_are_drawn_with_their_colours() -> None:
    screen = open_screen(SIZE, scrollback=3)
    screen.feed(b"".join(b"line %d \x1b[1;32mgreen\x1b[0m\r\n" % number for number in range(10)))
    drawing = screen.draw()
    # Ten lines and an empty one, of which six are on the screen.
    assert [b"line %d " % number in drawing for number in range(10)] == [False] * 2 + [True] * 8
    assert b"line 3 \x1b[0;1;38;5;2mgreen" in drawing
    assert b"\x1b[6b" not in drawing
    assert b"\xc2\x9b" not in drawing


def test_a_character_that_has_begun_is_continued() -> None:
    undisturbed = fed("grü".encode()[:-1])
    again = fed(undisturbed.draw())
    again.feed("ü".encode()[1:] + b"n")
    assert again.text()[0] == "grün"


def test_a_gap_ends_a_sequence() -> None:
    screen = fed(b"one\x1b[3")
    screen.skip()
    screen.feed(b"two")
    assert screen.text()[0] == "onetwo"


def test_the_size_changes_and_is_bounded() -> None:
    screen = fed(b"x" * 30)
    assert screen.text()[:2] == ["x" * 20, "x" * 10]
    screen.resize(WindowSize(6, 40))
    assert screen.text()[0] == "x" * 30
    screen.resize(WindowSize(60_000, 60_000))
    assert len(screen.text()) == screen_module.MAX_CELLS
    screen.resize(WindowSize(0, 0))
    assert len(screen.text()) == 1


def test_a_model_that_panics_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = fed(b"before")

    class PanicException(BaseException):
        """As of the model's library; its class has no name that can be imported."""

    class Broken:
        size = (20, 6)

        def feed_str(self, text: str) -> None:
            raise PanicException

    monkeypatch.setattr(screen, "_model", Broken())
    screen.feed(b"lost")
    screen.feed(b"after")
    assert screen.text()[0] == "after"


def test_no_output_breaks_it() -> None:
    chance = random.Random(5)
    for _ in range(60):
        screen = open_screen(WindowSize(chance.randint(0, 30), chance.randint(0, 60)), scrollback=20)
        for _ in range(40):
            match chance.randrange(4):
                case 0:
                    screen.resize(WindowSize(chance.choice([1, 2, 50]), chance.choice([1, 2, 90])))
                case 1:
                    screen.feed(chance.randbytes(chance.randint(0, 200)))
                case 2:
                    numbers = ";".join(str(chance.choice([0, 1, 5, 47, 1049, 99999])) for _ in range(3))
                    kind = chance.choice(["", "?", ">", "!"])
                    screen.feed(f"\x1b[{kind}{numbers}{chr(chance.randint(64, 126))}{'x' * 50}".encode())
                case _:
                    assert screen.draw()
