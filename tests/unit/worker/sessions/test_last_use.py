"""How long a session was left alone, also over a restart of the worker."""

from __future__ import annotations

from pathlib import Path

import pytest

from tachikoma_worker.sessions import last_use
from tachikoma_worker.sessions.last_use import SAVE_SECONDS, LastUse


class Clock:
    """The time of the host."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.time = 1000.0
        monkeypatch.setattr(last_use, "now", lambda: self.time)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_time_counts_from_the_last_input_and_from_the_end_of_the_attachment(clock: Clock, tmp_path: Path) -> None:
    use = LastUse(tmp_path / "job-7")
    clock.time += 5
    assert (use.idle_seconds, use.detached_seconds) == (5, 5)
    use.attach()
    clock.time += 5
    use.note_input()
    clock.time += 2
    assert (use.idle_seconds, use.detached_seconds) == (2, 0)
    use.detach()
    clock.time += 1
    use.detach()
    clock.time += 1
    assert (use.idle_seconds, use.detached_seconds) == (4, 2)


def test_a_restarted_worker_continues_to_count(clock: Clock, tmp_path: Path) -> None:
    before = LastUse(tmp_path / "job-7")
    clock.time += 10
    before.save()
    clock.time += 20
    after = LastUse(tmp_path / "job-7")
    after.resume()
    assert (after.idle_seconds, after.detached_seconds) == (30, 30)


def test_a_caller_that_was_attached_counts_as_lost_at_the_restart(clock: Clock, tmp_path: Path) -> None:
    before = LastUse(tmp_path / "job-7")
    before.attach()
    before.save()
    clock.time += 20
    after = LastUse(tmp_path / "job-7")
    after.resume()
    clock.time += 1
    assert (after.idle_seconds, after.detached_seconds) == (21, 1)


def test_the_file_is_written_from_time_to_time_and_removed_at_the_end(clock: Clock, tmp_path: Path) -> None:
    path = tmp_path / "job-7"
    use = LastUse(path)
    use.save()
    first = path.read_bytes()
    use.note_input()
    clock.time += SAVE_SECONDS / 2
    use.note_input()
    use.save()
    assert path.read_bytes() == first
    clock.time += SAVE_SECONDS / 2
    use.save()
    assert path.read_bytes() != first
    use.remove()
    use.remove()
    assert not path.exists()


@pytest.mark.parametrize("content", [b"", b"[1", b"{}", b"[1]", b'["x", null]', b"[null, null]", b"\xff"])
def test_a_file_that_is_damaged_counts_as_none(clock: Clock, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "job-7").write_bytes(content)
    use = LastUse(tmp_path / "job-7")
    clock.time += 3
    use.resume()
    assert (use.idle_seconds, use.detached_seconds) == (3, 3)


def test_a_time_in_the_future_counts_as_now(clock: Clock, tmp_path: Path) -> None:
    (tmp_path / "job-7").write_bytes(b"[9999, 9999]")
    use = LastUse(tmp_path / "job-7")
    use.resume()
    assert (use.idle_seconds, use.detached_seconds) == (0, 0)


def test_a_disk_that_refuses_the_file_changes_nothing(clock: Clock, tmp_path: Path) -> None:
    use = LastUse(tmp_path / "missing" / "job-7")
    use.save()
    use.remove()
    clock.time += 1
    assert use.idle_seconds == 1
