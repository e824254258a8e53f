"""Standard output as a sink."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest

from audit_chain import events
from tachikoma_orchestrator.audit.sinks.sink import SinkUnavailable
from tachikoma_orchestrator.audit.sinks.stdout import StandardOutputSink


def test_standard_output_gets_a_line_each() -> None:
    reading, writing = os.pipe()
    StandardOutputSink(writing).send(events(1, 3))
    os.close(writing)
    with os.fdopen(reading) as stream:
        assert [json.loads(line)["seq"] for line in stream] == [1, 2, 3]


def test_standard_output_that_nobody_reads_says_how_far_it_came() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with pytest.raises(SinkUnavailable, match="standard output") as away:
        StandardOutputSink(writing).send(events(1, 3))
    assert away.value.sent == 0
    os.close(writing)


def test_a_line_that_was_written_in_part_does_not_spoil_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    sink = StandardOutputSink(writing)
    real, written = os.write, 0

    def full(fd: int, data: Any) -> int:
        nonlocal written
        if written >= 300:
            raise OSError(28, "No space left on device")
        written += (count := real(fd, bytes(data)[: 300 - written]))
        return count

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(SinkUnavailable) as away:
        sink.send(events(1, 3))
    monkeypatch.undo()
    sink.send(events(1, 3)[away.value.sent :])
    os.close(writing)
    readable = []
    with os.fdopen(reading) as stream:
        for line in stream:
            try:
                readable.append(json.loads(line)["seq"])
            except ValueError:
                assert len(readable) == away.value.sent
    assert readable == [1, 2, 3]
