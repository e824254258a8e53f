"""Logs on standard error, of Tachikoma and of libraries alike."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tachikoma.config import logs

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


@pytest.mark.slow
def test_each_line_is_one_json_object_with_level_and_time() -> None:
    started, library, failed = lines("info")
    assert (started["event"], started["level"], started["id"]) == ("part.started", "info", "job-7")
    assert (library["event"], library["level"], library["size"]) == ("library says x", "warning", 3)
    assert str(failed["exception"]).endswith("ValueError: wrong")
    assert all(str(line["timestamp"]).endswith("Z") for line in (started, library, failed))


@pytest.mark.slow
def test_lines_below_the_level_are_not_written() -> None:
    assert [line["level"] for line in lines("warning")] == ["warning", "error"]
    assert [line["event"] for line in lines("error")] == ["part.failed"]


LIBRARY = """
import logging, sys
{before}
from tachikoma.config.logs import get_logger
log = get_logger("tachikoma.identity.file_source")
log.info("svid.changed", until="tomorrow")
log.warning("svid.kept", reason="100% broken", args=1, name="x")
try:
    raise ValueError("wrong")
except ValueError:
    log.exception("file.failed", path="/x")
"""


def library(before: str) -> tuple[str, str]:
    done = subprocess.run(
        [sys.executable, "-c", LIBRARY.format(before=before)], capture_output=True, text=True, timeout=60, check=True
    )
    return done.stdout, done.stderr


@pytest.mark.parametrize(
    "before",
    [
        "",
        # A program with its own structlog, which prints by default.
        "import structlog; structlog.configure(processors=[structlog.processors.JSONRenderer()])",
        "logging.getLogger('tachikoma').setLevel(logging.DEBUG)",
    ],
)
@pytest.mark.slow
def test_the_library_is_silent_by_default(before: str) -> None:
    assert library(before) == ("", "")


def test_a_program_decides_where_lines_of_the_library_go() -> None:
    out, err = library("logging.basicConfig(level='INFO', format='%(levelname)s %(name)s %(message)s')")
    assert out == ""
    assert err.splitlines()[:3] == [
        "INFO tachikoma.identity.file_source svid.changed until='tomorrow'",
        "WARNING tachikoma.identity.file_source svid.kept reason='100% broken' args=1 name='x'",
        "ERROR tachikoma.identity.file_source file.failed path='/x'",
    ]
    assert err.endswith("ValueError: wrong\n")


def test_lines_of_the_library_have_the_format_of_a_part() -> None:
    out, err = library("from tachikoma.config import logs; logs.configure('warning')")
    assert out == ""
    kept, failed = (json.loads(line) for line in err.splitlines())
    assert kept | {"timestamp": ""} == {
        "event": "svid.kept", "level": "warning", "reason": "100% broken", "args": 1, "name": "x", "timestamp": "",
    }  # fmt: skip
    assert failed["exception"].endswith("ValueError: wrong")


def test_no_module_of_the_library_takes_a_logger_that_prints() -> None:
    package = Path(logs.__file__).parents[1]
    users = {path.name for path in package.rglob("*.py") if "structlog.get_logger" in path.read_text()}
    assert users == set()
