"""The user's terminal during a session: raw mode and its restoration, its size, and escapes in the input."""

from __future__ import annotations

import atexit
import os
import sys
import termios
import tty
from dataclasses import dataclass
from enum import Enum
from typing import Any

from tachikoma.vocabulary.requests import Terminal, WindowSize

__all__ = ["RESET", "Escape", "Escapes", "RawMode", "Typed", "terminal_of", "window_size"]

#: Resets a terminal after a program: leaves the other screen, resets modes and colours, shows the cursor.
RESET = b"\x1b[?1049l\x1b[!p\x1b[?1000l\x1b[?1002l\x1b[?1003l\x1b[?1006l\x1b[?2004l\x1b>\x1b[?25h\x1b[m\r\n"
#: The character that begins an escape, as in ssh(1).
ESCAPE = ord("~")


def window_size(descriptor: int) -> WindowSize:
    """Return the size of a terminal's window; 24 rows and 80 columns if it is unknown."""
    try:
        rows, columns = termios.tcgetwinsize(descriptor)
    except (termios.error, OSError):
        rows, columns = 0, 0
    return WindowSize(rows or 24, columns or 80)


def terminal_of(descriptor: int) -> Terminal:
    """Return type and size of a terminal, for a request."""
    size = window_size(descriptor)
    kind = os.environ.get("TERM", "")
    # A type of another form cannot be sent; the default is known everywhere.
    known = kind and len(kind) <= 64 and kind[0].isalnum() and all(c.isalnum() or c in "+._-" for c in kind)
    return Terminal(**({"type": kind} if known and kind.isascii() else {}), rows=size.rows, columns=size.columns)


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
