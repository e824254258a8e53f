"""The orders and results that a journal retains for a while."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from tachikoma_worker.execution import recent as module
from tachikoma_worker.execution.recent import KEEP_SECONDS, MAX_TEXT, Recent, RecentExecution


@pytest.fixture
def database() -> Iterator[sqlite3.Connection]:
    opened = sqlite3.connect(":memory:", isolation_level=None)
    yield opened
    opened.close()


def test_an_order_is_retained_and_its_result_after_the_end(database: sqlite3.Connection) -> None:
    recent = Recent(database)
    recent.add("job-1", "order 1")
    recent.add("job-2", "order 2")
    recent.add("job-1", "a later order of the same id")
    recent.finish("job-2", "result 2")
    recent.finish("job-3", "of an unknown execution")
    rows = [RecentExecution("job-2", "order 2", "result 2", False), RecentExecution("job-1", "order 1", "", False)]
    assert recent.rows() == rows
    assert Recent(database).rows() == rows


def test_executions_whose_claims_were_written_again_are_known_to_the_next_worker(database: sqlite3.Connection) -> None:
    recent = Recent(database)
    for name in ("one", "other"):
        recent.add(name, "order")
    recent.mark_rewritten(["other", "unknown"])
    assert {row.exec_id: row.rewritten for row in Recent(database).rows()} == {"one": False, "other": True}


def test_an_older_worker_may_have_written_each_claim_again(database: sqlite3.Connection) -> None:
    database.execute(
        "CREATE TABLE recent (id TEXT PRIMARY KEY, order_token TEXT NOT NULL, result TEXT NOT NULL DEFAULT '', "
        "finished_at REAL) STRICT"
    )
    older = "INSERT OR IGNORE INTO recent (id, order_token) VALUES (?, ?)"
    database.execute(older, ("before", "order"))
    recent = Recent(database)
    recent.add("now", "order")
    # It may also run again after this version.
    database.execute(older, ("between", "order"))
    assert {row.exec_id: row.rewritten for row in recent.rows()} == {"before": True, "now": False, "between": True}


def test_rows_are_deleted_some_minutes_after_the_end(
    database: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    recent = Recent(database)
    for name in ("long", "ended", "later"):
        recent.add(name, "order")
    recent.finish("ended", "result")
    now = module.time.time() + KEEP_SECONDS + 1
    monkeypatch.setattr(module, "time", SimpleNamespace(time=lambda: now))
    recent.finish("later", "result")
    assert [row.exec_id for row in recent.rows()] == ["later", "long"]
    assert database.execute("SELECT COUNT(*) FROM recent").fetchone() == (2,)


def test_a_removed_execution_is_not_reported(database: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_TOTAL", 10)
    recent = Recent(database)
    recent.add("job-1", "order 1")
    recent.add("job-2", "order 2")
    recent.remove("job-1")
    recent.remove("unknown")
    # It does not count any more, so nothing is deleted for the bound.
    recent.finish("job-2", "end")
    assert recent.rows() == [RecentExecution("job-2", "order 2", "end", False)]


def test_large_texts_are_not_retained(database: sqlite3.Connection) -> None:
    recent = Recent(database)
    recent.add("job", "o" * (MAX_TEXT + 1))
    recent.finish("job", "r" * (MAX_TEXT + 1))
    assert recent.rows() == [RecentExecution("job", "", "", False)]


def test_all_rows_together_have_a_bound(database: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_TOTAL", 2000)
    recent = Recent(database)
    recent.add("unfinished", "o" * 100)
    for number in range(300):
        recent.add(f"job-{number}", "o" * 10)
        recent.finish(f"job-{number}", "r" * 10)
    rows = recent.rows()
    assert sum(len(row.order) + len(row.result) for row in rows) <= 2000
    # The newest ones, and what has not ended.
    assert [row.exec_id for row in rows[-2:]] == ["job-299", "unfinished"]
