"""What people see of a batch."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any, cast

import pytest

from tachikoma.cli import batch_view
from tachikoma.cli.batch_view import HostLines, Progress, exit_code, show_groups, show_totals
from tachikoma.targets.answers import Answers, grouped
from tachikoma.vocabulary.batches import BatchResult, BatchState, BatchStatus, TargetState

NOW = datetime(2026, 1, 31, tzinfo=UTC)


def result(agent: str, state: TargetState = TargetState.SUCCEEDED, **values: Any) -> BatchResult:
    return BatchResult(**{"agent_id": agent, "exec_id": f"e-{agent}", "state": state, "exit_code": 0, **values})


def status(**totals: int) -> BatchStatus:
    return BatchStatus(
        id="b-1", state=BatchState.RUNNING, requested_by="x", command=("true",), digest="ab", submit_time=NOW,
        total=sum(totals.values()), totals={TargetState(name): number for name, number in totals.items()},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("states", "code"),
    [
        ((), 0),
        ((TargetState.SUCCEEDED,), 0),
        ((TargetState.SUCCEEDED, TargetState.FAILED), 1),
        ((TargetState.TIMED_OUT, TargetState.OUT_OF_MEMORY), 1),
        ((TargetState.FAILED, TargetState.LOST), 125),
        *(((state,), 125) for state in ("UNREACHABLE", "DENIED", "NOT_STARTED", "CANCELLED", "EXPIRED", "REJECTED")),
    ],
)
def test_exit_codes(states: tuple[str, ...], code: int) -> None:
    assert exit_code(result("a", TargetState(state)) for state in states) == code


def test_each_line_has_its_host_in_front(capsys: pytest.CaptureFixture[str]) -> None:
    lines = HostLines(width=5)
    lines.show(result("web1", stdout=b"one\ntwo\x1b[2J\n", stderr=b"warning\n", stdout_bytes=8))
    lines.show(result("web20", TargetState.FAILED, exit_code=3, stdout=b"", stderr=b""))
    lines.show(result("db1", TargetState.UNREACHABLE, exec_id="", exit_code=-1, error="OFFLINE"))
    out, err = capsys.readouterr()
    assert out == "web1   one\nweb1   two\\x1b[2J\n"
    assert err.splitlines() == [
        "web1   warning", "web20  failed with exit code 3", "db1    unreachable: OFFLINE",
    ]  # fmt: skip


def test_output_that_is_gone_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    HostLines().show(result("web1", stdout_bytes=5))
    assert "its output is not available; see `tachikoma logs e-web1`" in capsys.readouterr().err


def test_output_that_is_cut_is_reported_with_its_bytes(capsys: pytest.CaptureFixture[str]) -> None:
    HostLines().show(result("web1", stdout=b"one\n", stderr=b"", stdout_bytes=70_000, stderr_bytes=3))
    out, err = capsys.readouterr()
    assert out == "web1  one\n"
    assert err.splitlines() == [
        "web1  4 of 70000 bytes of standard output; all of them: `tachikoma logs e-web1`",
        "web1  0 of 3 bytes of standard error; all of them: `tachikoma logs e-web1`",
    ]


def shown(results: list[BatchResult], capsys: pytest.CaptureFixture[str], **how: bool) -> list[str]:
    """The lines of the groups of some results."""
    show_groups(grouped(results), **{"bodies": True, **how})
    return capsys.readouterr().out.splitlines()


def test_cut_groups_are_reported_and_never_compared_in_silence(capsys: pytest.CaptureFixture[str]) -> None:
    def cut(agent: str, digest: str, stdout: bytes) -> BatchResult:
        return result(agent, stdout_sha256=digest, stdout=stdout, stderr=b"", stdout_bytes=70_000)

    results = [cut("a1", "aa", b"x\n"), cut("a2", "aa", b"x\n"), cut("b1", "bb", b"x\n"), cut("c1", "cc", b"y\n")]
    first = [
        "--- 2 (50 %) a[1-2]: succeeded",
        "--- 2 of 70000 bytes of standard output; all of them: `tachikoma logs e-a1`",
        "x",
    ]
    second = [
        "--- 1 (25 %) b1: succeeded", "--- 2 of 70000 bytes of standard output; all of them: `tachikoma logs e-b1`",
    ]  # fmt: skip
    third = [
        "--- 1 (25 %) c1: succeeded", "--- 2 of 70000 bytes of standard output; all of them: `tachikoma logs e-c1`",
    ]  # fmt: skip
    assert shown(results, capsys) == [*first, *second, "x", *third, "y"]
    compared = "--- only the parts that are here are compared"
    assert shown(results, capsys, diff=True) == [
        *first, *second, f"{compared}: these do not differ",
        *third, compared, "--- a[1-2]", "+++ c1", "@@ -1 +1 @@", "-x", "+y",
    ]  # fmt: skip


def test_groups_whose_output_was_dropped_are_reported(capsys: pytest.CaptureFixture[str]) -> None:
    answers = Answers(limit=2)
    for agent, digest, body in (("a1", "aa", b"x\n"), ("a2", "aa", None), ("b1", "bb", b"y\n")):
        answers.add(result(agent, stdout_sha256=digest, stdout=body, stderr=body and b"", stdout_bytes=2))
    show_groups(answers.groups(), bodies=True, diff=True)
    assert capsys.readouterr().out.splitlines() == [
        "--- 2 (67 %) a[1-2]: succeeded", "--- its output is not available; see `tachikoma logs e-a1`",
        "--- 1 (33 %) b1: succeeded", "--- no difference, since the output of the largest group is not available:", "y",
    ]  # fmt: skip


def test_groups(capsys: pytest.CaptureFixture[str]) -> None:
    results = [result(f"web{number}", stdout_sha256="aa", stdout=b"x\n", stderr=b"") for number in (1, 2, 3)]
    results.append(result("web4", stdout_sha256="bb", stdout=b"y\n", stderr=b""))
    show_groups(grouped(results), bodies=False)
    assert capsys.readouterr().out.splitlines() == [
        "--- 3 (75 %) web[1-3]: succeeded", "--- 1 (25 %) web4: succeeded",
    ]  # fmt: skip
    show_groups(grouped(results), bodies=True, diff=True)
    assert capsys.readouterr().out.splitlines() == [
        "--- 3 (75 %) web[1-3]: succeeded", "x", "--- 1 (25 %) web4: succeeded",
        "--- web[1-3]", "+++ web4", "@@ -1 +1 @@", "-x", "+y",
    ]  # fmt: skip


def test_long_names_are_shortened(capsys: pytest.CaptureFixture[str]) -> None:
    show_groups(grouped(result(f"h{number * 7919 % 100003}") for number in range(200)), bodies=False)
    line = capsys.readouterr().out.splitlines()[0]
    assert line.endswith("…: succeeded")
    assert len(line) < 250


def test_totals_name_those_that_did_not_succeed(capsys: pytest.CaptureFixture[str]) -> None:
    found = status(SUCCEEDED=1, FAILED=2).model_copy(update={"state": BatchState.STOPPED, "reason": "2 targets failed"})
    show_totals(found, [result("a1"), result("a2", TargetState.FAILED), result("a3", TargetState.FAILED)])
    assert capsys.readouterr().err.splitlines() == [
        "2 failed: a[2-3]", "b-1: 1 of 3 targets succeeded; stopped: 2 targets failed",
    ]  # fmt: skip


class FakeLoop:
    """A clock that a test moves, and its timers."""

    def __init__(self) -> None:
        self.now = 100.0
        self._timers: list[tuple[float, Callable[[], None], asyncio.TimerHandle]] = []

    def time(self) -> float:
        return self.now

    def call_later(self, delay: float, callback: Callable[[], None]) -> asyncio.TimerHandle:
        handle = asyncio.TimerHandle(self.now + delay, callback, (), cast("asyncio.AbstractEventLoop", self))
        self._timers.append((self.now + delay, callback, handle))
        return handle

    def get_debug(self) -> bool:
        return False

    def _timer_handle_cancelled(self, _: object) -> None:
        pass

    def advance(self, seconds: float) -> None:
        """Move the clock, and run the timers that become due, each at its time."""
        end = self.now + seconds
        while due := [timer for timer in self._timers if timer[0] <= end]:
            first = min(due, key=lambda timer: timer[0])
            self._timers.remove(first)
            self.now = max(self.now, first[0])
            if not first[2].cancelled():
                first[1]()
        self.now = end


@pytest.fixture
def loop() -> FakeLoop:
    return FakeLoop()


def progress_on(loop: FakeLoop, *, quiet: bool = False) -> Progress:
    return Progress(cast("asyncio.AbstractEventLoop", loop), quiet=quiet)


class Terminal:
    """Standard error as a terminal of one line that is redrawn in place."""

    def __init__(self, loop: FakeLoop, monkeypatch: pytest.MonkeyPatch) -> None:
        self._loop = loop
        monkeypatch.setattr("sys.stderr", self)
        #: The line as people see it.
        self.line = ""
        #: Times of the redraws.
        self.drawn: list[float] = []

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> None:
        assert text.startswith(batch_view.CLEAR)
        self.line = text.removeprefix(batch_view.CLEAR)
        assert "\n" not in self.line
        if self.line:
            self.drawn.append(self._loop.now)

    def flush(self) -> None:
        pass


def test_progress_on_a_pipe_is_a_line_for_each_change(loop: FakeLoop, capsys: pytest.CaptureFixture[str]) -> None:
    progress = progress_on(loop)
    for found in (status(PENDING=2), status(PENDING=2), status(SUCCEEDED=1, RUNNING=1)):
        progress.update(found)
        progress.clear()
    progress.close()
    loop.advance(1)
    assert capsys.readouterr().err.splitlines() == ["0/2: 2 pending", "1/2: 1 succeeded, 1 running"]


def test_progress_is_redrawn_at_most_four_times_a_second_whatever_arrives(
    loop: FakeLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Terminal(loop, monkeypatch)
    progress = progress_on(loop)
    for number in range(200):
        progress.clear()
        progress.update(status(SUCCEEDED=number, PENDING=200 - number))
        loop.advance(0.01)
    assert 8 <= len(terminal.drawn) <= 9
    assert all(later - earlier >= 0.249 for earlier, later in pairwise(terminal.drawn))
    progress.close()
    loop.advance(1)
    assert terminal.line == ""


def test_progress_is_never_stale(loop: FakeLoop, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal(loop, monkeypatch)
    progress = progress_on(loop)
    progress.update(status(PENDING=2))
    loop.advance(0)
    assert terminal.line == "0/2: 2 pending"
    progress.update(status(SUCCEEDED=1, PENDING=1))
    progress.update(status(SUCCEEDED=2))
    assert terminal.line == "0/2: 2 pending"
    loop.advance(0.25)
    assert terminal.line == "2/2: 2 succeeded"
    loop.advance(60)
    assert len(terminal.drawn) == 2


def test_progress_comes_back_after_other_lines(loop: FakeLoop, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal(loop, monkeypatch)
    progress = progress_on(loop)
    progress.update(status(PENDING=2))
    loop.advance(0.1)
    progress.clear()
    assert terminal.line == ""
    loop.advance(0.25)
    assert terminal.line == "0/2: 2 pending"
    loop.advance(60)
    assert len(terminal.drawn) == 2


def test_a_terminal_that_is_closed_changes_no_outcome(loop: FakeLoop, monkeypatch: pytest.MonkeyPatch) -> None:
    class Closed(Terminal):
        def write(self, text: str) -> None:
            raise BrokenPipeError

    Closed(loop, monkeypatch)
    progress = progress_on(loop)
    progress.update(status(PENDING=2))
    loop.advance(1)
    progress.close()


def test_quiet_shows_no_progress(loop: FakeLoop, capsys: pytest.CaptureFixture[str]) -> None:
    progress_on(loop, quiet=True).update(status(PENDING=2))
    loop.advance(1)
    assert capsys.readouterr().err == ""
