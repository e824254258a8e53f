"""The local journal, on a real SQLite file."""

from __future__ import annotations

import asyncio
import errno
import gc
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tachikoma.errors import ConfigurationError
from tachikoma_worker.execution import journal as journal_module
from tachikoma_worker.execution.journal import KEEP_SECONDS, MAX_BATCH, Journal, JournalError, Unfinished

PATIENCE_SECONDS = 30


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    opened = Journal(tmp_path)
    yield opened
    opened.close()


def commits(journal: Journal) -> list[str]:
    """Filled with each COMMIT from now on."""
    seen: list[str] = []
    journal._database.set_trace_callback(lambda text: seen.append(text) if text == "COMMIT" else None)
    return seen


async def written(journal: Journal) -> None:
    """Everything handed in so far is on disk: one more claim comes after it."""
    await journal.claim(f"after-{time.monotonic_ns()}", "")


def full(journal: Journal) -> None:
    """From now on the disk is full."""
    pages = journal._database.execute("PRAGMA page_count").fetchone()[0]
    journal._database.execute(f"PRAGMA max_page_count = {pages}")


def room_again(journal: Journal) -> None:
    journal._database.execute("PRAGMA max_page_count = 1000000")


# --- claims -----------------------------------------------------------------------------------------------------------


async def test_the_first_claim_of_an_id_is_granted(journal: Journal) -> None:
    assert await journal.claim("job-7", "ab") is True


async def test_a_second_claim_of_the_same_id_is_refused(journal: Journal) -> None:
    await journal.claim("job-7", "ab")
    assert await journal.claim("job-7", "ab") is False
    assert await journal.claim("job-7", "another order") is False
    assert await journal.claim("job-8", "ab") is True


async def test_of_many_claims_at_once_exactly_one_is_granted(journal: Journal) -> None:
    granted = await asyncio.gather(*(journal.claim("job-7", str(number)) for number in range(200)))
    assert granted.count(True) == 1
    assert granted[0] is True


async def test_a_claim_is_refused_also_after_the_end_was_delivered(journal: Journal) -> None:
    await journal.claim("job-7", "ab")
    journal.finish("job-7", "ab")
    await written(journal)
    assert await journal.claim("job-7", "ab") is False


async def test_a_receipt_of_another_order_finishes_nothing(journal: Journal, tmp_path: Path) -> None:
    await journal.claim("job-7", "ab")
    assert await journal.is_claimed_for("job-7", "ab") is True
    assert await journal.is_claimed_for("job-7", "other") is False
    assert await journal.is_claimed_for("job-8", "ab") is False
    journal.finish("job-7", "other")
    await journal.flush()
    assert journal.unfinished() == [Unfinished("job-7", "ab")]
    journal.finish("job-7", "ab")
    await journal.flush()
    assert journal.unfinished() == []


async def test_a_claim_survives_a_restart(tmp_path: Path) -> None:
    first = Journal(tmp_path)
    assert await first.claim("job-7", "ab")
    first.close()
    second = Journal(tmp_path)
    try:
        assert await second.claim("job-7", "ab") is False
    finally:
        second.close()


async def test_a_claim_survives_the_death_of_the_process(tmp_path: Path) -> None:
    script = (
        "import asyncio, os, sys; from pathlib import Path; from tachikoma_worker.execution.journal import Journal\n"
        "async def main():\n"
        "    assert await Journal(Path(sys.argv[1])).claim('job-7', 'ab')\n"
        "    os.kill(os.getpid(), 9)\n"
        "asyncio.run(main())\n"
    )
    died = subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False)
    assert died.returncode == -9
    journal = Journal(tmp_path)
    try:
        assert journal.unfinished() == [Unfinished("job-7", "ab")]
        assert await journal.claim("job-7", "ab") is False
    finally:
        journal.close()


async def test_two_workers_on_one_folder_do_not_both_get_a_claim(tmp_path: Path, journal: Journal) -> None:
    other = Journal(tmp_path)
    try:
        ids = [f"job-{number}" for number in range(50)]
        mine, theirs = await asyncio.gather(
            asyncio.gather(*(journal.claim(name, "") for name in ids)),
            asyncio.gather(*(other.claim(name, "") for name in ids)),
        )
    finally:
        other.close()
    assert [one + two for one, two in zip(mine, theirs, strict=True)] == [1] * 50


async def test_a_caller_that_gives_up_does_not_undo_the_claim(journal: Journal) -> None:
    impatient = asyncio.ensure_future(journal.claim("job-7", "ab"))
    await asyncio.sleep(0)
    impatient.cancel()
    assert await journal.claim("job-8", "ab") is True
    assert await journal.claim("job-7", "ab") is False


