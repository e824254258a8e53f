"""Logs on standard error, of Tachikoma and of libraries alike."""

from __future__ import annotations

import json
import subprocess
import sys

CODE = """
import logging, structlog
from tachikoma.config import logs
logs.configure({level!r})
structlog.get_logger("mine").info("part.started", id="job-7")
logging.getLogger("library").warning("library says %s", "x", extra={{"size": 3}})
try:
    raise ValueError("wrong")
except ValueError:
    structlog.get_logger("mine").exception("part.failed")
"""


def lines(level: str) -> list[dict[str, object]]:
    done = subprocess.run(
        [sys.executable, "-c", CODE.format(level=level)], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == ""
    return [json.loads(line) for line in done.stderr.splitlines()]


def test_each_line_is_one_json_object_with_level_and_time() -> None:
    started, library, failed = lines("info")
    assert (started["event"], started["level"], started["id"]) == ("part.started", "info", "job-7")
    assert (library["event"], library["level"], library["size"]) == ("library says x", "warning", 3)
    assert str(failed["exception"]).endswith("ValueError: wrong")
    assert all(str(line["timestamp"]).endswith("Z") for line in (started, library, failed))


def test_lines_below_the_level_are_not_written() -> None:
    assert [line["level"] for line in lines("warning")] == ["warning", "error"]
    assert [line["event"] for line in lines("error")] == ["part.failed"]
