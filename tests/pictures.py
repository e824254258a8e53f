"""Kept pictures of text, with which tests compare what a terminal shows."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["compare"]

#: Set to write the pictures instead of comparing them.
WRITE = "TACHIKOMA_WRITE_PICTURES"


def compare(shown: str, kept: Path) -> None:
    """Compare a text with its picture."""
    if os.environ.get(WRITE):
        kept.write_text(shown, encoding="utf-8")
    assert shown == kept.read_text(encoding="utf-8")
