"""Files with a hash chain: restarts, rotation, and disks that fail."""

from __future__ import annotations

import itertools
import json
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from audit_chain import BIG, event, events, last_checkpoint, verified
from patience import PATIENCE_SECONDS
from tachikoma.audit.chain import CHECKPOINT_EVENTS, audit_files, read_events
from tachikoma.errors import ConfigurationError
from tachikoma.identity.file_source import FileSvidSource
from tachikoma_orchestrator.audit.sinks.file import CHECKPOINT_SECONDS, FileSink
from tachikoma_orchestrator.audit.sinks.sink import SinkUnavailable


def written(path: Path, identity: FileSvidSource, count: int, *, every: int = 0, rotate_bytes: int = BIG) -> None:
    """A file with so many events, signed for at the end and after every so many."""
    sink = FileSink(path, identity, rotate_bytes=rotate_bytes)
    for seq in range(sink.seq + 1, sink.seq + count + 1):
        sink.send([event(seq)])
        if every and seq % every == 0:
            sink.checkpoint()
    sink.checkpoint()
    sink.close()


def test_what_is_written_holds_and_reads_as_it_was(tmp_path: Path, identity: FileSvidSource) -> None:
    path = tmp_path / "audit.jsonl"
    written(path, identity, 20, every=7)
    report = verified(path, identity, last_checkpoint(path))
    assert report.findings == []
    assert (report.events, report.checkpoints, report.unsigned) == (20, 3, 0)
    assert (report.first_seq, report.last_seq) == (1, 20)
    assert list(read_events(tmp_path)) == events(1, 20)
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_chain_continues_after_a_restart_and_over_rotated_files(tmp_path: Path, identity: FileSvidSource) -> None:
    path = tmp_path / "audit.jsonl"
    for _ in range(6):
        written(path, identity, 5, rotate_bytes=4096)
    files = audit_files(path)
    assert len(files) > 3
    assert files[-1] == path
    report = verified(path, identity, last_checkpoint(path) if path.read_bytes() else last_checkpoint(files[-2]))
    assert report.findings == []
    assert (report.events, report.last_seq) == (30, 30)
    assert list(read_events(path)) == events(1, 30)
    # The oldest may be archived, but not one between.
    files[0].unlink()
    assert verified(path, identity).findings == []
    files[2].unlink()
    assert any("lines were deleted" in str(finding) for finding in verified(path, identity).findings)


def test_a_chain_continues_after_a_crash_between_the_steps_of_a_rotation(
    tmp_path: Path, identity: FileSvidSource
) -> None:
    path = tmp_path / "audit.jsonl"
    written(path, identity, 5)
    path.rename(tmp_path / "audit-000000000001.jsonl")
    written(path, identity, 5)
    report = verified(path, identity)
    assert (report.findings, report.last_seq) == ([], 10)


def test_there_is_a_checkpoint_for_every_so_many_events(tmp_path: Path, identity: FileSvidSource) -> None:
    path = tmp_path / "audit.jsonl"
    sink = FileSink(path, identity, rotate_bytes=BIG)
    sink.send(events(1, 2 * CHECKPOINT_EVENTS + 10))
    sink.close()
    report = verified(path, identity)
    assert (report.checkpoints, report.unsigned, report.findings) == (2, 10, [])


def test_two_processes_never_write_one_file(tmp_path: Path, identity: FileSvidSource) -> None:
    sink = FileSink(tmp_path / "audit.jsonl", identity, rotate_bytes=BIG)
    with pytest.raises(ConfigurationError, match="another process writes it"):
        FileSink(tmp_path / "audit.jsonl", identity, rotate_bytes=BIG)
    sink.close()


@pytest.mark.parametrize("cut", [1, 2, 40, 300])
def test_a_line_that_a_crash_cut_is_written_again(tmp_path: Path, identity: FileSvidSource, cut: int) -> None:
    path = tmp_path / "audit.jsonl"
    sink = FileSink(path, identity, rotate_bytes=BIG)
    sink.send(events(1, 10))
    sink.close()
    os.truncate(path, path.stat().st_size - cut)
    sink = FileSink(path, identity, rotate_bytes=BIG)
    assert sink.seq == 9
    assert sink.cursor == event(9).cursor
    assert sink.unsigned == 9
    sink.send(events(10, 12))
    sink.checkpoint()
    sink.close()
    report = verified(path, identity)
    assert (report.findings, report.events) == ([], 12)


