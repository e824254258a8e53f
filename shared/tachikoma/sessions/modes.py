"""The modes of a terminal that a program has set, followed in its output: mouse, pasting, margins, title and others."""

from __future__ import annotations

import re

__all__ = ["MAX_CHECKPOINT", "Modes"]

#: Longest escape sequence that is followed over two chunks.
MAX_SEQUENCE = 1024
#: Longest title that is restored.
MAX_TITLE = 256
#: Private modes of a terminal (DECSET) that a drawing of its screen does not contain, each with its value after a
#: reset. `ctlseqs` of xterm.
PRIVATE = {
    9: False, 1000: False, 1001: False, 1002: False, 1003: False, 1004: False, 1005: False, 1006: False, 1007: False,
    1015: False, 1016: False, 12: False, 2004: False, 2031: False,
}  # fmt: skip
#: The same, of modes that change how output is drawn: cursor keys, origin, wrapping, cursor shown.
DRAWING = {1: False, 6: False, 7: True, 25: True}
#: Private modes that select the alternate screen. A soft reset leaves it selected.
ALTERNATE = (47, 1047, 1049)
#: Longest checkpoint, in bytes.
MAX_CHECKPOINT = 2048
#: The sequences that change one of these modes.
_SEQUENCE = re.compile(
    r"\x1b(?:"
    r"\[\?(?P<private>[0-9;]{1,64})(?P<set>[hl])|(?P<keypad>[=>])|\[(?P<cursor>[0-6]?) q|\[>4(?:;(?P<keys>[0-3]))?m|"
    r"\[(?P<margins>[0-9]{0,5}(?:;[0-9]{0,5})?)r|\[4(?P<insert>[hl])|\((?P<charset>[0AB])|"
    r"\][02];(?P<title>[^\x07\x1b]*)(?:\x07|\x1b\\)|(?P<hard>c)|(?P<soft>\[!p))"
)
#: The beginning of a sequence at the end of a text.
_UNFINISHED = re.compile(r"\x1b(?:\[[?>!]?[0-9;]{0,64} ?|\(|\][^\x07\x1b]*\x1b?)?$")


class Modes:
    """The modes that a program has set."""

    def __init__(self) -> None:
        self._rest = ""
        self._alternate = 0
        self._reset()

    def _reset(self) -> None:
        self._private = PRIVATE | DRAWING
        self._keypad = ">"
        self._cursor = ""
        self._keys = ""
        self._title = ""
        self._margins = ""
        self._insert = False
        self._charset = "B"

    @property
    def unfinished(self) -> bool:
        """True if the output so far ends within a sequence."""
        return bool(self._rest)

    def feed(self, text: str) -> None:
        """Follow the next part of the output. A sequence may begin in one part and end in the next."""
        text = self._rest + text
        for found in _SEQUENCE.finditer(text):
            self._apply(found)
        unfinished = _UNFINISHED.search(text, max(0, len(text) - MAX_SEQUENCE))
        self._rest = unfinished[0] if unfinished else ""

    def _apply(self, found: re.Match[str]) -> None:
        if (private := found["private"]) is not None:
            for number in private.split(";"):
                self._apply_private(int(number or 0), on=found["set"] == "h")
        elif found["keypad"]:
            self._keypad = found["keypad"]
        elif found["title"] is not None:
            self._title = "".join(c for c in found["title"][:MAX_TITLE] if c.isprintable())
        elif found["hard"]:
            self._alternate = 0
            self._reset()
        elif found["soft"]:
            self._reset()
        elif found["margins"] is not None:
            self._margins = found["margins"]
        elif found["insert"]:
            self._insert = found["insert"] == "h"
        elif found["charset"]:
            self._charset = found["charset"]
        elif found["cursor"] is not None:
            self._cursor = found["cursor"]
        else:
            self._keys = found["keys"] or ""

    def _apply_private(self, number: int, *, on: bool) -> None:
        if number in self._private:
            self._private[number] = on
        elif number in ALTERNATE:
            self._alternate = number if on else 0

    def restore(self) -> str:
        """Return the sequences that set the modes of `PRIVATE`, keypad, cursor, keys and title after a reset."""
        parts = [f"\x1b[?{number}{'h' if on else 'l'}" for number, on in self._changed(PRIVATE)]
        if self._keypad != ">":
            parts.append(f"\x1b{self._keypad}")
        if self._cursor:
            parts.append(f"\x1b[{self._cursor} q")
        if self._keys:
            parts.append(f"\x1b[>4;{self._keys}m")
        if self._title:
            parts.append(f"\x1b]2;{self._title}\x07")
        return "".join(parts)

    def checkpoint(self) -> str:
        """Return the sequences that set all modes in a terminal with any others, `MAX_CHECKPOINT` bytes at most."""
        parts = [f"\x1b[?{self._alternate}h" if self._alternate else "\x1b[?1049l", "\x1b[!p", self.restore()]
        parts += [f"\x1b[?{number}{'h' if on else 'l'}" for number, on in self._changed(DRAWING)]
        if self._margins:
            parts.append(f"\x1b[{self._margins}r")
        if self._insert:
            parts.append("\x1b[4h")
        parts.append(f"\x1b({self._charset}")
        return "".join(parts)

    def _changed(self, group: dict[int, bool]) -> list[tuple[int, bool]]:
        """Return the modes of a group with another value than after a reset."""
        return [(number, self._private[number]) for number in group if self._private[number] != group[number]]
