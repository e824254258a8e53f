"""`tachikoma ps`, `status` and `cancel`."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tachikoma import CancelOutcome, CancelResponse, ExecState, ExecTransition, InvalidRequest, NotFound, Unavailable

NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)


def test_ps_lists_what_was_asked_for(run: Any, client: Any, status: Any) -> None:
    client.answers["list_page"] = ((status(exit_code=-1), status(id="job-8", exit_code=3)), "")
    done = run("ps", "web-1", "-a", "--by", "alice", "--state", "FAILED", "--state", "LOST", "--on", "web-*", "-l", "2")
    assert (done.code, done.err) == (0, "")
    ((name, given, named),) = client.calls
    assert (name, given) == ("list_page", ("web-1",))
    assert named == {
        "include_ended": True, "page_size": 2, "page_token": "", "requested_by": "alice", "agents": "web-*",
        "states": [ExecState.FAILED, ExecState.LOST], "since": None, "until": None,
    }  # fmt: skip
    lines = done.out.splitlines()
    assert lines[0].split() == ["ID", "AGENT", "STATE", "EXIT", "ASKED", "BY", "COMMAND"]
    assert lines[1].split()[:4] == ["job-7", "web-1", "STARTED", "-"]
    assert lines[2].split()[3] == "3"
    assert lines[1].rstrip().endswith("user/alice  ls -l 'a b'")


def test_ps_says_that_there_is_more(run: Any, client: Any, status: Any) -> None:
    client.answers["list_page"] = ((status(),), "next")
    assert run("ps", "--limit", "1").err == "there are more than these 1; use --limit\n"


def test_ps_asks_for_further_pages_until_it_has_enough(run: Any, client: Any, status: Any) -> None:
    """A page may be short or empty, since the server searches only a part of a long list for each call."""
    client.answers["list_page"] = ((status(),), "next")
    done = run("ps", "--limit", "3")
    assert len(done.out.splitlines()) == 4
    pages = [(named["page_size"], named["page_token"]) for _, _, named in client.calls]
    assert pages == [(3, ""), (2, "next"), (1, "next")]


@pytest.mark.parametrize("option", ["--since", "--until"])
def test_times_are_absolute_or_how_long_ago(run: Any, client: Any, option: str) -> None:
    client.answers["list_page"] = ((), "")
    run("ps", option, "2026-01-31T12:00+00:00")
    run("ps", option, "90m")
    absolute, relative = (call[2][option.removeprefix("--")] for call in client.calls)
    assert absolute == NOON
    assert abs(datetime.now(UTC) - timedelta(minutes=90) - relative) < timedelta(minutes=1)
    error = run("ps", option, "yesterday").error
    assert isinstance(error, InvalidRequest)
    assert str(error) == f"{option}: 'yesterday' is no time; write 2026-01-31T12:00, or 1h for an hour ago"


def test_status_shows_what_there_is_to_say(run: Any, client: Any, status: Any) -> None:
    client.answers["status"] = status(policy_applied="web@1")
    shown = dict(line.split("  ", 1) for line in run("status", "job-7").out.splitlines())
    assert {name: value.strip() for name, value in shown.items()} == {
        "id": "job-7", "agent": "web-1", "state": "STARTED", "command": "ls -l 'a b'",
        "requested by": "spiffe://example.org/user/alice", "policy": "web@1", "timeout": "1h",
    }  # fmt: skip


def test_status_shows_approval_cancel_error_and_history(run: Any, client: Any, status: Any) -> None:
    client.answers["status"] = status(
        state=ExecState.CANCELLED, exit_code=143, error="cancelled\x1b[2J", user="web", work_dir="/srv",
        approvers=("boss", "chief"), approved_by="boss", approval_reason="fine", cancel_requested_by="bob",
        history=[ExecTransition(state=state, time=NOON) for state in (ExecState.QUEUED, ExecState.CANCELLED)],
    )  # fmt: skip
    lines = run("status", "job-7").out.splitlines()
    shown = {line[:22].strip(): line[22:].strip() for line in lines}
    for name, value in {
        "user": "web", "directory": "/srv", "exit code": "143", "approvers": "boss, chief", "approved by": "boss: fine",
        "cancelled by": "bob", "error": r"cancelled\x1b[2J",
    }.items():  # fmt: skip
        assert shown[name] == value
    assert [line.split()[-1] for line in lines[-2:]] == ["QUEUED", "CANCELLED"]


@pytest.mark.parametrize("state", [ExecState.QUEUED, ExecState.PENDING_APPROVAL])
def test_status_says_until_when_it_waits(run: Any, client: Any, status: Any, state: ExecState) -> None:
    client.answers["status"] = status(state=state, deadline=NOON)
    assert "waits until" in run("status", "job-7").out
    client.answers["status"] = status(deadline=NOON)
    assert "waits until" not in run("status", "job-7").out


@pytest.mark.parametrize(
    ("outcome", "printed"),
    [
        (CancelOutcome.CANCELLED, "cancelled before it started"),
        (CancelOutcome.REQUESTED, "cancel requested; the agent ends it"),
        (CancelOutcome.ALREADY_ENDED, "had already ended"),
    ],
)
def test_cancel_prints_what_happened_to_each(
    run: Any, client: Any, status: Any, outcome: CancelOutcome, printed: str
) -> None:
    client.answers["cancel"] = lambda exec_id: CancelResponse(outcome=outcome, status=status(id=exec_id))
    assert run("cancel", "a", "b").out == f"a: {printed} (STARTED)\nb: {printed} (STARTED)\n"
    assert [item["outcome"] for item in json.loads(run("cancel", "a", "b", "-o", "json").out)] == [outcome, outcome]


def test_json_has_the_names_of_the_spec(run: Any, client: Any, status: Any) -> None:
    client.answers |= {"list_page": ((status(),), ""), "status": status()}
    assert json.loads(run("ps", "-o", "json").out) == [status().to_dict()]
    assert json.loads(run("status", "job-7", "-o", "json").out) == status().to_dict()


@pytest.mark.parametrize("missing", [("a",), ("b",), ("c",), ("a", "c"), ("a", "b", "c")])
def test_cancel_does_each_although_others_fail(run: Any, client: Any, status: Any, missing: tuple[str, ...]) -> None:
    def answer(exec_id: str) -> CancelResponse:
        if exec_id in missing:
            raise (Unavailable if exec_id == "c" else NotFound)(f"no {exec_id}")
        return CancelResponse(outcome=CancelOutcome.REQUESTED, status=status(id=exec_id))

    client.answers["cancel"] = answer
    found = [exec_id for exec_id in ("a", "b", "c") if exec_id not in missing]
    done = run("cancel", "a", "b", "c")
    assert done.code == 1
    assert [call[1] for call in client.calls] == [("a",), ("b",), ("c",)]
    assert [line.partition(":")[0] for line in done.out.splitlines()] == found
    assert done.err.splitlines() == [f"tachikoma: {exec_id}: no {exec_id}" for exec_id in missing]
    done = run("cancel", "a", "b", "c", "-o", "json")
    assert (done.code, [item["status"]["id"] for item in json.loads(done.out)]) == (1, found)
