"""A model of a terminal: from the output of a program to the screen that a person would see.

`Screen` is the interface. `open_screen` returns its only implementation, on `avt`, the model of asciinema's tools.
"""

from __future__ import annotations

import codecs
import re
from collections import deque
from collections.abc import Callable
from typing import Protocol, TypeVar

import avt
import structlog

from tachikoma.sessions.modes import Modes
from tachikoma.vocabulary.requests import WindowSize

__all__ = ["MAX_CELLS", "SCROLLBACK_LINES", "Screen", "open_screen"]

T = TypeVar("T")

log = structlog.get_logger(__name__)

#: Lines above the screen that are restored.
SCROLLBACK_LINES = 1000
#: Largest number of rows and columns of a model; it takes memory for each cell.
MAX_CELLS = 500
#: What a terminal needs before a screen is drawn: no margins, no modes, an empty screen.
_CLEAN = "\x1b[!p\x1b[?1049l\x1b[?6l\x1b[r\x1b[m\x1b(B\x0f\x1b[H\x1b[2J"
_NO_MODES = "".join(f"\x1b[?{number}l" for number in (9, 1000, 1002, 1003, 1004, 1006, 2004)) + "\x1b>"


class Screen(Protocol):
    """A terminal that follows a program's output."""

    def feed(self, data: bytes) -> None:
        """Follow the next bytes of the output. A character or sequence may begin in one part and end in the next."""

    def skip(self) -> None:
        """Record that bytes of the output are missing here, and drop an incomplete character or sequence."""

    def resize(self, size: WindowSize) -> None:
        """Change the size, as the program's terminal did."""

    def draw(self) -> bytes:
        """Return bytes that draw scrollback and screen on another terminal of the same size, whatever is on it."""

    def text(self) -> list[str]:
        """Return the lines on the screen."""


def open_screen(size: WindowSize, *, scrollback: int = SCROLLBACK_LINES) -> Screen:
    """Return an empty screen.

    Args:
        size: rows and columns.
        scrollback: lines above the screen that it retains.
    """
    return _AvtScreen(size, scrollback)


class _AvtScreen:
    """A screen on `avt`. Its code panics on some outputs; then the screen begins empty, as after a gap."""

    def __init__(self, size: WindowSize, scrollback: int) -> None:
        self._size = _bounded(size)
        self._model = self._new_model()
        self._above: deque[avt.Line] = deque(maxlen=scrollback)
        self._modes = Modes()
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def _new_model(self) -> avt.Vt:
        rows, columns = self._size
        return avt.Vt(columns, rows, 0)

    def feed(self, data: bytes) -> None:
        text = self._decoder.decode(data)
        self._modes.feed(text)
        if (changes := self._guarded(lambda: self._model.feed_str(text))) is not None:
            self._above.extend(changes[1])

    def skip(self) -> None:
        self._decoder.reset()
        # CAN ends a sequence without an effect.
        self.feed(b"\x18")

    def resize(self, size: WindowSize) -> None:
        self._size = rows, columns = _bounded(size)
        if self._model.size == (columns, rows):
            return
        if (changes := self._guarded(lambda: self._model.resize(columns, rows))) is not None:
            self._above.extend(changes[1])

    def draw(self) -> bytes:
        rows, _ = self._size
        above = "".join(f"{_drawn(line)}\x1b[m\r\n" for line in self._above)
        # The lines above go off the screen before it is drawn.
        pushed = "\r\n" * rows if above else ""
        dump = _plain(self._guarded(self._model.dump) or "")
        screen = f"{_CLEAN}{_NO_MODES}{above}{pushed}\x1b[H\x1b[2J{self._modes.restore()}{dump}"
        # A sequence or character that has begun is the last part, since the output continues in it.
        return screen.encode() + self._decoder.getstate()[0]

    def text(self) -> list[str]:
        return [line.text.rstrip() for line in self._model.view()]

    def _guarded(self, action: Callable[[], T]) -> T | None:
        """Return the model's result; None if the model failed and was replaced."""
        try:
            return action()
        except BaseException as error:
            # A panic of its code is no `Exception`, and its class has no name that can be imported.
            if type(error).__name__ != "PanicException":
                raise
            log.warning("screen.failed", error=str(error)[:200])
            self._model = self._new_model()
            return None


#: A control of 8 bits; with ESC, its 7-bit form is 64 below.
_CONTROL = re.compile("[\x80-\x9f]")
#: A character and the sequence that repeats it.
_REPEATED = re.compile(r"([^\x1b])\x1b\[([0-9]{1,4})b")


def _plain(dump: str) -> str:
    """Return a drawing without the two features that some terminals lack: 8-bit controls, and repetition."""
    seven_bits = _CONTROL.sub(lambda found: f"\x1b{chr(ord(found[0]) - 0x40)}", dump)
    return _REPEATED.sub(lambda found: found[1] * (int(found[2]) + 1), seven_bits)


def _bounded(size: WindowSize) -> tuple[int, int]:
    return min(max(size.rows, 1), MAX_CELLS), min(max(size.columns, 2), MAX_CELLS)


def _drawn(line: avt.Line) -> str:
    """Return a line with its colours and attributes, without the blanks at its end."""
    parts: list[str] = []
    pen = ""
    for cell in line.cells:
        if cell.width == 0:
            # The second half of a wide character.
            continue
        wanted = _pen(cell.pen)
        if wanted != pen:
            parts.append(f"\x1b[0{wanted}m")
            pen = wanted
        parts.append(cell.char)
    return "".join(parts).rstrip(" ") if not pen else "".join(parts)


def _pen(pen: avt.Pen) -> str:
    """Return the parameters of SGR for a pen, each with a semicolon before it; empty for the default."""
    if pen.is_default():
        return ""
    flags = (
        (pen.bold, "1"), (pen.faint, "2"), (pen.italic, "3"), (pen.underline, "4"), (pen.blink, "5"),
        (pen.inverse, "7"), (pen.strikethrough, "9"),
    )  # fmt: skip
    return "".join(f";{code}" for on, code in flags if on) + _color(38, pen.foreground) + _color(48, pen.background)


def _color(code: int, color: avt.Color | None) -> str:
    match color:
        case avt.Color.Indexed():
            return f";{code};5;{color[0]}"
        case avt.Color.RGB():
            return f";{code};2;{color[0]};{color[1]};{color[2]}"
        case _:
            return ""
