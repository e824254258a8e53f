"""What may be written down of a command: secrets out, control characters escaped, length bounded.

Used wherever a command is shown or kept: ledger, audit, logs, the `argsrepr` that Flower shows.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence

__all__ = ["command_line", "is_masked", "redact"]

MASK = "***"
#: Longest element kept, and most elements.
MAX_ELEMENT = 256
MAX_ELEMENTS = 64
#: Characters of an element that are searched for secrets. More than are kept: a secret may begin before the cut.
MAX_SEARCHED = 4 * MAX_ELEMENT

_SENSITIVE = r"(?:pass(?:wd|word|phrase)?|secret|token|api[-_]?key|access[-_]?key|private[-_]?key|credentials?|auth)"
#: --password=x, DB_PASSWORD=x, "password": "x"; whatever follows the first one is hidden with it.
_ASSIGNED = re.compile(rf"(?i)^(.*?{_SENSITIVE}[\w-]{{0,64}}[\"']?\s{{0,8}}[=:]).+", re.DOTALL)
#: --password, whose value is the next element
_FLAG = re.compile(rf"(?i)^--?[\w-]*{_SENSITIVE}[\w-]*$")
#: scheme://user:secret@host; the secret may hold an @ itself.
_URL = re.compile(r"([a-z][a-z0-9+.-]{0,31}://[^/\s:@]{0,256}):[^/\s]*@", re.IGNORECASE)
#: A private key, whatever of it follows.
_PEM = re.compile(r"-----BEGIN [A-Z0-9 ]{0,64}PRIVATE KEY-----.*", re.DOTALL)
#: Authorization values and well-known token shapes.
_TOKEN = re.compile(
    r"(?i:\b(bearer|basic)\s+)\S+|\b(?:AKIA[0-9A-Z]{16}|gh[pousr]_\w{20,}|glpat-[\w-]{20,}|xox[abprs]-[\w-]{10,}|sk-[\w-]{20,}"
    r"|eyJ[\w-]+\.[\w-]+\.[\w-]*)"
)


def is_masked(element: str) -> bool:
    """Whether something was taken out of an element, or may have been."""
    return MASK in element or "…(+" in element


def redact(command: Sequence[str]) -> tuple[str, ...]:
    """The argv with secrets replaced, each element and their number bounded."""
    shown: list[str] = []
    hide_next = False
    for element in command[:MAX_ELEMENTS]:
        if hide_next and not element.startswith("-"):
            shown.append(MASK)
            hide_next = False
            continue
        hide_next = len(element) <= MAX_ELEMENT and bool(_FLAG.match(element))
        # Only the beginning is ever shown, so only it is searched: an argument may be 128 KiB of anything.
        text = _ASSIGNED.sub(rf"\1{MASK}", element[:MAX_SEARCHED])
        text = _PEM.sub(MASK, text)
        text = _URL.sub(rf"\1:{MASK}@", text)
        text = _TOKEN.sub(lambda found: f"{found.group(1)} {MASK}" if found.group(1) else MASK, text)
        beyond = max(0, len(text) - MAX_ELEMENT) + max(0, len(element) - MAX_SEARCHED)
        if beyond:
            text = f"{text[:MAX_ELEMENT]}…(+{beyond})"
        shown.append("".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text))
    if len(command) > MAX_ELEMENTS:
        shown.append(f"…(+{len(command) - MAX_ELEMENTS} more)")
    return tuple(shown)


def command_line(command: Sequence[str]) -> str:
    """The redacted argv as one quoted line."""
    return shlex.join(redact(command))