def test_a_file_that_is_no_audit_log_is_left_alone(tmp_path: Path, identity: FileSvidSource) -> None:
    path = tmp_path / "audit.jsonl"
    wrong = [
        b"hello\n", b"hello", b'{"line": "x"}\n', b"[]\n", b"[" * 100_000 + b"\n", b'{"line":Infinity}\n',
        b'{"line":1,"event":{"cursor":"' + b"9" * 5000 + b'","seq":1}}\n', b'{"line":1,"event":[]}\n', b"5\n",
        b'{"line":1,"event":{"cursor":"1-1","seq":1e999}}\n', b'{"line":1,"event":{"cursor":5,"seq":1}}\n',
    ]  # fmt: skip
    for content in wrong:
        path.write_bytes(content)
        with pytest.raises(ConfigurationError, match="cannot continue the audit log"):
            FileSink(path, identity, rotate_bytes=BIG)
        assert path.read_bytes() == content
    with pytest.raises(ConfigurationError, match="there is no audit log"):
        audit_files(tmp_path / "other.jsonl")


def test_a_disk_that_is_full_takes_nothing_and_everything_later(
    tmp_path: Path, identity: FileSvidSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "audit.jsonl"
    sink = FileSink(path, identity, rotate_bytes=BIG)
    sink.send(events(1, 3))
    real = os.write

    def full(fd: int, data: Any) -> int:
        # A part is written, as on a disk that fills up.
        real(fd, bytes(data)[:50])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    for _ in range(2):
        with pytest.raises(SinkUnavailable, match="No space left"):
            sink.send(events(4, 6))
    with pytest.raises(SinkUnavailable, match="No space left"):
        sink.checkpoint()
    monkeypatch.undo()
    sink.send(events(4, 6))
    sink.checkpoint()
    sink.close()
    report = verified(path, identity)
    assert (report.findings, report.events, report.unsigned) == ([], 6, 0)


def test_a_new_file_begins_with_an_event_and_an_older_one_may_be_archived(
    tmp_path: Path, identity: FileSvidSource
) -> None:
    path = tmp_path / "audit.jsonl"
    sink = FileSink(path, identity, rotate_bytes=1)
    sink.send([event(1)])
    sink.checkpoint()
    sink.send([event(2)])
    sink.checkpoint()
    sink.close()
    full = audit_files(path)[:-1]
    assert [json.loads(file.read_bytes().splitlines()[0]).keys() & {"chain", "event"} for file in full] == [
        {"chain"}, {"event"}
    ][: len(full)]  # fmt: skip
    for file in full:
        file.unlink()
    again = FileSink(path, identity, rotate_bytes=BIG)
    assert (again.cursor, again.seq, again.unsigned) == (event(2).cursor, 2, 0)
    again.send([event(3)])
    again.close()
    assert verified(path, identity).findings == []


def test_the_position_is_found_in_an_older_file(tmp_path: Path, identity: FileSvidSource) -> None:
    """The last file may contain no event: only a checkpoint, or nothing."""
    path = tmp_path / "audit.jsonl"
    sink = FileSink(path, identity, rotate_bytes=BIG)
    sink.send(events(1, 5))
    sink.checkpoint()
    sink.close()
    lines = path.read_bytes().splitlines(keepends=True)
    (tmp_path / "audit-000000000001.jsonl").write_bytes(b"".join(lines[:-1]))
    for last, unsigned in ((lines[-1], 0), (b"", 5)):
        path.write_bytes(last)
        again = FileSink(path, identity, rotate_bytes=BIG)
        assert (again.cursor, again.seq, again.unsigned) == (event(5).cursor, 5, unsigned)
        again.send([event(6)])
        again.close()
        assert verified(path, identity).findings == []


def test_the_number_of_unsigned_events_survives_a_restart_however_large_they_are(
    tmp_path: Path, identity: FileSvidSource
) -> None:
    path = tmp_path / "audit.jsonl"
    sink = FileSink(path, identity, rotate_bytes=2_000_000)
    for seq in range(1, 800):
        sink.send([event(seq, reason="x" * 8000)])
    sink.close()
    assert len(audit_files(path)) > 2
    again = FileSink(path, identity, rotate_bytes=BIG)
    assert again.unsigned == 799
    again.send(events(800, 1100))
    again.close()
    report = verified(path, identity)
    assert (report.findings, report.checkpoints, report.unsigned) == ([], 1, 100)


@pytest.mark.slow
def test_a_checkpoint_is_due_a_minute_after_the_first_event_without_one(
    tmp_path: Path, identity: FileSvidSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under steady load, too: an event each 100 ms, for 5 minutes."""
    clock = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: clock)
    path = tmp_path / "audit.jsonl"
    sink = FileSink(path, identity, rotate_bytes=BIG)
    checkpoints = []
    for seq in range(1, 3001):
        clock += 0.1
        sink.send([event(seq)])
        sink.checkpoint_if_due()
        if not sink.unsigned:
            checkpoints.append(clock)
    sink.close()
    report = verified(path, identity)
    assert report.findings == []
    # One for each minute; 1,000 events take longer.
    assert report.checkpoints == len(checkpoints) == 4
    waits = [after - before for before, after in itertools.pairwise(checkpoints)]
    assert all(CHECKPOINT_SECONDS <= wait < CHECKPOINT_SECONDS + 0.3 for wait in waits)


def test_without_events_no_checkpoint_is_due(
    tmp_path: Path, identity: FileSvidSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: clock)
    sink = FileSink(tmp_path / "audit.jsonl", identity, rotate_bytes=BIG)
    size = (tmp_path / "audit.jsonl").stat().st_size
    clock += 1000
    sink.checkpoint_if_due()
    assert (tmp_path / "audit.jsonl").stat().st_size == size
    # The minute begins with the first event, not with the last checkpoint.
    sink.send([event(1)])
    sink.checkpoint_if_due()
    assert sink.unsigned == 1
    clock += CHECKPOINT_SECONDS
    sink.checkpoint_if_due()
    assert sink.unsigned == 0
    sink.close()


def test_a_checkpoint_is_logged_once_it_is_on_the_disk(
    tmp_path: Path, identity: FileSvidSource, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A checkpoint that the chain does not contain would accuse it."""
    path = tmp_path / "audit.jsonl"
    sink = FileSink(path, identity, rotate_bytes=BIG)
    sink.send([event(1)])

    def full(_fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fdatasync", full)
    with pytest.raises(SinkUnavailable):
        sink.checkpoint()
    assert "audit.checkpoint" not in capsys.readouterr().out
    monkeypatch.undo()
    sink.send([event(2)])
    sink.checkpoint()
    sink.close()
    assert capsys.readouterr().out.count("audit.checkpoint") == 1
    assert verified(path, identity, last_checkpoint(path)).findings == []


def test_a_checkpoint_during_a_write_waits_for_its_end(
    tmp_path: Path, identity: FileSvidSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stop signs for the chain while a write may still go on in its thread."""
    path = tmp_path / "audit.jsonl"
    sink = FileSink(path, identity, rotate_bytes=BIG)
    writing, go_on = threading.Event(), threading.Event()
    real = os.write

    def slow(fd: int, data: Any) -> int:
        writing.set()
        go_on.wait(PATIENCE_SECONDS)
        return real(fd, data)

    monkeypatch.setattr(os, "write", slow)
    with ThreadPoolExecutor() as pool:
        sending = pool.submit(sink.send, events(1, 5))
        writing.wait(PATIENCE_SECONDS)
        signing = pool.submit(sink.checkpoint)
        go_on.set()
        sending.result(PATIENCE_SECONDS)
        signing.result(PATIENCE_SECONDS)
    sink.close()
    report = verified(path, identity)
    assert (report.findings, report.events, report.unsigned) == ([], 5, 0)
