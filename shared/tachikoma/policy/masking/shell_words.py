"""The ends of words in a text that may be a shell's, so that a mask hides one word and never a command after it."""

from __future__ import annotations

__all__ = ["ShellText"]

#: Characters that end a word, besides white space (POSIX shell, 2.3 Token Recognition), and command substitution.
ENDS = frozenset(";|&()<>`")
_QUOTES = frozenset("\"'")


class ShellText:
    """A text with its quotes as a shell reads them."""

    def __init__(self, text: str) -> None:
        self.text = text
        #: For each character, the quote that is open before it; "" if none is.
        self._open: list[str] = []
        quote = ""
        escaped = False
        for character in text:
            self._open.append(quote)
            if escaped:
                escaped = False
            elif character == "\\" and quote != "'":
                escaped = True
            elif quote:
                quote = "" if character == quote else quote
            elif character in _QUOTES:
                quote = character

    def word_end(self, start: int) -> int:
        """Return the index after the word that contains the character at an index, or the index if none does."""
        if start >= len(self.text):
            return start
        return self._end_inside(start) if self._open[start] else self._end_outside(start)

    def _end_outside(self, at: int) -> int:
        """Return the end of a word that begins outside of quotes; quotes within it belong to it."""
        while at < len(self.text) and not self._ends(at):
            if self.text[at] == "\\":
                at += 2
            elif self.text[at] in _QUOTES:
                at, complete = self._quoted_end(at)
                if not complete:
                    return at
            else:
                at += 1
        return min(at, len(self.text))

    def _quoted_end(self, at: int) -> tuple[int, bool]:
        """Return the index after a quoted text, and True; or where a command in it begins, and False."""
        quote = self.text[at]
        end = next((n for n in range(at + 2, len(self.text)) if not self._open[n]), len(self.text))
        if end == len(self.text) and (self.text[-1] != quote or end < at + 2):
            # The quote is not closed, so it may be an apostrophe.
            return at + 1, True
        if quote == '"':
            commands = [n for mark in ("$(", "`") if (n := self.text.find(mark, at, end)) >= 0]
            if commands:
                return min(commands), False
        return end, True

    def _end_inside(self, at: int) -> int:
        """Return the end of a word within a quoted text. The other kind of quotes may hold it, as in JSON."""
        outer = self._open[at]
        if self.text[at] in _QUOTES and self.text[at] != outer:
            end = self.text.find(self.text[at], at + 1)
            held = self.text[at + 1 : end]
            # A text with such characters may be commands for another shell.
            if end > 0 and outer not in held and not any(c in ENDS or c in "\r\n" for c in held):
                return end + 1
        # Quotes in quotes are written with more of them before the word, as in '"'"'.
        while at < len(self.text) and (self.text[at] in _QUOTES or self.text[at] == "\\"):
            at += 1
        while at < len(self.text) and not self._ends(at) and self.text[at] not in _QUOTES:
            at += 1
        return at

    def _ends(self, at: int) -> bool:
        return self.text[at].isspace() or self.text[at] in ENDS
