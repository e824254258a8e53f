"""The local journal: what this agent ever claimed, on disk before anything starts.

It is the half of at-most-once that does not depend on Redis: a second delivery, a replayed order, or a Redis that went
back to an older state find the execution's row here and start nothing. SQLite in WAL mode with `synchronous=FULL`: a
commit is on disk when it returns. Rows that arrive while a commit runs share the next one, so a burst of commands costs
few syncs.
"""

from __future__ import annotations

import asyncio
import secrets
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from tachikoma.errors import ConfigurationError

__all__ = ["Journal", "JournalError", "Unfinished"]

#: Rows are kept so long after the claim: longer than an order can be valid.
KEEP_SECONDS = 15 * 24 * 3600
#: Rows written in one commit.
MAX_BATCH = 1000

_SCHEMA = """
CREATE TABLE IF NOT EXISTS journal (boot TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS execution (
    id TEXT PRIMARY KEY,
    order_sha256 TEXT NOT NULL,
    claimed_at REAL NOT NULL,
    done INTEGER NOT NULL DEFAULT 0
) STRICT, WITHOUT ROWID;
"""


class JournalError(Exception):
    """The journal cannot be written; the message is the database's own."""


@dataclass(frozen=True, slots=True)
class Unfinished:
    """An execution that an earlier run of the worker claimed and did not finish."""

    exec_id: str
    order_sha256: str


class Journal:
    """Writes on a thread of its own; its methods belong to one event loop."""

    def __init__(self, folder: Path) -> None:
        """Open or make the journal.

        Raises:
            ConfigurationError: the folder cannot be used.
        """
        path = folder / "journal.db"
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            with ExitStack() as on_failure:
                self._database = sqlite3.connect(path, check_same_thread=False, isolation_level=None, timeout=5)
                on_failure.callback(self._database.close)
                self._database.execute("PRAGMA journal_mode=WAL")
                self._database.execute("PRAGMA synchronous=FULL")
                self._database.executescript(_SCHEMA)
                fresh = "INSERT INTO journal SELECT ? WHERE NOT EXISTS (SELECT * FROM journal)"
                self._database.execute(fresh, (secrets.token_hex(8),))
                #: Names this journal: who has it knows of all that was claimed with it.
                self.boot = str(self._database.execute("SELECT boot FROM journal").fetchone()[0])
                self._database.execute(
                    "DELETE FROM execution WHERE done = 1 AND claimed_at < ?", (time.time() - KEEP_SECONDS,)
                )
                on_failure.pop_all()
        except (OSError, sqlite3.Error) as error:
            raise ConfigurationError(f"cannot use the journal {path}: {error}") from error
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="journal")
        self._waiting: list[tuple[Callable[[], bool], asyncio.Future[bool]]] = []
        self._writing = False

    def unfinished(self) -> list[Unfinished]:
        """What an earlier run left. To be called before anything is claimed."""
        rows = self._database.execute("SELECT id, order_sha256 FROM execution WHERE done = 0")
        return [Unfinished(*row) for row in rows]

    async def claim(self, exec_id: str, order_sha256: str) -> bool:
        """Write that this agent is about to start an execution; on disk when it returns.

        Returns:
            False when it is there already: whoever asks must not start it.

        Raises:
            JournalError: it could not be written, so nothing may start.
        """

        def insert() -> bool:
            cursor = self._database.execute(
                "INSERT OR IGNORE INTO execution (id, order_sha256, claimed_at) VALUES (?, ?, ?)",
                (exec_id, order_sha256, time.time()),
            )
            return cursor.rowcount == 1

        return await self._write(insert)

    def finish(self, exec_id: str) -> None:
        """Keep that its end was delivered. Written behind; losing it only makes a later run report it again."""
        self._behind("UPDATE execution SET done = 1 WHERE id = ?", (exec_id,))

    def _behind(self, statement: str, values: tuple[object, ...]) -> None:
        def update() -> bool:
            self._database.execute(statement, values)
            return True

        future = self._write(update)
        # Nobody waits for it, so nobody else would look at its failure.
        future.add_done_callback(lambda done: done.cancelled() or done.exception())

    def _write(self, action: Callable[[], bool]) -> asyncio.Future[bool]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[bool] = loop.create_future()
        self._waiting.append((action, future))
        if not self._writing:
            self._writing = True
            # At the end of this turn, so that all that come in it share one commit.
            loop.call_soon(self._start_batch, loop)
        return future

    def _start_batch(self, loop: asyncio.AbstractEventLoop) -> None:
        batch, self._waiting = self._waiting[:MAX_BATCH], self._waiting[MAX_BATCH:]
        job = self._writer.submit(self._commit, [action for action, _ in batch])
        job.add_done_callback(lambda done: loop.call_soon_threadsafe(self._finish_batch, loop, batch, done))

    def _commit(self, actions: list[Callable[[], bool]]) -> list[bool]:
        self._database.execute("BEGIN IMMEDIATE")
        try:
            results = [action() for action in actions]
            self._database.execute("COMMIT")
        except BaseException:
            if self._database.in_transaction:
                self._database.execute("ROLLBACK")
            raise
        return results

    def _finish_batch(self, loop: asyncio.AbstractEventLoop, batch: list, done) -> None:  # type: ignore[no-untyped-def,type-arg]
        error = done.exception()
        results = [False] * len(batch) if error else done.result()
        for (_, future), result in zip(batch, results, strict=True):
            if future.done():
                continue
            if error:
                future.set_exception(JournalError(str(error)))
            else:
                future.set_result(result)
        if self._waiting:
            self._start_batch(loop)
        else:
            self._writing = False

    def close(self) -> None:
        """Finish what is being written and close."""
        self._writer.shutdown()
        self._database.close()
