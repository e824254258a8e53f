"""The result of `exec -o json`, and the files of `--output-dir`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tachikoma import ExecOutput, ExecResponse, ExecState, OutputKind
from tachikoma.cli import result
from tachikoma.cli.descriptors import OutputFailed
from tachikoma.cli.result import CollectedOutput, OutputFolder

RESPONSE = ExecResponse(id="job-7", agent_id="web-1", state=ExecState.SUCCEEDED, exit_code=0)


def chunk(kind: OutputKind, data: bytes) -> ExecOutput:
    return ExecOutput(id="job-7", kind=kind, data=data)


def test_output_is_in_the_result_as_bytes_and_as_text() -> None:
    collected = CollectedOutput()
    for part in (
        chunk(OutputKind.STDOUT, b"\xc3"),
        chunk(OutputKind.STDOUT, b"\xa4\n"),
        chunk(OutputKind.STDERR, b"\xff"),
    ):
        collected.add(part)
    found = collected.result(RESPONSE)
    assert (found.stdout, found.stdout_text) == ("ä\n".encode(), "ä\n")
    assert (found.stderr, found.stderr_text) == (b"\xff", None)
    assert not found.stdout_summary.truncated
    assert found.exit_code == 0


def test_longer_output_is_reported_as_truncated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(result, "MAX_OUTPUT_BYTES", 3)
    collected = CollectedOutput()
    for part in (b"ab", b"cd", b"ef"):
        collected.add(chunk(OutputKind.STDOUT, part))
    found = collected.result(RESPONSE)
    assert (found.stdout, found.stdout_summary.truncated, found.stderr_summary.truncated) == (b"abc", True, False)


def test_a_folder_has_the_streams_the_result_and_the_receipt(tmp_path: Path) -> None:
    folder = OutputFolder(tmp_path, "job-7")
    folder.add(chunk(OutputKind.STDOUT, b"out"))
    folder.add(chunk(OutputKind.STDERR, b"err"))
    signed = RESPONSE.model_copy(update={"receipt": "a.b.c"})
    folder.add(ExecOutput(id="job-7", kind=OutputKind.RESULT, result=signed))
    folder.close()
    saved = tmp_path / "job-7"
    assert sorted(path.name for path in saved.iterdir()) == ["receipt.jws", "result.json", "stderr", "stdout"]
    assert (saved / "receipt.jws").read_text() == "a.b.c\n"
    assert "receipt" not in json.loads((saved / "result.json").read_text())
    assert ((saved / "stdout").read_bytes(), (saved / "stderr").read_bytes()) == (b"out", b"err")
    assert json.loads((saved / "result.json").read_text())["state"] == "SUCCEEDED"


def test_an_execution_that_no_agent_reported_has_no_receipt(tmp_path: Path) -> None:
    folder = OutputFolder(tmp_path, "job-7")
    folder.add(ExecOutput(id="job-7", kind=OutputKind.RESULT, result=RESPONSE))
    folder.close()
    assert sorted(path.name for path in (tmp_path / "job-7").iterdir()) == ["result.json", "stderr", "stdout"]


def test_a_file_that_takes_no_more_is_named_and_can_be_closed(tmp_path: Path) -> None:
    # Each write to it fails as on a full disk (full(4)).
    (tmp_path / "job-7").mkdir()
    full = tmp_path / "job-7" / "stdout"
    full.symlink_to("/dev/full")
    folder = OutputFolder(tmp_path, "job-7")
    with pytest.raises(OutputFailed, match=f"^cannot write to {full}: No space left on device$") as caught:
        folder.add(chunk(OutputKind.STDOUT, b"out"))
    assert not caught.value.standard
    folder.close()


def test_a_folder_that_cannot_be_used_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputFailed, match=r"^cannot write to .*/file/job-7: Not a directory$"):
        OutputFolder(tmp_path / "file", "job-7")
