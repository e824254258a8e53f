"""Files of schedules."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from textwrap import dedent

import pytest

from tachikoma.cli.commands import schedule as command
from tachikoma.errors import ConfigurationError, NotFound
from tachikoma.schedules.file import MAX_SCHEDULES, BatchRules, ScheduledRequest, ScheduleSet
from tachikoma.schedules.timing import Cron, Every
from tachikoma.vocabulary.batches import BatchRequest, StopCause
from tachikoma.vocabulary.schedules import Missed, Overlap

GOOD = """\
schedules:
  - name: nightly-backup
    cron: 30 2 * * *
    timezone: Europe/Berlin
    agentId: db-1
    request:
      command: [/usr/local/bin/backup, --all]
      workDir: /srv
      environment: {LANG: C}
      timeout: 2h
      user: backup
      limits: {memory: 1GiB}
    missed: run-once
    overlap: skip
    lateness: 5m
  - name: heartbeat
    every: 30s
    agentId: web-1
    request: {command: [/usr/bin/true]}
    enabled: false
"""


def parse(text: str) -> ScheduleSet:
    return ScheduleSet.parse(dedent(text), "schedules.yaml")


def mistakes(text: str) -> list[str]:
    with pytest.raises(ConfigurationError) as caught:
        parse(text)
    return str(caught.value).splitlines()


# --- files ------------------------------------------------------------------------------------------------------------


def test_a_file_is_read() -> None:
    found = parse(GOOD)
    backup, heartbeat = found.schedules["nightly-backup"], found.schedules["heartbeat"]
    assert backup.timing == Cron("30 2 * * *", "Europe/Berlin")
    assert (backup.missed, backup.overlap, backup.lateness) == (
        Missed.RUN_ONCE,
        Overlap.SKIP,
        timedelta(minutes=5),
    )
    request = backup.exec_request("an-id")
    assert request.command == ("/usr/local/bin/backup", "--all")
    assert request.timeout == timedelta(hours=2)
    assert (request.id, request.agent_id, request.user, request.work_dir) == ("an-id", "db-1", "backup", "/srv")
    assert request.limits is not None
    assert heartbeat.timing == Every(30_000)
    assert not heartbeat.enabled
    assert (backup.when, heartbeat.when) == ("30 2 * * * Europe/Berlin", "every 30s")
    assert found.warnings == ()


def test_targets_make_a_batch_with_the_rules_of_the_file() -> None:
    rules = "{parallel: 10%, canary: 1, wave: 25%, pause: 5m, stopAfter: '3', stopOn: [DENIED], deadline: 2h}"
    text = GOOD.replace("    agentId: db-1", f"    targets: [role=web, '!web-7']\n    batch: {rules}", 1)
    backup = parse(text).schedules["nightly-backup"]
    request = backup.batch_request("an-id")
    assert (request.id, request.targets, request.command[0]) == (
        "an-id",
        ("role=web", "!web-7"),
        "/usr/local/bin/backup",
    )
    assert (request.timeout, request.user, request.work_dir) == (timedelta(hours=2), "backup", "/srv")
    assert (request.parallel, request.canary, request.wave, request.stop_after) == ("10%", 1, "25%", "3")
    assert (request.pause, request.deadline) == (timedelta(minutes=5), timedelta(hours=2))
    assert request.stop_on == (StopCause.DENIED,)
    assert request.limits is not None


def test_a_schedule_has_every_rule_of_a_batch() -> None:
    own = {"id", "targets", "retry_of", "retry_states", "stdin"}
    request = ScheduledRequest.model_fields.keys()
    assert BatchRules.model_fields.keys() == BatchRequest.model_fields.keys() - own - request
    defaults = BatchRequest(targets=("a",), command=("b",))
    assert {name: getattr(BatchRules(), name) for name in BatchRules.model_fields} == {
        name: getattr(defaults, name) for name in BatchRules.model_fields
    }


@pytest.mark.parametrize(
    ("line", "wrong", "where"),
    [
        ("    cron: 30 2 * * *", "    cron: 30 25 * * *", "3:5: schedules[0].cron: the hour: 25 is not from 0 to 23"),
        ("    cron: 30 2 * * *", "    cron: 30 2 * *", "3:5: schedules[0].cron: a cron expression has five fields"),
        ("Europe/Berlin", "Europe/Berlim", "4:5: schedules[0].timezone: 'Europe/Berlim' is not a time zone"),
        ("Europe/Berlin", "../../etc/passwd", "4:5: schedules[0].timezone: '../../etc/passwd' is not a time zone"),
        ("Europe/Berlin", "Europe", "4:5: schedules[0].timezone: 'Europe' is not a time zone"),
        ("    agentId: db-1", "    agentId: db.1", "5:5: schedules[0].agentId: 'db.1' is not an id"),
        ("    agentId: db-1", "    agent: db-1", "schedules[0].agent: unknown field; did you mean agentId?"),
        ("      user: backup", "      user: '0'", "11:7: schedules[0].request.user: '0' is not a user name"),
        (
            "      user: backup",
            "      usr: backup",
            "11:7: schedules[0].request.usr: unknown field; did you mean user?",
        ),
        ("      workDir: /srv", "      workDir: srv", "8:7: schedules[0].request.workDir: 'srv' is not an absolute"),
        ("{memory: 1GiB}", "{memry: 1GiB}", "schedules[0].request.limits.memry: unknown field; did you mean memory?"),
        ("[/usr/local/bin/backup, --all]", "backup --all", "request.command: is a list of arguments, not one string"),
        ("[/usr/local/bin/backup, --all]", '["", x]', "request.command: the first element, the program, is empty"),
        ("    missed: run-once", "    missed: always", "13:5: schedules[0].missed: Input should be 'skip' or"),
        ("    lateness: 5m", "    lateness: 0s", "15:5: schedules[0].lateness: must be 1 second to 7 days"),
        ("    every: 30s", "    every: 50ms", "17:5: schedules[1].every: an interval is 100 ms to 366 days"),
        ("    every: 30s", "    every: 1.0001s", "17:5: schedules[1].every: an interval is a whole number"),
        (
            "    agentId: db-1",
            "    agentId: db-1\n    targets: [web-1]",
            "2:5: schedules[0]: needs either agentId or targets",
        ),
        ("    agentId: db-1\n", "", "2:5: schedules[0]: needs either agentId or targets"),
        ("    agentId: db-1", "    agentId: db-1\n    batch: {canary: 1}", "schedules[0]: batch is for targets"),
        ("    agentId: db-1", "    targets: web-1", "schedules[0].targets: is a list of target expressions"),
        (
            "    agentId: db-1",
            "    targets: [a]\n    batch: {parallel: many}",
            "schedules[0].batch.parallel: 'many' is",
        ),
        (
            "    agentId: db-1",
            "    targets: [a]\n    batch: {parallel: 0%}",
            "schedules[0].batch.parallel: must be more than",
        ),
        ("    agentId: db-1", "    targets: [a]\n    batch: {paralel: 1%}", "did you mean parallel?"),
        ("    every: 30s", "    every: 30s\n    cron: 1 * * * *", "16:5: schedules[1]: needs either cron or every"),
        ("    every: 30s", "    every: 30s\n    timezone: UTC", "16:5: schedules[1]: timezone is for cron"),
        ("    every: 30s\n", "", "16:5: schedules[1]: needs either cron or every"),
        ("name: heartbeat", "name: nightly-backup", "16:5: name: 'nightly-backup' is used twice, first at schedules.y"),
        ("name: heartbeat", "name: a:b", "16:5: schedules[1].name: 'a:b' is not an id"),
        ("    cron: 30 2 * * *", "    cron: * * * * *", "not YAML"),
        ("schedules:", "schedule:", "1:1: schedule: unknown field; did you mean schedules?"),
    ],
)
def test_a_mistake_is_told_with_its_place(line: str, wrong: str, where: str) -> None:
    assert line in GOOD
    told = mistakes(GOOD.replace(line, wrong, 1))
    assert any(where in mistake for mistake in told), told
    assert all(mistake.startswith("schedules.yaml:") for mistake in told)


def test_days_that_must_both_be_right_are_warned_of() -> None:
    (warning,) = parse(GOOD.replace("30 2 * * *", "30 2 1 * mon")).warnings
    assert warning.startswith("schedules.yaml:2:5: nightly-backup: cron names days of the month and of the week")


def test_a_folder_is_all_its_files(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(GOOD)
    (tmp_path / "b.yml").write_text(GOOD.replace("name: ", "name: other-"))
    (tmp_path / "c.txt").write_text("no")
    assert len(ScheduleSet.load(tmp_path).schedules) == 4
    (tmp_path / "b.yml").write_text(GOOD)
    with pytest.raises(ConfigurationError, match=r"b\.yml:2:5: name: .* is used twice, first at .*a\.yaml:2:5"):
        ScheduleSet.load(tmp_path)


@pytest.mark.slow
def test_too_many_schedules_are_refused() -> None:
    one = "  - {{name: s{}, every: 1h, agentId: a, request: {{command: [x]}}}}\n"
    text = "schedules:\n" + "".join(one.format(number) for number in range(MAX_SCHEDULES + 1))
    with pytest.raises(ConfigurationError, match="at most 1000"):
        ScheduleSet.parse(text, "many")


def test_a_schedule_that_is_not_there_is_not_found() -> None:
    with pytest.raises(NotFound, match="tachikoma schedule ls"):
        parse(GOOD).get("other")


def test_the_shipped_schema_knows_what_schedules_know() -> None:
    """Not word for word: how pydantic writes a schema is its own affair."""
    shipped = json.loads((Path(command.__file__).parents[2] / "schedules.schema.json").read_text())
    current = json.loads(command.schema_text())
    again = "run: tachikoma schedule schema > shared/tachikoma/schedules.schema.json"
    assert set(shipped["$defs"]) == set(current["$defs"]), again
    for name, definition in current["$defs"].items():
        assert set(shipped["$defs"][name].get("properties", ())) == set(definition.get("properties", ())), again
        assert shipped["$defs"][name].get("required") == definition.get("required"), again
        assert shipped["$defs"][name].get("description") == definition.get("description"), again
