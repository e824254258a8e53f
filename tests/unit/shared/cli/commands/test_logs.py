"""`tachikoma logs`: each chunk on its own descriptor."""

from __future__ import annotations

import errno
import json
import os
from datetime import UTC, datetime
from typing import Any

import pytest

from tachikoma import ExecOutput, OutputKind
from tachikoma.cli.descriptors import OutputFailed

NOW = datetime(2026, 1, 31, tzinfo=UTC)


def chunk(kind: OutputKind, data: bytes, seq: int) -> ExecOutput:
    return ExecOutput(id="job-7", kind=kind, seq=seq, time=NOW, data=data)


@pytest.fixture
def stream(client: Any, status: Any) -> list[ExecOutput]:
    found = [
        ExecOutput(id="job-7", kind=OutputKind.STATUS, status=status(approved_by="boss", approval_reason="fine")),
        chunk(OutputKind.STDOUT, b"out\xff\n", 1),
        chunk(OutputKind.STDERR, b"err\n", 2),
        ExecOutput(id="job-7", kind=OutputKind.GAP, missing_bytes=5),
    ]
    client.answers["attach"] = lambda *_, **__: found
    return found


def test_output_goes_where_it_belongs(
    run: Any, client: Any, stream: list[ExecOutput], monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[tuple[int, bytes]] = []

    def write(descriptor: int, data: memoryview) -> int:
        # As with a full pipe: two bytes at a time.
        written.append((descriptor, bytes(data[:2])))
        return min(2, len(data))

    monkeypatch.setattr("os.write", write)
    done = run("logs", "job-7", "--after", "3", "--follow")
    assert b"".join(data for descriptor, data in written if descriptor == 1) == b"out\xff\n"
    assert b"".join(data for descriptor, data in written if descriptor == 2) == b"err\n"
    assert done.err.splitlines() == [
        "tachikoma: approved by boss: fine", "tachikoma: 5 bytes of output are missing",
    ]  # fmt: skip
    assert client.calls == [("attach", ("job-7",), {"after_seq": 3, "follow": True})]


def test_json_has_each_message_on_a_line(run: Any, stream: list[ExecOutput], capfd: pytest.CaptureFixture[str]) -> None:
    done = run("logs", "job-7", "-o", "json")
    assert [json.loads(line) for line in capfd.readouterr().out.splitlines()] == [output.to_dict() for output in stream]
    assert done.err == ""


def test_ctrl_c_ends_with_130(run: Any, client: Any) -> None:
    client.answers["attach"] = lambda *_, **__: [KeyboardInterrupt()]
    assert run("logs", "-f", "job-7").code == 130


@pytest.mark.parametrize(
    ("fault", "code", "message"),
    [
        (errno.EPIPE, 141, ""),
        (errno.ENOSPC, 1, "tachikoma: cannot write to standard output: No space left on device\n"),
    ],
)
def test_output_that_cannot_be_written_ends_the_command(
    run: Any, client: Any, monkeypatch: pytest.MonkeyPatch, fault: int, code: int, message: str
) -> None:
    monkeypatch.setattr("os.dup2", lambda *_: None)
    failure = OutputFailed(1, OSError(fault, os.strerror(fault)))
    client.answers["attach"] = lambda *_, **__: [failure]
    done = run("logs", "job-7")
    assert (done.code, done.err) == (code, message)