# --- what an earlier run left -----------------------------------------------------------------------------------------


async def test_what_was_not_finished_is_listed_after_a_restart(tmp_path: Path) -> None:
    first = Journal(tmp_path)
    for name in ("done", "running", "claimed"):
        await first.claim(name, f"sha-{name}")
    first.finish("done", "sha-done")
    await written(first)
    first.close()
    second = Journal(tmp_path)
    try:
        left = {item.exec_id: item for item in second.unfinished() if not item.exec_id.startswith("after-")}
    finally:
        second.close()
    assert left == {
        "running": Unfinished("running", "sha-running"),
        "claimed": Unfinished("claimed", "sha-claimed"),
    }


def test_a_new_journal_has_nothing_unfinished(journal: Journal) -> None:
    assert journal.unfinished() == []


async def test_what_is_written_behind_is_written_before_close_returns(tmp_path: Path) -> None:
    first = Journal(tmp_path)
    await first.claim("job-7", "ab")
    first.finish("job-7", "ab")
    await asyncio.sleep(0)  # one turn of the loop hands it to the writer
    first.close()
    second = Journal(tmp_path)
    try:
        assert second.unfinished() == []
    finally:
        second.close()


async def test_old_rows_are_let_go_when_opened_but_only_finished_ones(tmp_path: Path) -> None:
    first = Journal(tmp_path)
    for name in ("old-done", "old-open", "new-done"):
        await first.claim(name, "")
    first.finish("old-done", "")
    first.finish("new-done", "")
    await written(first)
    first._database.execute(
        "UPDATE execution SET claimed_at = ? WHERE id LIKE 'old-%'", (time.time() - KEEP_SECONDS - 60,)
    )
    first.close()
    second = Journal(tmp_path)
    try:
        kept = {row[0] for row in second._database.execute("SELECT id FROM execution") if row[0][:6] != "after-"}
    finally:
        second.close()
    assert kept == {"old-open", "new-done"}


# --- one commit for many ----------------------------------------------------------------------------------------------


async def test_claims_of_one_turn_share_one_commit(journal: Journal) -> None:
    seen = commits(journal)
    granted = await asyncio.gather(*(journal.claim(f"job-{number}", "") for number in range(500)))
    assert all(granted)
    assert len(seen) == 1


async def test_claims_that_come_while_a_commit_runs_share_the_next_one(journal: Journal) -> None:
    seen = commits(journal)
    first = asyncio.ensure_future(journal.claim("first", ""))
    await asyncio.sleep(0)  # it is handed in,
    await asyncio.sleep(0)  # and its batch is with the writer
    others = [asyncio.ensure_future(journal.claim(f"job-{number}", "")) for number in range(100)]
    assert await first
    assert all(await asyncio.gather(*others))
    assert len(seen) == 2


async def test_a_very_large_burst_is_written_in_bounded_commits(journal: Journal) -> None:
    seen = commits(journal)
    granted = await asyncio.gather(*(journal.claim(f"job-{number}", "") for number in range(2 * MAX_BATCH + 1)))
    assert all(granted)
    assert len(seen) == 3


# --- what reaches the disk, and when ----------------------------------------------------------------------------------


