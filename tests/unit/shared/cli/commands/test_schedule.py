"""`tachikoma schedule`, as far as it asks the orchestrator; files are tested with `tachikoma.schedules.file`."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from tachikoma import BatchState, DueOutcome, ExecState, ScheduledRun, ScheduleStatus

NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)
RUN = ScheduledRun(due=NOON, time=NOON, outcome=DueOutcome.RUN, id="job-7", agent_id="web-1", state=ExecState.FAILED)
NIGHTLY = ScheduleStatus(
    name="nightly", when="every 5m", agent_id="web-1", command=("ls", "a b"), next_due=NOON, last=RUN
)
PAUSED = NIGHTLY.model_copy(
    update={
        "name": "paused",
        "paused": True,
        "paused_by": "spiffe://x/user/bob",
        "paused_at": NOON,
        "pause_reason": "disk",
        "last": None,
    }
)
OFF = NIGHTLY.model_copy(update={"name": "off", "enabled": False, "next_due": None})


def test_schedules_are_listed_with_their_state(run: Any, client: Any) -> None:
    client.answers["schedules"] = ((NIGHTLY, PAUSED, OFF), "")
    done = run("schedule", "ls")
    rows = [line.split() for line in done.out.splitlines()]
    assert rows[0] == ["NAME", "STATE", "WHEN", "NEXT", "LAST", "OUTCOME", "AGENT", "COMMAND"]
    assert [row[1] for row in rows[1:]] == ["on", "paused", "off"]
    assert "FAILED" in rows[1]
    assert done.out.splitlines()[1].rstrip().endswith("ls 'a b'")
    assert done.err.startswith("paused: paused by user/bob at ")
    assert done.err.endswith(": disk\n")
    assert [item["name"] for item in json.loads(run("schedule", "ls", "-o", "json").out)] == [
        "nightly",
        "paused",
        "off",
    ]


def test_a_schedule_with_targets_shows_them_and_the_states_of_its_batches(run: Any, client: Any) -> None:
    batch = RUN.model_copy(update={"agent_id": "", "state": None, "batch_state": BatchState.STOPPED})
    changes = {"agent_id": "", "targets": ("role=web", "!web-7"), "last": batch}
    client.answers["schedules"] = ((NIGHTLY.model_copy(update=changes),), "")
    client.answers["scheduled_runs"] = (batch,)
    row = run("schedule", "ls", "--wide").out.splitlines()[1]
    assert "STOPPED" in row
    assert "role=web !web-7" in row
    history = run("schedule", "history", "nightly").out.splitlines()[1].split()
    assert [word for word in history if word in ("RUN", "job-7", "STOPPED", "batch")] == [
        "RUN", "job-7", "STOPPED", "batch",
    ]  # fmt: skip
    client.answers["run_schedule"] = batch
    assert run("schedule", "run", "nightly").out == "job-7: STOPPED\n"


def test_a_mistake_in_the_newest_file_is_shown_and_fails(run: Any, client: Any) -> None:
    client.answers["schedules"] = ((NIGHTLY,), "schedules.yaml:3:1: unknown field")
    done = run("schedule", "ls")
    assert done.code == 1
    told = "the newest file is NOT active, since it has a mistake:\nschedules.yaml:3:1: unknown field"
    assert done.err == f"tachikoma: {told}\n"
    assert json.loads(run("schedule", "ls", "-o", "json").err)["error"]["message"] == told


def test_due_times_have_their_date_and_zone(run: Any, client: Any) -> None:
    client.answers["next_due_times"] = (NOON, NOON.replace(microsecond=5000))
    lines = run("schedule", "next", "nightly", "-n", "2").out.splitlines()
    assert [datetime.fromisoformat(line) for line in lines] == [NOON, NOON.replace(microsecond=5000)]
    assert client.calls == [("next_due_times", ("nightly",), {"limit": 2})]
    assert json.loads(run("schedule", "next", "nightly", "-o", "json").out)[0] == "2026-01-31T12:00:00Z"


def test_pause_and_resume(run: Any, client: Any) -> None:
    client.answers |= {"pause_schedule": PAUSED, "resume_schedule": NIGHTLY}
    assert run("schedule", "pause", "paused", "--reason", "disk").out == "paused: paused\n"
    assert run("schedule", "resume", "nightly").out.startswith("nightly: next due ")
    assert json.loads(run("schedule", "resume", "nightly", "-o", "json").out)["name"] == "nightly"
    assert client.calls[0] == ("pause_schedule", ("paused", "disk"), {})


@pytest.mark.parametrize("outcome", DueOutcome)
def test_a_run_that_is_refused_fails(run: Any, client: Any, outcome: DueOutcome) -> None:
    client.answers["run_schedule"] = RUN.model_copy(update={"outcome": outcome, "reason": "no \x1b policy"})
    done = run("schedule", "run", "nightly")
    assert done.code == (0 if outcome in (DueOutcome.RUN, DueOutcome.TAKEN) else 1)
    if outcome is DueOutcome.RUN:
        assert done.out == "job-7: FAILED\n"
    else:
        assert done.err == f"nightly: {outcome}: no \\x1b policy\n"
    assert json.loads(run("schedule", "run", "nightly", "-o", "json").out)["outcome"] == outcome


def test_history_has_the_latest_last(run: Any, client: Any) -> None:
    missed = ScheduledRun(due=NOON, time=NOON, outcome=DueOutcome.MISSED, count=7, first=NOON, reason="no submitter")
    client.answers["scheduled_runs"] = (missed, RUN)
    lines = run("schedule", "history", "nightly").out.splitlines()
    assert lines[0].split() == ["DUE", "OUTCOME", "ID", "STATE", "AGENT", "BY", "REASON"]
    assert "job-7" in lines[1]
    assert "7 times since" in lines[2]
    assert lines[2].rstrip().endswith("no submitter")
    assert [item["outcome"] for item in json.loads(run("schedule", "history", "nightly", "-o", "json").out)] == [
        "RUN", "MISSED",
    ]  # fmt: skip
