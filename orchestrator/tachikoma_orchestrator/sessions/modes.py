"""The modes of a terminal that a drawing of its screen does not contain: mouse, pasting, keypad, cursor, title."""

from __future__ import annotations

import re

__all__ = ["Modes"]

#: Longest escape sequence that is followed over two chunks.
MAX_SEQUENCE = 1024
#: Longest title that is restored.
MAX_TITLE = 256
#: Private modes of a terminal (DECSET) that are restored, each with its value after a reset. `ctlseqs` of xterm.
PRIVATE = {
    9: False, 1000: False, 1001: False, 1002: False, 1003: False, 1004: False, 1005: False, 1006: False, 1007: False,
    1015: False, 1016: False, 12: False, 2004: False, 2031: False,
}  # fmt: skip
#: The sequences that change one of these modes.
_SEQUENCE = re.compile(
    r"\x1b(?:"
    r"\[\?(?P<private>[0-9;]{1,64})(?P<set>[hl])|(?P<keypad>[=>])|\[(?P<cursor>[0-6]?) q|\[>4(?:;(?P<keys>[0-3]))?m|"
    r"\][02];(?P<title>[^\x07\x1b]*)(?:\x07|\x1b\\)|(?P<reset>c|\[!p))"
)
#: The beginning of a sequence at the end of a text.
_UNFINISHED = re.compile(r"\x1b(?:\[[?>!]?[0-9;]{0,64} ?|\][^\x07\x1b]*\x1b?)?$")


class Modes:
    """The modes that a program has set."""

    def __init__(self) -> None:
        self._rest = ""
        self._reset()

    def _reset(self) -> None:
        self._private = dict(PRIVATE)
        self._keypad = ">"
        self._cursor = ""
        self._keys = ""
        self._title = ""

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
                if number and int(number) in self._private:
                    self._private[int(number)] = found["set"] == "h"
        elif found["keypad"]:
            self._keypad = found["keypad"]
        elif found["title"] is not None:
            self._title = "".join(c for c in found["title"][:MAX_TITLE] if c.isprintable())
        elif found["reset"]:
            self._reset()
        elif found["cursor"] is not None:
            self._cursor = found["cursor"]
        else:
            self._keys = found["keys"] or ""

    def restore(self) -> str:
        """Return the sequences that set these modes in a terminal that was reset."""
        parts = [f"\x1b[?{number}{'h' if on else 'l'}" for number, on in self._private.items() if on != PRIVATE[number]]
        if self._keypad != ">":
            parts.append(f"\x1b{self._keypad}")
        if self._cursor:
            parts.append(f"\x1b[{self._cursor} q")
        if self._keys:
            parts.append(f"\x1b[>4;{self._keys}m")
        if self._title:
            parts.append(f"\x1b]2;{self._title}\x07")
        return "".join(parts)
