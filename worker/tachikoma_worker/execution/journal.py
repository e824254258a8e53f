"""The agent's local journal of claims: every execution that it may have started, on disk before the start.

The journal is the half of at-most-once that does not depend on Redis. A second delivery, a replayed order, or a Redis
that was restored from an older state finds the execution's row here, and nothing is started. The journal also remembers
what such a Redis needs again (`recent.py`) and the highest life of Redis (`lives.py`).

SQLite in WAL mode with `synchronous=FULL`: a commit is on disk when it returns. Rows that arrive during a commit share
the next one, so a burst of commands costs few syncs.
"""

from __future__ import annotations

import asyncio
import secrets
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from tachikoma.errors import ConfigurationError
from tachikoma_worker.execution.recent import Recent, RecentExecution
from tachikoma_worker.execution.reserve import DiskReserve

__all__ = ["Journal", "JournalError", "Unfinished"]

T = TypeVar("T")

#: Lifetime of a finished row after its claim. It exceeds the time in which an order is valid.
KEEP_SECONDS = 15 * 24 * 3600
#: Rows of one commit at most.
MAX_BATCH = 1000
#: Longest wait for another process that has locked the database.
LOCK_SECONDS = 5.0

_SCHEMA = """
CREATE TABLE IF NOT EXISTS journal (boot TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS execution (
    id TEXT PRIMARY KEY,
    order_sha256 TEXT NOT NULL,
    claimed_at REAL NOT NULL,
    done INTEGER NOT NULL DEFAULT 0
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS life (record TEXT NOT NULL) STRICT;
"""


class JournalError(Exception):
    """The journal cannot be written; the message is the database's own."""


@dataclass(frozen=True, slots=True)
class Unfinished:
    """An execution that an earlier run of the worker claimed and did not finish."""

    exec_id: str
    order_sha256: str


@dataclass(frozen=True, slots=True)
class _Write:
    """A statement that waits for its commit."""

    action: Callable[[], bool]
    #: Resolves with the result of `action` after the commit.
    done: asyncio.Future[bool]


