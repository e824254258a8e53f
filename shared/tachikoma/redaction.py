"""What may be written down of a command: secrets out, control characters escaped, length bounded.

Used wherever a command is shown or kept: ledger, audit, logs, the `argsrepr` that Flower shows.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence

__all__ = ["command_line", "redact"]

MASK = "***"
#: Longest element kept, and most elements.
MAX_ELEMENT = 256
MAX_ELEMENTS = 64

_SENSITIVE = r"(?:pass(?:wd|word|phrase)?|secret|token|api[-_]?key|access[-_]?key|private[-_]?key|credentials?|auth)"
#: --password=x, DB_PASSWORD=x, password:x
_ASSIGNED = re.compile(rf"(?i)^(.*{_SENSITIVE}[\w-]*\s*[=:]).+", re.DOTALL)
#: --password, whose value is the next element
_FLAG = re.compile(rf"(?i)^--?[\w-]*{_SENSITIVE}[\w-]*$")
#: scheme://user:secret@host
_URL = re.compile(r"([a-z][a-z0-9+.-]*://[^/\s:@]*):[^/\s@]+@", re.IGNORECASE)
#: Authorization values and well-known token shapes.
_TOKEN = re.compile(
    r"(?i:\b(bearer|basic)\s+)\S+|\b(?:AKIA[0-9A-Z]{16}|gh[pousr]_\w{20,}|glpat-[\w-]{20,}|xox[abprs]-[\w-]{10,}|sk-[\w-]{20,}"
    r"|eyJ[\w-]+\.[\w-]+\.[\w-]*)"
)


def redact(command: Sequence[str]) -> tuple[str, ...]:
    """The argv with secrets replaced, each element and their number bounded."""
    shown: list[str] = []
    hide_next = False
    for element in command[:MAX_ELEMENTS]:
        if hide_next and not element.startswith("-"):
            shown.append(MASK)
            hide_next = False
            continue
        hide_next = bool(_FLAG.match(element))
        text = _ASSIGNED.sub(rf"\1{MASK}", element)
        text = _URL.sub(rf"\1:{MASK}@", text)
        text = _TOKEN.sub(lambda found: f"{found.group(1)} {MASK}" if found.group(1) else MASK, text)
        if len(text) > MAX_ELEMENT:
            text = text[:MAX_ELEMENT] + f"…(+{len(text) - MAX_ELEMENT})"
        shown.append("".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text))
    if len(command) > MAX_ELEMENTS:
        shown.append(f"…(+{len(command) - MAX_ELEMENTS} more)")
    return tuple(shown)


def command_line(command: Sequence[str]) -> str:
    """The redacted argv as one quoted line."""
    return shlex.join(redact(command))
