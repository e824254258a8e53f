"""Schedules of Celery applications, and the places of schedules."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from celery.schedules import crontab, schedule

from tachikoma.errors import ConfigurationError
from tachikoma.schedules.timing import Cron, Every
from tachikoma.vocabulary.schedules import Missed
from tachikoma_orchestrator.schedules.sources import from_beat_schedule, log_reload, open_schedules

ONE = "schedules: [{name: job, every: 5s, agentId: a, request: {command: [ls]}}]\n"


def application(**entries: Any) -> Celery:
    app = Celery("mine", set_as_current=False)
    app.conf.timezone = "Europe/Berlin"
    app.conf.beat_schedule = entries
    return app


def entry(rule: Any, **values: Any) -> dict[str, Any]:
    kwargs = {"agent_id": "db-1", "request": {"command": ["/usr/bin/true"]}}
    return {"task": "tachikoma.schedule", "schedule": rule, "kwargs": kwargs | values}


@pytest.mark.parametrize(
    ("rule", "timing"),
    [
        (crontab(hour=2, minute=30), Cron("30 2 * * *", "Europe/Berlin")),
        (crontab(minute="*/20", day_of_week="mon-wed"), Cron("0,20,40 * * * 1,2,3", "Europe/Berlin")),
        (
            crontab(minute=[1, 2], hour={3}, month_of_year="jan", day_of_month="1-3"),
            Cron("1,2 3 1,2,3 1 *", "Europe/Berlin"),
        ),
        (timedelta(minutes=5), Every(300_000)),
        (15, Every(15_000)),
        (0.5, Every(500)),
        (schedule(30.0), Every(30_000)),
    ],
)  # fmt: skip
def test_an_entry_of_celerys_is_a_schedule_of_ours(rule: Any, timing: Any) -> None:
    found = from_beat_schedule(application(job=entry(rule, missed="run-once")), "mine:app")
    assert found.schedules["job"].timing == timing
    assert found.schedules["job"].missed is Missed.RUN_ONCE


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        (entry(None), "its schedule is a crontab, a timedelta or a number of seconds, not NoneType"),
        (entry(True), "not bool"),
        (entry(0), "every: an interval is 100 ms"),
        (entry(5, agent_id="a.b"), "agent_id: 'a.b' is not an id"),
        (entry(5, request={"command": "ls"}), "request.command: is a list of arguments"),
        (entry(5, request={"command": ["ls"], "user": "0"}), "user: '0' is not a user name"),
        (entry(5, other=1), "other: Extra inputs"),
        (entry(5, cron="* * * * *"), "kwargs: cron is given by the entry itself"),
        (entry(5) | {"options": {"queue": "mine"}}, "options cannot be given"),
        (entry(5) | {"args": (1,)}, "args cannot be given"),
        (entry(5) | {"task": "tachikoma.shedule"}, "there is no task tachikoma.shedule; it is tachikoma.schedule"),
    ],
)
def test_a_wrong_entry_is_told_by_its_name(wrong: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        from_beat_schedule(application(good=entry(5), job=wrong), "mine:app")
    assert str(caught.value).startswith("mine:app: job: ")
    assert why in str(caught.value)


def test_a_name_that_is_no_id_is_told() -> None:
    with pytest.raises(ConfigurationError, match="mine:app: a b: name: 'a b' is not an id"):
        from_beat_schedule(application(**{"a b": entry(5)}), "mine:app")


def test_entries_of_other_tasks_are_left_to_their_own_beat() -> None:
    other = {"task": "mine.clean", "schedule": 60}
    assert list(from_beat_schedule(application(job=entry(5), other=other), "mine:app").schedules) == ["job"]
    with pytest.raises(ConfigurationError, match=r"no entry of its beat_schedule has the task tachikoma\.schedule"):
        from_beat_schedule(application(other=other), "mine:app")


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where a module of somebody's can be written."""
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path / "their_jobs.py"
    sys.modules.pop("their_jobs", None)


def test_a_module_is_a_place(module: Path) -> None:
    module.write_text(
        "from celery import Celery\napp = Celery('x', set_as_current=False)\n"
        "app.conf.beat_schedule = {'job': {'task': 'tachikoma.schedule', 'schedule': 5,\n"
        "    'kwargs': {'agent_id': 'a', 'request': {'command': ['ls']}}}}\n"
        "other = 5\n"
    )
    found = open_schedules("their_jobs:app")
    assert list(found.current.schedules) == ["job"]
    assert not found.reload()
    assert found.error == ""
    with pytest.raises(ConfigurationError, match="their_jobs:other is not a Celery application"):
        open_schedules("their_jobs:other")
    with pytest.raises(ConfigurationError, match="cannot import schedules from their_jobs:nothing"):
        open_schedules("their_jobs:nothing")


@pytest.mark.parametrize("text", ["1 / 0", "raise SystemExit", "import nothing_of_that_name", "("])
def test_a_module_that_cannot_be_imported_is_told(module: Path, text: str) -> None:
    module.write_text(text)
    with pytest.raises(ConfigurationError, match="cannot import schedules from their_jobs:app"):
        open_schedules("their_jobs:app")


def test_a_path_is_a_place(tmp_path: Path) -> None:
    (tmp_path / "a:b").write_text(ONE)
    assert list(open_schedules(str(tmp_path / "a:b")).current.schedules) == ["job"]
    with pytest.raises(ConfigurationError, match="cannot read the file of schedules"):
        open_schedules(str(tmp_path / "nothing.yaml"))


def test_a_reload_is_logged_with_its_mistake(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "schedules.yaml"
    file.write_text(ONE)
    found = open_schedules(str(file))
    log_reload(found)
    assert "schedules.changed" in capsys.readouterr().out
    file.write_text("schedules: [")
    assert found.reload()
    log_reload(found)
    out = capsys.readouterr().out
    assert "schedules.previous_retained" in out
    assert "not YAML" in out
