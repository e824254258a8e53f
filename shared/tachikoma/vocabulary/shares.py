"""Shares of the targets of a batch: a number, or a percentage of all."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator

__all__ = ["Share", "share_of"]

_SHARE = re.compile(r"[0-9]{1,5}|(?:100|[0-9]{1,2})%")


def _share(value: str) -> str:
    if not _SHARE.fullmatch(value):
        raise ValueError(f"{value[:20]!r} is neither a number nor a percentage such as 25%")
    if share_of(value, 100) == 0:
        raise ValueError("must be more than zero")
    return value


#: A number of targets, or a percentage of all targets of the batch: `10` or `25%`.
Share = Annotated[str, AfterValidator(_share)]


def share_of(share: str, total: int) -> int:
    """Return the number of targets that a share is: of a percentage the whole part, and at least 1 unless it is 0%."""
    if not share.endswith("%"):
        return int(share)
    percent = int(share[:-1])
    return max(1, total * percent // 100) if percent else 0
