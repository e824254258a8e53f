"""Ids of executions and agents."""

from __future__ import annotations

import os
import re

__all__ = ["ID_PATTERN", "is_identifier", "new_id"]

#: Pattern of the ids of executions and agents. No dot: it separates parts of Redis names and of Celery's task ids.
ID_PATTERN = r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}"


def is_identifier(value: str) -> bool:
    """Return True if a text has the form of an id of an execution or agent."""
    return re.fullmatch(ID_PATTERN, value) is not None


def new_id() -> str:
    """Return a new execution id of 96 random bits, which cannot be guessed."""
    # As `secrets.token_hex`, whose module loads others that a short command does not need.
    return os.urandom(12).hex()
