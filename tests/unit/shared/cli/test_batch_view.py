"""What people see of a batch."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from tachikoma.cli import batch_view
from tachikoma.cli.batch_view import HostLines, Progress, exit_code, show_groups, show_totals
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


def test_groups(capsys: pytest.CaptureFixture[str]) -> None:
    results = [result(f"web{number}", stdout_sha256="aa", stdout=b"x\n", stderr=b"") for number in (1, 2, 3)]
    results.append(result("web4", stdout_sha256="bb", stdout=b"y\n", stderr=b""))
    show_groups(results, bodies=False, diff=False)
    assert capsys.readouterr().out.splitlines() == [
        "--- 3 (75 %) web[1-3]: succeeded", "--- 1 (25 %) web4: succeeded",
    ]  # fmt: skip
    show_groups(results, bodies=True, diff=True)
    assert capsys.readouterr().out.splitlines() == [
        "--- 3 (75 %) web[1-3]: succeeded", "x", "--- 1 (25 %) web4: succeeded",
        "--- web[1-3]", "+++ web4", "@@ -1 +1 @@", "-x", "+y",
    ]  # fmt: skip


def test_long_names_are_shortened(capsys: pytest.CaptureFixture[str]) -> None:
    show_groups([result(f"h{number * 7919 % 100003}") for number in range(200)], bodies=False, diff=False)
    line = capsys.readouterr().out.splitlines()[0]
    assert line.endswith("…: succeeded")
    assert len(line) < 250


def test_totals_name_those_that_did_not_succeed(capsys: pytest.CaptureFixture[str]) -> None:
    found = status(SUCCEEDED=1, FAILED=2).model_copy(update={"state": BatchState.STOPPED, "reason": "2 targets failed"})
    show_totals(found, [result("a1"), result("a2", TargetState.FAILED), result("a3", TargetState.FAILED)])
    assert capsys.readouterr().err.splitlines() == [
        "2 failed: a[2-3]", "b-1: 1 of 3 targets succeeded; stopped: 2 targets failed",
    ]  # fmt: skip


def test_progress_on_a_pipe_is_a_line_for_each_change(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress(quiet=False)
    for found in (status(PENDING=2), status(PENDING=2), status(SUCCEEDED=1, RUNNING=1)):
        progress.update(found)
    assert capsys.readouterr().err.splitlines() == ["0/2: 2 pending", "1/2: 1 succeeded, 1 running"]


def test_progress_on_a_terminal_is_one_line_and_not_redrawn_more_than_four_times_a_second(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    now = [100.0]
    monkeypatch.setattr(batch_view.time, "monotonic", lambda: now[0])
    progress = Progress(quiet=False)
    for number in range(40):
        progress.update(status(SUCCEEDED=number, PENDING=40 - number))
        now[0] += 0.05
    progress.clear()
    shown = capsys.readouterr().err
    assert "\n" not in shown
    assert 7 <= shown.count(batch_view.CLEAR) <= 10


def test_quiet_shows_no_progress(capsys: pytest.CaptureFixture[str]) -> None:
    Progress(quiet=True).update(status(PENDING=2))
    assert capsys.readouterr().err == ""
