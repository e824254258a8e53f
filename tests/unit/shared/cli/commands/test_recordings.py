"""`tachikoma recordings` and `tachikoma play`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tachikoma.errors import InvalidRequest, NotFound, ServerError
from tachikoma.vocabulary.recordings import RecordingInfo, RecordingMatch

CAST = (
    b'{"version": 3, "term": {"cols": 80, "rows": 24}}\n'
    b'[0.001, "o", "one"]\n[0.001, "m", "mark"]\n[0.001, "o", "two"]\n[0, "x", "0"]\n'
)


def info(exec_id: str, **values: Any) -> RecordingInfo:
    return RecordingInfo(
        id=exec_id, agent_id="web-1", requested_by="spiffe://e/user/alice", command=("bash", "-l"),
        start_time=datetime.now(UTC), duration=timedelta(seconds=61.5), size=9, sha256="ab" * 32, **values,
    )  # fmt: skip


@pytest.fixture
def stored(client: Any) -> Any:
    known = [info("4f1c2a9d8e7b", complete=True), info("4f1c99", problem="5 bytes of output are missing")]

    def recordings(*, exec_id: str = "", text: str = "", **_: Any) -> tuple[RecordingInfo, ...]:
        match = RecordingMatch(at=timedelta(milliseconds=2), line="one\x1btwo")
        found = [item for item in known if exec_id in ("", item.id) and text in ("", "two")]
        return tuple(item.model_copy(update={"matches": (match,)}) if text else item for item in found)

    def recording(exec_id: str) -> Iterator[bytes]:
        yield CAST[:30]
        yield CAST[30:]

    client.answers |= {"recordings": recordings, "recording": recording}
    return client


def test_recordings_are_listed_with_the_lines_that_were_found(run: Any, stored: Any) -> None:
    shown = run("recordings", "ls", "web-1", "--text", "two").out
    assert "alice" in shown
    assert "1m2s" in shown
    assert "incomplete" in shown
    # A line of a recording cannot control the terminal.
    assert "4f1c2a9d      0.0s  one\\x1btwo" in shown
    assert stored.calls[-1][2] == {"agent_id": "web-1", "text": "two", "requested_by": "", "limit": 50}
    assert [item["complete"] for item in json.loads(run("recordings", "ls", "-o", "json").out)] == [True, False]


def test_a_recording_is_exported_in_both_formats(run: Any, stored: Any, tmp_path: Path) -> None:
    target = tmp_path / "x.cast"
    assert run("recordings", "export", "4f1c2", "--file", str(target)).code == 0
    assert target.read_bytes() == CAST
    assert stored.calls[-1][:2] == ("recording", ("4f1c2a9d8e7b",))
    # A recording never replaces a file.
    assert "File exists" in str(run("recordings", "export", "4f1c2", "-f", str(target)).error)
    second = tmp_path / "y.cast"
    assert run("recordings", "export", "4f1c2", "-f", str(second), "--format", "v2").code == 0
    assert [json.loads(line) for line in second.read_text().splitlines()] == [
        {"version": 2, "width": 80, "height": 24}, [0.001, "o", "one"], [0.002, "m", "mark"], [0.003, "o", "two"]
    ]  # fmt: skip


def test_a_recording_is_played(run: Any, stored: Any, capfd: pytest.CaptureFixture[str]) -> None:
    assert run("play", "4f1c2a9d8e7b", "--speed", "10", "--idle-limit", "1ms").code == 0
    assert capfd.readouterr().out == "onetwo"
    assert run("play", "4f1c2a9d8e7b", "--search", "two", "--at", "1s").code == 0
    assert capfd.readouterr().out == "onetwo"


def test_what_cannot_be_played_is_said(run: Any, stored: Any) -> None:
    assert isinstance(run("play", "other").error, NotFound)
    assert "2 recordings begin with '4f1c'" in str(run("play", "4f1c").error)
    assert isinstance(run("play", "4f1c").error, InvalidRequest)
    assert "never had 'three'" in str(run("play", "4f1c2", "--search", "three").error)
    assert "--at: " in str(run("play", "4f1c2", "--at", "soon").error)
    begin = CAST.splitlines(keepends=True)[0]
    for wrong in (b"no recording", b"", begin + b"x\n", begin + b'["a", "o", "x"]\n', begin + b'[1e999, "o", "x"]\n'):
        stored.answers["recording"] = lambda _, wrong=wrong: iter([wrong])
        assert isinstance(run("play", "4f1c2").error, ServerError), wrong
        assert isinstance(run("recordings", "export", "4f1c2", "--format", "v2").error, ServerError), wrong
