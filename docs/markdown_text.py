"""Text of the generated pages: escaped for Markdown, and wrapped."""

from __future__ import annotations

import re
import textwrap

COLUMNS = 120
#: A span of code, or a character that would begin a tag, emphasis or a link.
MARKUP = re.compile(r"`[^`]+`|([<*\[\]\\`])")
#: What begins an entry of a list or a heading at the beginning of a line.
LIKE_A_LIST = re.compile(r"^(\s*)([-+#]|\d+[.)])(?= )")


def plain(text: str) -> str:
    """Return a text on one line, in which Markdown finds no markup except spans of code."""
    return MARKUP.sub(lambda found: f"\\{found[1]}" if found[1] else found[0], " ".join(text.split()))


def wrapped(text: str, first: str = "", rest: str = "") -> str:
    """Return text of Markdown in lines of at most 120 columns, each after its indent."""
    lines = textwrap.wrap(
        text, COLUMNS - max(len(first), len(rest)) - 1, break_long_words=False, break_on_hyphens=False
    )
    kept = [lines[0], *(LIKE_A_LIST.sub(r"\1\\\2", line) for line in lines[1:])] if lines else [""]
    return "\n".join((first if not number else rest) + line for number, line in enumerate(kept)) + "\n"


def entry(term: str, text: str, kind: str = "") -> str:
    """Return an entry of a list: a term as code, its kind, and its text."""
    head = f"**`{term}`**" + (f" ({kind})" if kind else "")
    return wrapped(f"{head}: {plain(text)}" if text else head, "- ", "  ")