class Journal:
    """The journal of one agent. It writes on a thread of its own; its methods belong to one event loop."""

    def __init__(self, folder: Path, reserve: DiskReserve | None = None) -> None:
        """Open or create the journal.

        Args:
            folder: the agent's data folder.
            reserve: disk space for writes to a full disk; None for no such space.

        Raises:
            ConfigurationError: the folder or the file cannot be used.
        """
        path = folder / "journal.db"
        self._reserve = reserve
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._database = sqlite3.connect(path, check_same_thread=False, isolation_level=None, timeout=LOCK_SECONDS)
        except (OSError, sqlite3.Error) as error:
            raise ConfigurationError(f"cannot use the journal {path}: {error}") from error
        try:
            #: Random id of this journal. Claims contain it; a changed id means that earlier claims are unknown.
            self.boot = self._with_reserve(self._open)
        except sqlite3.Error as error:
            self._database.close()
            raise ConfigurationError(f"cannot use the journal {path}: {error}") from error
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="journal")
        self._waiting: list[_Write] = []
        self._writing = False

    def _open(self) -> str:
        """Create what is missing, delete old rows, and return the journal's id."""
        self._database.execute("PRAGMA journal_mode=WAL")
        self._database.execute("PRAGMA synchronous=FULL")
        self._database.executescript(_SCHEMA)
        fresh = "INSERT INTO journal SELECT ? WHERE NOT EXISTS (SELECT * FROM journal)"
        self._database.execute(fresh, (secrets.token_hex(8),))
        oldest = time.time() - KEEP_SECONDS
        self._database.execute("DELETE FROM execution WHERE done = 1 AND claimed_at < ?", (oldest,))
        self._recent = Recent(self._database)
        return str(self._database.execute("SELECT boot FROM journal").fetchone()[0])

    def unfinished(self) -> list[Unfinished]:
        """Return the executions that an earlier run left. Call it before anything is claimed."""
        rows = self._database.execute("SELECT id, order_sha256 FROM execution WHERE done = 0")
        return [Unfinished(*row) for row in rows]

    def life(self) -> str:
        """Return the signed record of the highest life of Redis; empty for none. Call it before anything is claimed."""
        row = self._database.execute("SELECT record FROM life").fetchone()
        return "" if row is None else str(row[0])

    async def remember_life(self, record: str) -> None:
        """Replace the signed record of the highest life of Redis; it is on disk when this returns.

        Raises:
            JournalError: it could not be written.
        """

        def replace() -> bool:
            self._database.execute("DELETE FROM life")
            self._database.execute("INSERT INTO life VALUES (?)", (record,))
            return True

        await self._write(replace)

    async def recent(self) -> list[RecentExecution]:
        """Return the executions of the last minutes, which can be written to Redis again.

        Raises:
            JournalError: the journal cannot be read.
        """
        found: list[RecentExecution] = []

        def select() -> bool:
            found.extend(self._recent.rows())
            return True

        await self._write(select)
        return found

    async def claim(self, exec_id: str, order_sha256: str, order: str = "") -> bool:
        """Record that this agent is about to start an execution. The row is on disk when this returns.

        Args:
            exec_id: the execution.
            order_sha256: SHA-256 of its signed order.
            order: the signed order itself, which is retained for a while.

        Returns:
            False if there is a row already: the caller must not start the execution.

        Raises:
            JournalError: the row could not be written, so nothing may start.
        """

        def insert() -> bool:
            cursor = self._database.execute(
                "INSERT OR IGNORE INTO execution (id, order_sha256, claimed_at) VALUES (?, ?, ?)",
                (exec_id, order_sha256, time.time()),
            )
            if cursor.rowcount == 1 and order:
                self._recent.add(exec_id, order)
            return cursor.rowcount == 1

        return await self._write(insert)

    async def is_claimed_for(self, exec_id: str, order_sha256: str) -> bool:
        """Return whether an execution was claimed for this order.

        Raises:
            JournalError: the journal cannot be read.
        """

        def select() -> bool:
            row = self._database.execute("SELECT order_sha256 FROM execution WHERE id = ?", (exec_id,)).fetchone()
            return row is not None and row[0] == order_sha256

        return await self._write(select)

    def finish(self, exec_id: str, order_sha256: str, result: str = "") -> None:
        """Record in the background that the receipt for an order was delivered.

        If the record is lost, a later run only delivers the receipt again.

        Args:
            exec_id: the execution.
            order_sha256: SHA-256 of its signed order.
            result: the Celery result with the receipt, which is retained for a while; empty for none.
        """

        def update() -> bool:
            # Another order of the same id may still be running.
            where = "UPDATE execution SET done = 1 WHERE id = ? AND order_sha256 = ?"
            if self._database.execute(where, (exec_id, order_sha256)).rowcount:
                self._recent.finish(exec_id, result)
            return True

        future = self._write(update)
        # No caller waits for it, so its failure is retrieved here.
        future.add_done_callback(lambda done: done.cancelled() or done.exception())

    async def flush(self) -> None:
        """Wait until everything that was recorded so far is on disk, or could not be written."""
        with suppress(JournalError):
            await self._write(lambda: True)

    def close(self) -> None:
        """Finish the current writes and close the database. Safe to repeat."""
        self._writer.shutdown()
        self._database.close()

    # --- commits ------------------------------------------------------------------------------------------------------

    def _write(self, action: Callable[[], bool]) -> asyncio.Future[bool]:
        """Let an action be part of the next commit."""
        loop = asyncio.get_running_loop()
        write = _Write(action, loop.create_future())
        self._waiting.append(write)
        if not self._writing:
            self._writing = True
            # At the end of this turn of the loop, so that all writes of the turn share one commit.
            loop.call_soon(self._start_batch, loop)
        return write.done

    def _start_batch(self, loop: asyncio.AbstractEventLoop) -> None:
        batch, self._waiting = self._waiting[:MAX_BATCH], self._waiting[MAX_BATCH:]
        job = self._writer.submit(self._commit, [write.action for write in batch])
        job.add_done_callback(lambda done: loop.call_soon_threadsafe(self._finish_batch, loop, batch, done))

    def _commit(self, actions: list[Callable[[], bool]]) -> list[bool]:
        """Run all actions in one transaction, on the writer's thread, with the reserve on a full disk."""
        return self._with_reserve(partial(self._transaction, actions))

    def _with_reserve(self, write: Callable[[], T]) -> T:
        return write() if self._reserve is None else self._reserve.write(write)

    def _transaction(self, actions: list[Callable[[], bool]]) -> list[bool]:
        self._database.execute("BEGIN IMMEDIATE")
        try:
            results = [action() for action in actions]
            self._database.execute("COMMIT")
        except BaseException:
            if self._database.in_transaction:
                self._database.execute("ROLLBACK")
            raise
        return results

    def _finish_batch(self, loop: asyncio.AbstractEventLoop, batch: list[_Write], job: Future[list[bool]]) -> None:
        """Deliver the results of a commit, and start the next one if there are more writes."""
        error = job.exception()
        results = [False] * len(batch) if error else job.result()
        for write, result in zip(batch, results, strict=True):
            if write.done.done():
                continue
            if error:
                write.done.set_exception(JournalError(str(error)))
            else:
                write.done.set_result(result)
        if self._waiting:
            self._start_batch(loop)
        else:
            self._writing = False
