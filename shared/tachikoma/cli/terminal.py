"""The user's terminal during a session: raw mode and its restoration, its size, and escapes in the input."""

from __future__ import annotations

import atexit
import fcntl
import os
import re
import struct
import sys
import termios
import tty
from dataclasses import dataclass
from enum import Enum
from typing import Any

from tachikoma.vocabulary.requests import Terminal, WindowSize

__all__ = ["RESET", "Escape", "Escapes", "Modes", "RawMode", "Typed", "terminal_of", "window_size"]

#: Private modes that are reset after a program that set them, as xterm numbers them: delayed updates, the other screen,
#: keys of the cursor, inverse video, origin, mouse, focus, pasted text.
RESET_MODES = (2026, 47, 1047, 1049, 1, 5, 6, 9, 1000, 1001, 1002, 1003, 1004, 1005, 1006, 1015, 1016, 2004)
#: Resets the other state of a terminal: margins and characters, line wrap, keypad, cursor, colours.
RESET = b"\x1b[!p\x1b[?7h\x1b>\x1b[?25h\x1b[m\r\n"
#: A sequence that sets or resets private modes.
_MODES = re.compile(rb"\x1b\[\?([0-9;]{1,64})([hl])")
#: The beginning of one at the end of the output so far.
_BEGUN = re.compile(rb"\x1b(?:\[(?:\?[0-9;]{0,64})?)?\Z")
#: The character that begins an escape, as in ssh(1).
ESCAPE = ord("~")


def window_size(descriptor: int) -> WindowSize:
    """Return the size of a terminal's window, also in pixels; 24 rows and 80 columns if it is unknown."""
    try:
        # tcgetwinsize() leaves out the pixels, which programs that draw pictures need (tty_ioctl(2), struct winsize).
        answer = fcntl.ioctl(descriptor, termios.TIOCGWINSZ, bytes(8))
    except OSError:
        answer = bytes(8)
    rows, columns, x_pixels, y_pixels = struct.unpack("=4H", answer)
    return WindowSize(rows or 24, columns or 80, x_pixels, y_pixels)


def terminal_of(descriptor: int) -> Terminal:
    """Return type and size of a terminal, for a request."""
    size = window_size(descriptor)
    kind = os.environ.get("TERM", "")
    # A type of another form cannot be sent; the default is known everywhere.
    known = kind and len(kind) <= 64 and kind[0].isalnum() and all(c.isalnum() or c in "+._-" for c in kind)
    return Terminal(
        **({"type": kind} if known and kind.isascii() else {}),
        rows=size.rows, columns=size.columns, x_pixels=size.x_pixels, y_pixels=size.y_pixels,
    )  # fmt: skip


class Modes:
    """The modes that a program has set on the terminal, by its output.

    A reset of the other screen also moves the cursor, so only modes that were set are reset.
    """

    def __init__(self) -> None:
        self._set: set[int] = set()
        self._begun = b""

    def feed(self, output: bytes) -> None:
        """Take the next part of the output, wherever it is cut."""
        text = self._begun + output
        for found in _MODES.finditer(text):
            numbers = {int(number) for number in found[1].split(b";") if number}
            self._set = self._set | numbers if found[2] == b"h" else self._set - numbers
        begun = _BEGUN.search(text, max(0, len(text) - 80))
        self._begun = begun[0] if begun else b""

    def reset(self) -> bytes:
        """Return the bytes that reset the terminal, and move the cursor to a new line."""
        modes = b"".join(b"\x1b[?%dl" % mode for mode in RESET_MODES if mode in self._set)
        return modes + RESET


class RawMode:
    """Raw mode of a terminal while the block runs. It is restored in every end of this process except SIGKILL."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._before: list[Any] | None = None

    def __enter__(self) -> RawMode:
        self._before = termios.tcgetattr(self._descriptor)
        atexit.register(self.restore)
        tty.setraw(self._descriptor, termios.TCSADRAIN)
        return self

    def __exit__(self, *_: object) -> None:
        self.restore()
        atexit.unregister(self.restore)

    def restore(self) -> None:
        """Restore the mode of before. Safe to repeat."""
        if self._before is not None:
            before, self._before = self._before, None
            termios.tcsetattr(self._descriptor, termios.TCSADRAIN, before)
            sys.stdout.flush()


class Escape(Enum):
    """The actions that an escape can request."""

    END = "."
    DETACH = "d"
    HELP = "?"


HELP = (
    "\r\nescapes, after a new line:\r\n"
    "  ~.  end the session\r\n  ~d  leave it running: `tachikoma sessions attach` returns\r\n"
    "  ~~  send ~\r\n  ~?  this help\r\n"
)


@dataclass(frozen=True, slots=True)
class Typed:
    """A part of what was typed."""

    #: Bytes for the command.
    data: bytes
    #: The escape after them; None for none.
    escape: Escape | None = None


class Escapes:
    """Finds escapes in what is typed: `~` after a line break or at the beginning, and a character that follows."""

    def __init__(self) -> None:
        self._at_line = True
        self._pending = False

    def feed(self, data: bytes) -> list[Typed]:
        """Return the parts of the next bytes. A `~` at the start of a line waits for the byte after it."""
        parts: list[Typed] = []
        kept = bytearray()
        for byte in data:
            if self._pending:
                self._pending = False
                escape = _ESCAPES.get(byte)
                if escape is not None:
                    parts.append(Typed(bytes(kept), escape))
                    kept.clear()
                    self._at_line = True
                    continue
                kept.append(ESCAPE)
                if byte == ESCAPE:
                    self._at_line = False
                    continue
            elif byte == ESCAPE and self._at_line:
                self._pending = True
                continue
            kept.append(byte)
            self._at_line = byte in b"\r\n"
        if kept:
            parts.append(Typed(bytes(kept)))
        return parts


_ESCAPES = {ord(escape.value): escape for escape in Escape}
