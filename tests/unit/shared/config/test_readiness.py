"""Readiness reports through a pipe."""

from __future__ import annotations

import json
import os

import pytest

from tachikoma.config.readiness import report_ready


@pytest.mark.parametrize("address", ["", "127.0.0.1:8534", "http://[::1]:5555"])
def test_a_process_reports_one_line_and_closes_the_pipe(address: str) -> None:
    read_end, write_end = os.pipe()
    report_ready(write_end, address)
    with os.fdopen(read_end) as pipe:
        # Reads until the pipe is closed.
        (line,) = pipe.read().splitlines()
    assert json.loads(line) == {"address": address}


def test_without_a_supervisor_nothing_is_reported() -> None:
    report_ready(None, "127.0.0.1:8534")
