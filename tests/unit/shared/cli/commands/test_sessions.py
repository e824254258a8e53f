"""`tachikoma sessions`: which executions are listed, and to which one may attach."""

from __future__ import annotations

import json
from typing import Any

from tachikoma.errors import FailedPrecondition


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


def test_only_an_interactive_execution_is_attached_to(run: Any, client: Any, status: Any) -> None:
    client.answers["status"] = status()
    done = run("sessions", "attach", "job-7")
    assert isinstance(done.error, FailedPrecondition)
    assert "`tachikoma logs -f job-7`" in str(done.error)
    client.answers["status"] = status(interactive=True, tty=True)
    done = run("sessions", "attach", "job-7")
    assert "attach from a terminal" in str(done.error)


def test_a_session_is_closed_by_cancelling_it(run: Any, client: Any) -> None:
    client.answers["cancel"] = None
    assert run("sessions", "close", "job-7").code == 0
    assert client.calls == [("cancel", ("job-7",), {})]
