"""The active schedules while their file changes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tachikoma.errors import ConfigurationError
from tachikoma.schedules.watch import ScheduleWatch

ONE = "schedules:\n  - {name: job, every: 30s, agentId: web-1, request: {command: [/usr/bin/true]}}\n"


def test_a_mistake_retains_the_previous_schedules_and_a_valid_file_replaces_them(tmp_path: Path) -> None:
    file = tmp_path / "schedules.yaml"
    file.write_text(ONE)
    watch = ScheduleWatch(file)
    digest = watch.current.digest
    assert not watch.reload()
    file.write_text("schedules: [")
    assert watch.reload()
    assert "not YAML" in watch.error
    assert watch.current.digest == digest
    file.write_text("schedules: []\n")
    assert watch.reload()
    assert watch.error == ""
    assert watch.current.schedules == {}


def test_a_first_file_with_a_mistake_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "schedules.yaml"
    file.write_text("schedules: [")
    with pytest.raises(ConfigurationError, match="not YAML"):
        ScheduleWatch(file)
