"""The agent's local journal of claims: every execution that it may have started, on disk before the start.

The journal is the half of at-most-once that does not depend on Redis. A second delivery, a replayed order, or a Redis
that was restored from an older state finds the execution's row here, and nothing is started. The journal also remembers
what such a Redis needs again (`recent.py`) and the highest life of Redis (`lives.py`).

SQLite in WAL mode. A killed worker leaves everything that it committed; a power failure leaves only what was synced. A
claim is synced at once, and nothing starts before; meanwhile its caller continues (`Entry`). Rows that arrive during a
commit share the next one, so a burst of commands costs few syncs.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import sqlite3
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from tachikoma.errors import ConfigurationError
from tachikoma_worker.execution.recent import Recent, RecentExecution
from tachikoma_worker.execution.reserve import DiskReserve

__all__ = ["Entry", "Journal", "JournalError", "Unfinished"]

T = TypeVar("T")

#: Lifetime of a finished row after its claim. It exceeds the time in which an order is valid.
KEEP_SECONDS = 15 * 24 * 3600
#: Rows of one commit at most.
MAX_BATCH = 1000
#: Rows that nothing waits for are on disk after this time.
SYNC_SECONDS = 1.0
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
class Entry:
    """A write to the journal. Awaiting it returns its result when it is on disk."""

    #: Resolves with the result after the commit. A killed worker finds it then; after a power cut it may be lost.
    written: asyncio.Future[bool]
    #: Resolves with the result when it is on disk, if the write is synced. Both may raise JournalError.
    on_disk: asyncio.Future[bool]

    def __await__(self) -> Generator[object, None, bool]:
        """Return the result once it is on disk. Raises JournalError."""
        return self.on_disk.__await__()


@dataclass(frozen=True, slots=True)
class _Write:
    """A statement that waits for its commit."""

    action: Callable[[], bool]
    entry: Entry
    #: True if it is synced at once.
    synced: bool


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
        #: The timer for the next sync of rows that nothing waits for; None if all are on disk.
        self._sync_later: asyncio.TimerHandle | None = None
        self._wal = path.with_name(f"{path.name}-wal")
        #: Descriptor of that file; None before the first sync.
        self._wal_file: int | None = None

    def _open(self) -> str:
        """Create what is missing, delete old rows, and return the journal's id."""
        self._database.execute("PRAGMA journal_mode=WAL")
        # The checkpoints sync what they move; the rest is done by `_sync`.
        self._database.execute("PRAGMA synchronous=NORMAL")
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

        await self._write(replace, synced=True)

    async def recent(self) -> list[RecentExecution]:
        """Return the executions of the last minutes, which can be written to Redis again.

        Raises:
            JournalError: the journal cannot be read.
        """
        found: list[RecentExecution] = []

        def select() -> bool:
            found.extend(self._recent.rows())
            return True

        await self._write(select).written
        return found

    async def mark_rewritten(self, exec_ids: Sequence[str]) -> None:
        """Note that the claims of executions are written to Redis again; it is on disk when this returns.

        Raises:
            JournalError: it could not be written.
        """

        def mark() -> bool:
            self._recent.mark_rewritten(exec_ids)
            return True

        await self._write(mark, synced=True)

    def claim(self, exec_id: str, order_sha256: str, order: str = "") -> Entry:
        """Record that this agent is about to start an execution.

        Args:
            exec_id: the execution.
            order_sha256: SHA-256 of its signed order.
            order: the signed order itself, which is retained for a while.

        Returns:
            The row. Its result is False if there was one already: the caller must not start the execution. Nothing may
            start before it is on disk, nor after a JournalError.
        """

        def insert() -> bool:
            cursor = self._database.execute(
                "INSERT OR IGNORE INTO execution (id, order_sha256, claimed_at) VALUES (?, ?, ?)",
                (exec_id, order_sha256, time.time()),
            )
            if cursor.rowcount == 1 and order:
                self._recent.add(exec_id, order)
            return cursor.rowcount == 1

        return self._write(insert, synced=True)

    async def is_claimed_for(self, exec_id: str, order_sha256: str) -> bool:
        """Return whether an execution was claimed for this order.

        Raises:
            JournalError: the journal cannot be read.
        """

        def select() -> bool:
            row = self._database.execute("SELECT order_sha256 FROM execution WHERE id = ?", (exec_id,)).fetchone()
            return row is not None and row[0] == order_sha256

        return await self._write(select).written

    def finish(self, exec_id: str, order_sha256: str, result: str = "") -> None:
        """Record in the background that the receipt for an order was delivered.

        It is on disk within about `SYNC_SECONDS`. If it is lost, a later run only delivers the receipt again.

        Args:
            exec_id: the execution.
            order_sha256: SHA-256 of its signed order.
            result: the Celery result with the receipt, which is retained for a while; empty for none.
        """

        self._end(exec_id, order_sha256, lambda: self._recent.finish(exec_id, result))

    def withdraw(self, exec_id: str, order_sha256: str) -> None:
        """Record in the background that the claim of an order was refused, so it is not written to Redis again.

        The row stays: no later order of this id may start.
        """
        self._end(exec_id, order_sha256, lambda: self._recent.remove(exec_id))

    def _end(self, exec_id: str, order_sha256: str, then: Callable[[], None]) -> None:
        """Mark the row of an order as done, and change what is retained of it in the same commit."""

        def update() -> bool:
            # Another order of the same id may still be running.
            where = "UPDATE execution SET done = 1 WHERE id = ? AND order_sha256 = ?"
            if self._database.execute(where, (exec_id, order_sha256)).rowcount:
                then()
            return True

        self._write(update)
        if self._sync_later is None:
            self._sync_later = asyncio.get_running_loop().call_later(SYNC_SECONDS, self._sync_rows)

    async def flush(self) -> None:
        """Wait until everything that was recorded so far is on disk, or could not be written."""
        if self._sync_later is not None:
            self._sync_later.cancel()
            self._sync_later = None
        with suppress(JournalError):
            await self._write(lambda: True, synced=True)

    def close(self) -> None:
        """Finish the current writes and close the database. Safe to repeat."""
        self._writer.shutdown()
        self._database.close()
        if self._wal_file is not None:
            os.close(self._wal_file)
            self._wal_file = None

    # --- commits ------------------------------------------------------------------------------------------------------

    def _write(self, action: Callable[[], bool], *, synced: bool = False) -> Entry:
        """Add an action to the next commit. A commit is synced if one of its actions is to be synced."""
        loop = asyncio.get_running_loop()
        entry = Entry(loop.create_future(), loop.create_future())
        for future in (entry.written, entry.on_disk):
            # Not every caller waits for both, so a failure is retrieved here.
            future.add_done_callback(lambda done: done.cancelled() or done.exception())
        self._waiting.append(_Write(action, entry, synced))
        if not self._writing:
            self._writing = True
            # At the end of this turn of the loop, so that all writes of the turn share one commit.
            loop.call_soon(self._start_batch, loop)
        return entry

    def _sync_rows(self) -> None:
        """Sync the rows that nothing waits for."""
        self._sync_later = None
        self._write(lambda: True, synced=True)

    def _start_batch(self, loop: asyncio.AbstractEventLoop) -> None:
        batch, self._waiting = self._waiting[:MAX_BATCH], self._waiting[MAX_BATCH:]
        self._writer.submit(self._commit, loop, batch)

    def _commit(self, loop: asyncio.AbstractEventLoop, batch: Sequence[_Write]) -> None:
        """Run all actions in one transaction, with the reserve on a full disk, and sync it. On the writer's thread."""
        results: Sequence[bool] = [False] * len(batch)
        error: Exception | None = None
        try:
            results = self._with_reserve(partial(self._transaction, [write.action for write in batch]))
            if any(write.synced for write in batch):
                loop.call_soon_threadsafe(_resolve, [write.entry.written for write in batch], results, None)
                self._sync()
        except Exception as failure:
            error = failure
        loop.call_soon_threadsafe(self._finish_batch, loop, batch, results, error)

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

    def _sync(self) -> None:
        """Sync all commits to the disk. Raises OSError.

        Do not repeat it after a failure: the kernel may have dropped the data that it could not write, and report
        success the next time.
        """
        if self._wal_file is None:
            self._wal_file = os.open(self._wal, os.O_RDONLY | os.O_CLOEXEC)
            # The file may be new in its folder.
            os.fsync(self._wal_file)
            _sync_folder(self._wal.parent)
            return
        os.fdatasync(self._wal_file)

    def _finish_batch(
        self, loop: asyncio.AbstractEventLoop, batch: Sequence[_Write], results: Sequence[bool],
        error: Exception | None,
    ) -> None:  # fmt: skip
        """Deliver the results of a commit, and start the next one if there are more writes."""
        for futures in ([write.entry.written for write in batch], [write.entry.on_disk for write in batch]):
            _resolve(futures, results, error)
        if self._waiting:
            self._start_batch(loop)
        else:
            self._writing = False


def _resolve(futures: Sequence[asyncio.Future[bool]], results: Sequence[bool], error: Exception | None) -> None:
    """Resolve the futures that wait, with their results or with one error."""
    for future, result in zip(futures, results, strict=True):
        if future.done():
            continue
        if error is not None:
            future.set_exception(JournalError(str(error)))
        else:
            future.set_result(result)


def _sync_folder(folder: Path) -> None:
    """Sync the names in a folder to the disk. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
