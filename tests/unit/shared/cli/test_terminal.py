"""The user's terminal: escapes wherever input is cut, raw mode, and the request's terminal."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import termios
from collections.abc import Iterator
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tachikoma.cli.terminal import HELP, RESET, Escape, Escapes, Modes, RawMode, Typed, terminal_of, window_size
from tachikoma.vocabulary.requests import Terminal, WindowSize


@pytest.fixture
def slave() -> Iterator[int]:
    master, slave = pty.openpty()
    yield slave
    os.close(master)
    os.close(slave)


@pytest.mark.parametrize(
    ("typed", "parts"),
    [
        (b"ls\r", [Typed(b"ls\r")]),
        (b"~.", [Typed(b"", Escape.END)]),
        (b"ls\r~d", [Typed(b"ls\r", Escape.DETACH)]),
        (b"a\n~?b", [Typed(b"a\n", Escape.HELP), Typed(b"b")]),
        (b"~~.", [Typed(b"~.")]),
        (b"x~.", [Typed(b"x~.")]),
        (b"~x", [Typed(b"~x")]),
        (b"~\r~.", [Typed(b"~\r", Escape.END)]),
        (b"~", []),
        (b"", []),
    ],
)
def test_an_escape_begins_a_line(typed: bytes, parts: list[Typed]) -> None:
    assert Escapes().feed(typed) == parts


@given(st.lists(st.sampled_from([b"~", b".", b"\r", b"a", b"d", b"~~", b"\xff"]), max_size=12), st.integers(0, 12))
def test_it_does_not_matter_how_input_is_cut(pieces: list[bytes], cut: int) -> None:
    def flat(found: list[Typed]) -> list[bytes | Escape]:
        result: list[bytes | Escape] = []
        for part in found:
            if part.data and result and isinstance(result[-1], bytes):
                result[-1] += part.data
            elif part.data:
                result.append(part.data)
            if part.escape is not None:
                result.append(part.escape)
        return result

    whole = b"".join(pieces)
    one, other = Escapes(), Escapes()
    assert flat(one.feed(whole)) == flat(other.feed(whole[:cut]) + other.feed(whole[cut:]))


def test_each_escape_is_in_the_help() -> None:
    assert all(f"~{escape.value}" in HELP for escape in Escape)


def test_raw_mode_is_restored_also_after_an_error_and_once_only(slave: int) -> None:
    before = termios.tcgetattr(slave)
    with suppress(ValueError), RawMode(slave):
        assert not termios.tcgetattr(slave)[3] & (termios.ECHO | termios.ICANON | termios.ISIG)
        raise ValueError
    assert termios.tcgetattr(slave) == before
    with RawMode(slave) as raw:
        raw.restore()
        assert termios.tcgetattr(slave) == before
    assert termios.tcgetattr(slave) == before


def test_type_and_size_are_those_of_the_terminal(slave: int, monkeypatch: pytest.MonkeyPatch) -> None:
    termios.tcsetwinsize(slave, (50, 132))
    monkeypatch.setenv("TERM", "screen-256color")
    assert terminal_of(slave) == Terminal(type="screen-256color", rows=50, columns=132)
    for unusable in ("", "a b", "x" * 65, "é", "-x"):
        monkeypatch.setenv("TERM", unusable)
        assert terminal_of(slave).type == Terminal().type


def test_an_unknown_size_is_the_usual_one(slave: int) -> None:
    termios.tcsetwinsize(slave, (0, 0))
    assert window_size(slave) == WindowSize(24, 80)
    reading, writing = os.pipe()
    assert window_size(reading) == WindowSize(24, 80)
    os.close(reading)
    os.close(writing)


def test_the_size_in_pixels_is_sent_too(slave: int) -> None:
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("=4H", 50, 132, 1320, 1000))
    assert window_size(slave) == WindowSize(50, 132, 1320, 1000)
    assert terminal_of(slave).size == window_size(slave)


OUTPUT = b"\x1b[?1049h\x1b[?1002;1006h text \x1b[?25l\x1b[?2004h\x1b[?2004l\x1b[31m\x1b[?99h"


@pytest.mark.parametrize("cut", range(len(OUTPUT)))
def test_modes_that_a_program_set_are_reset_wherever_its_output_is_cut(cut: int) -> None:
    modes = Modes()
    modes.feed(OUTPUT[:cut])
    modes.feed(OUTPUT[cut:])
    # Others are not: a terminal may move its cursor at such a sequence.
    assert modes.reset() == b"\x1b[?1049l\x1b[?1002l\x1b[?1006l" + RESET


@given(st.lists(st.binary(max_size=80), max_size=5))
def test_any_output_can_be_followed(parts: list[bytes]) -> None:
    modes = Modes()
    for part in parts:
        modes.feed(part)
    assert modes.reset().endswith(RESET)
