"""The part of the journal that is written again after Redis lost data: orders and results of the last minutes.

An order is retained until its execution is finished and for 15 minutes more, its result for those 15 minutes. All rows
together have at most 64 MiB; beyond that the oldest finished ones are deleted.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["KEEP_SECONDS", "MAX_TEXT", "Recent", "RecentExecution"]

#: Lifetime of a row after the end of its execution.
KEEP_SECONDS = 15 * 60
#: Largest order and result that are retained, in characters.
MAX_TEXT = 256 * 1024
#: Largest sum of all orders and results, in characters.
MAX_TOTAL = 64 * 1024 * 1024

_SCHEMA = """
CREATE TABLE IF NOT EXISTS recent (
    id TEXT PRIMARY KEY,
    order_token TEXT NOT NULL,
    result TEXT NOT NULL DEFAULT '',
    finished_at REAL,
    rewritten INTEGER
) STRICT;
CREATE INDEX IF NOT EXISTS recent_by_end ON recent (finished_at);
"""


@dataclass(frozen=True, slots=True)
class RecentExecution:
    """An execution whose claim, order and result can be written again."""

    exec_id: str
    #: The signed order; empty if it is too large to be retained.
    order: str
    #: The Celery result with the signed receipt; empty before the end, or if it is too large to be retained.
    result: str
    #: True if its claim was written again in a new life of Redis, or an older worker may have done that. The claim then
    #: does not show that Redis still has the record.
    rewritten: bool


class Recent:
    """The rows of one journal. All methods are called on the thread that writes it, inside its transactions."""

    def __init__(self, database: sqlite3.Connection) -> None:
        """Create the table if it is missing."""
        self._database = database
        database.executescript(_SCHEMA)
        if "rewritten" not in [column[1] for column in database.execute("PRAGMA table_info(recent)")]:
            # The journal of an older worker.
            database.execute("ALTER TABLE recent ADD COLUMN rewritten INTEGER")
        total = "SELECT COALESCE(SUM(LENGTH(order_token) + LENGTH(result)), 0) FROM recent"
        self._total = int(database.execute(total).fetchone()[0])

    def add(self, exec_id: str, order: str) -> None:
        """Retain the order of an execution that is about to start."""
        kept = order if len(order) <= MAX_TEXT else ""
        insert = "INSERT OR IGNORE INTO recent (id, order_token, rewritten) VALUES (?, ?, 0)"
        if self._database.execute(insert, (exec_id, kept)).rowcount:
            self._total += len(kept)

    def finish(self, exec_id: str, result: str) -> None:
        """Retain the result of an execution, and delete old executions."""
        kept = result if len(result) <= MAX_TEXT else ""
        update = "UPDATE recent SET result = ?, finished_at = ? WHERE id = ?"
        if self._database.execute(update, (kept, time.time(), exec_id)).rowcount:
            self._total += len(kept)
        self._delete("finished_at < ?", time.time() - KEEP_SECONDS)
        while self._total > MAX_TOTAL:
            oldest = "id IN (SELECT id FROM recent WHERE finished_at IS NOT NULL ORDER BY finished_at LIMIT ?)"
            if not self._delete(oldest, 100):
                break

    def remove(self, exec_id: str) -> None:
        """Remove an execution that this agent must not report again."""
        self._delete("id = ?", exec_id)

    def mark_rewritten(self, exec_ids: Sequence[str]) -> None:
        """Note the executions whose claims are written again."""
        self._database.executemany("UPDATE recent SET rewritten = 1 WHERE id = ?", [(name,) for name in exec_ids])

    def rows(self) -> list[RecentExecution]:
        """Return all rows, those without an end last."""
        found = self._database.execute(
            "SELECT id, order_token, result, rewritten FROM recent WHERE finished_at IS NULL OR finished_at >= ? "
            "ORDER BY finished_at IS NULL, finished_at",
            (time.time() - KEEP_SECONDS,),
        )
        return [RecentExecution(row[0], row[1], row[2], row[3] != 0) for row in found]

    def _delete(self, where: str, value: float | str) -> int:
        """Delete rows by a condition of this module, and return their number."""
        lengths = f"DELETE FROM recent WHERE {where} RETURNING LENGTH(order_token) + LENGTH(result)"  # noqa: S608
        deleted = self._database.execute(lengths, (value,)).fetchall()
        self._total -= sum(length for (length,) in deleted)
        return len(deleted)