class Disk:
    """The syncs of a journal, which wait until the disk is quick."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, slow: bool = False) -> None:
        self.quick = threading.Event()
        self.error: OSError | None = None
        #: Set after the first sync.
        self.done = threading.Event()
        #: Ids in the file at each sync.
        self.synced: list[list[str]] = []
        sync = Journal._sync
        if not slow:
            self.quick.set()

        def slow_sync(journal: Journal) -> None:
            rows = journal._database.execute("SELECT id FROM execution").fetchall()
            assert self.quick.wait(PATIENCE_SECONDS)
            if self.error is not None:
                raise self.error
            sync(journal)
            self.synced.append([row[0] for row in rows])
            self.done.set()

        monkeypatch.setattr(Journal, "_sync", slow_sync)


def test_the_database_syncs_only_what_its_checkpoints_move(journal: Journal) -> None:
    assert journal._database.execute("PRAGMA synchronous").fetchone() == (1,)
    assert journal._database.execute("PRAGMA journal_mode").fetchone() == ("wal",)


async def test_a_claim_is_on_disk_when_it_returns(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk(monkeypatch)
    assert await journal.claim("job-7", "ab")
    assert disk.synced == [["job-7"]]


async def test_its_caller_can_go_on_while_a_claim_reaches_the_disk(
    journal: Journal, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    disk = Disk(monkeypatch, slow=True)
    row = journal.claim("job-7", "ab")
    assert await row.written is True
    assert not row.on_disk.done()
    # Another process, as the next worker is one, has it already.
    with closing(sqlite3.connect(tmp_path / "journal.db")) as next_worker:
        assert next_worker.execute("SELECT id FROM execution").fetchall() == [("job-7",)]
    disk.quick.set()
    assert await row is True


async def test_a_disk_that_fails_makes_the_claim_fail(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk(monkeypatch)
    disk.error = OSError(errno.EIO, "Input/output error")
    row = journal.claim("job-7", "ab")
    assert await row.written is True
    with pytest.raises(JournalError, match="Input/output error"):
        await row
    disk.error = None
    assert await journal.claim("job-8", "ab") is True
    gc.collect()  # a failure that no caller looked at would be reported here


async def test_a_finished_row_waits_for_no_disk_and_is_there_soon(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    await journal.claim("job-7", "ab")
    monkeypatch.setattr(journal_module, "SYNC_SECONDS", 0.01)
    disk = Disk(monkeypatch, slow=True)
    journal.finish("job-7", "ab")
    assert await journal.is_claimed_for("job-7", "ab")
    assert journal.unfinished() == []
    assert disk.synced == []
    disk.quick.set()
    assert await asyncio.to_thread(disk.done.wait, PATIENCE_SECONDS)
    assert disk.synced == [["job-7"]]


async def test_what_is_flushed_is_on_disk(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk(monkeypatch)
    await journal.remember_life("life")
    journal.finish("job-7", "ab")
    await journal.flush()
    assert len(disk.synced) == 2


# --- a journal that cannot be written ---------------------------------------------------------------------------------


async def test_on_a_full_disk_nothing_is_claimed_and_it_goes_on_when_there_is_room(journal: Journal) -> None:
    assert await journal.claim("before", "")
    full(journal)
    with pytest.raises(JournalError, match="full"):
        await journal.claim("too-large", "x" * 100_000)
    room_again(journal)
    assert await journal.claim("too-large", "x" * 100_000) is True
    assert await journal.claim("before", "") is False


async def test_on_a_full_disk_everybody_in_the_batch_is_told(journal: Journal) -> None:
    full(journal)
    results = await asyncio.gather(
        *(journal.claim(f"job-{number}", "x" * 10_000) for number in range(20)), return_exceptions=True
    )
    assert all(isinstance(result, JournalError) for result in results)
    room_again(journal)
    # None of them was written in part.
    assert journal.unfinished() == []
    assert all(await asyncio.gather(*(journal.claim(f"job-{number}", "") for number in range(20))))


async def test_what_is_written_behind_fails_in_silence_and_breaks_nothing(journal: Journal) -> None:
    await journal.claim("job-7", "ab")
    journal._database.execute("ALTER TABLE execution RENAME TO elsewhere")
    journal.finish("job-7", "ab")
    with pytest.raises(JournalError, match="no such table"):
        await journal.claim("job-8", "ab")
    journal._database.execute("ALTER TABLE elsewhere RENAME TO execution")
    assert await journal.claim("job-8", "ab") is True
    gc.collect()  # a failure that nobody looked at would be told here


async def test_a_database_that_another_process_holds_is_told(journal: Journal, tmp_path: Path) -> None:
    journal._database.execute("PRAGMA busy_timeout = 1")
    holder = sqlite3.connect(tmp_path / "journal.db", isolation_level=None)
    try:
        holder.execute("BEGIN IMMEDIATE")
        with pytest.raises(JournalError, match="locked"):
            await journal.claim("job-7", "ab")
        holder.execute("ROLLBACK")
        assert await journal.claim("job-7", "ab") is True
    finally:
        holder.close()


# --- a folder that cannot be used -------------------------------------------------------------------------------------


def test_the_folder_is_made_for_its_owner_only(tmp_path: Path) -> None:
    Journal(tmp_path / "deep" / "data").close()
    assert (tmp_path / "deep" / "data").stat().st_mode & 0o777 == 0o700


def test_a_file_in_place_of_the_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("")
    with pytest.raises(ConfigurationError, match=r"cannot use the journal .*journal\.db"):
        Journal(tmp_path / "data")


def test_a_file_that_is_no_database_is_told_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    path.write_bytes(b"not a database, but precious\n" * 100)
    with pytest.raises(ConfigurationError, match="not a database"):
        Journal(tmp_path)
    gc.collect()
    assert path.read_bytes() == b"not a database, but precious\n" * 100
