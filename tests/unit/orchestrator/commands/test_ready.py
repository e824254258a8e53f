"""The report of readiness to the process that started this one."""

from __future__ import annotations

import json
import os

from tachikoma_orchestrator.commands.ready import announce


def test_an_address_is_reported_as_one_line_and_the_pipe_is_closed() -> None:
    reader, writer = os.pipe()
    announce(writer)("127.0.0.1:8534")
    with os.fdopen(reader) as pipe:
        lines = pipe.read().splitlines()
    assert [json.loads(line) for line in lines] == [{"address": "127.0.0.1:8534"}]
