"""`tachikoma sessions`: which executions are listed, and to which one may attach."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tachikoma import CancelOutcome, CancelResponse, ExecState
from tachikoma.errors import FailedPrecondition, NotFound


def test_interactive_executions_are_listed_from_all_pages(run: Any, client: Any, status: Any) -> None:
    pages = {
        "": ((status(id="one", interactive=True, attached_by="spiffe://x/user/alice"), status(id="two")), "more"),
        "more": ((status(id="three", interactive=True),), ""),
    }
    client.answers["list_page"] = lambda _, **values: pages[values["page_token"]]
    assert run("sessions", "ls", "-o", "name").out.split() == ["one", "three"]
    shown = run("sessions", "ls", "web-1").out
    assert "alice" in shown
    assert "two" not in shown
    assert client.calls[-1][1] == ("web-1",)
    found = json.loads(run("sessions", "ls", "-o", "json").out)
    assert [item["attachedBy"] for item in found] == ["spiffe://x/user/alice", ""]


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ({"attached_by": "spiffe://x/user/alice"}, "user/alice attached"),
        ({}, "detached"),
        ({"state": ExecState.QUEUED}, "-"),
        ({"observers": ("spiffe://x/user/bob",)}, "detached, observed by user/bob"),
    ],
)
def test_the_list_and_the_status_say_who_is_there(
    run: Any, client: Any, status: Any, values: dict[str, Any], shown: str
) -> None:
    found = status(interactive=True, recorded=True, **values)
    client.answers |= {"list_page": ((found,), ""), "status": found}
    heading, row = run("sessions", "ls").out.splitlines()
    assert heading.split() == ["ID", "AGENT", "STATE", "ASKED", "SESSION", "RECORDED", "COMMAND"]
    assert f" {shown} " in row
    assert " yes " in row
    facts = {line[:14].strip(): line[14:].strip() for line in run("status", "job-7").out.splitlines()}
    assert facts.get("session", "-") == shown
    assert facts["recorded"] == "yes"


def test_only_an_interactive_execution_is_attached_to(run: Any, client: Any, status: Any) -> None:
    client.answers["status"] = status()
    done = run("sessions", "attach", "job-7")
    assert isinstance(done.error, FailedPrecondition)
    assert "`tachikoma logs -f job-7`" in str(done.error)
    client.answers["status"] = status(interactive=True, tty=True)
    done = run("sessions", "attach", "job-7")
    assert "attach from a terminal" in str(done.error)


def test_a_session_is_closed_by_cancelling_it(run: Any, client: Any, status: Any) -> None:
    client.answers["cancel"] = CancelResponse(outcome=CancelOutcome.REQUESTED, status=status())
    assert run("sessions", "close", "job-7").out == "job-7: cancel requested; the agent ends it (STARTED)\n"
    assert client.calls == [("cancel", ("job-7",), {})]


def test_the_beginning_of_an_id_is_enough(run: Any, client: Any, status: Any) -> None:
    known = status(id="4f1c2a9d8e7b")

    def one(exec_id: str) -> Any:
        if exec_id != known.id:
            raise NotFound("there is no such execution")
        return known

    def cancel(exec_id: str) -> CancelResponse:
        return CancelResponse(outcome=CancelOutcome.REQUESTED, status=one(exec_id))

    client.answers |= {"status": one, "cancel": cancel, "list_page": ((known,), "")}
    assert "4f1c2a9d8e7b is not interactive" in str(run("sessions", "attach", "4f1c").error)
    assert run("sessions", "close", "4f1c").code == 0
    assert client.calls[-1] == ("cancel", ("4f1c2a9d8e7b",), {})
