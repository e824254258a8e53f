"""The part of a request that an audit event contains: whole if it was accepted, bounded if it was refused.

An accepted request is retained as far as it may be shown. Events about refusals are bounded in size as well as in
number (`refusals.py`), because a caller without a right chooses what is in them.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from tachikoma.vocabulary.audit import AuditedRequest
from tachikoma.vocabulary.requests import ExecRequest

__all__ = ["MAX_REFUSED_TEXT", "RetainedRequest", "audited", "clipped", "refused", "retained"]

#: Bytes of a refused request's argv, of its command line, of the names of its variables and of its directory.
MAX_REFUSED_ARGV = 1024
MAX_REFUSED_COMMAND = 1536
MAX_REFUSED_NAMES = 512
MAX_REFUSED_PATH = 256
#: Bytes of any other text that a refused caller may have chosen, such as the reason.
MAX_REFUSED_TEXT = 512


def audited(request: ExecRequest, shown: tuple[str, ...]) -> AuditedRequest:
    """Return the part of a request that the trail retains; `shown` is its redacted argv."""
    return AuditedRequest(
        command=shown,
        work_dir=request.work_dir,
        # Values may be secrets; only the order contains them.
        environment=tuple(sorted(request.environment)),
        timeout=None if request.timeout is None else request.timeout.total_seconds(),
        user=request.user,
        interactive=request.interactive,
        tty=request.tty,
        stdin_bytes=len(request.stdin),
    )


@dataclass(frozen=True, slots=True)
class RetainedRequest:
    """The part of a request that an event contains."""

    request: AuditedRequest
    #: Its argv, quoted for a shell.
    command: str


def retained(request: ExecRequest, shown: tuple[str, ...]) -> RetainedRequest:
    """Return the part of an accepted request that events contain; `shown` is its redacted argv."""
    return RetainedRequest(audited(request, shown), shlex.join(shown))


def refused(whole: RetainedRequest) -> RetainedRequest:
    """Return the part of a refused request that events contain: the same object unless the request is large."""
    request = whole.request
    command = _beginning(request.command, MAX_REFUSED_ARGV)
    shorter = RetainedRequest(
        request.model_copy(
            update={
                "command": command,
                "environment": _beginning(request.environment, MAX_REFUSED_NAMES),
                "work_dir": clipped(request.work_dir, MAX_REFUSED_PATH),
            }
        ),
        # Quotes can make it five times as long as the argv.
        clipped(shlex.join(command), MAX_REFUSED_COMMAND),
    )
    return whole if shorter == whole else shorter


def clipped(text: str, limit: int) -> str:
    """Return the beginning of a text that fits into a number of bytes, with the number of characters left out."""
    if len(text.encode()) <= limit:
        return text
    beginning = text.encode()[:limit].decode(errors="ignore")
    return f"{beginning}…(+{len(text) - len(beginning)})"


def _beginning(elements: Sequence[str], limit: int) -> tuple[str, ...]:
    """Return the first elements, which have at most `limit` bytes together, with the number of those left out."""
    found: list[str] = []
    for number, element in enumerate(elements):
        size = len(element.encode()) + 1
        if size > limit:
            found.append(clipped(element, limit))
            left_out = len(elements) - number - 1
            return (*found, f"…(+{left_out} more)") if left_out else tuple(found)
        limit -= size
        found.append(element)
    return tuple(found)
