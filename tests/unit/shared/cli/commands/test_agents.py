"""`tachikoma agents`."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tachikoma import AgentInfo, Enrolment, ExecState, InvalidRequest, Revocation

AGENT = AgentInfo(
    id="web-1", online=True, version="1.2", hostname="web1.example", labels={"role": "web"},
    reported_labels={"role": "db"},
    running=3, slots=64,
    queued=2, load=0.257, memory_used=0.5, disk_used=1.0, isolation=("shared", "private", "sealed"),
)  # fmt: skip


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tachikoma.cli.commands.agents.POLL_SECONDS", 0)


def test_agents_are_listed_with_their_state(run: Any, client: Any) -> None:
    client.answers["agents"] = (
        AGENT,
        AGENT.model_copy(update={"id": "web-2", "online": False}),
        AGENT.model_copy(
            update={"id": "web-3", "draining": True, "drained_by": "bob", "drain_reason": "new \x1bkernel"}
        ),
        AGENT.model_copy(update={"id": "web-4", "revoked": True, "revoked_by": "bob", "revoke_reason": "stolen"}),
        AGENT.model_copy(update={"id": "web-5", "warnings": ("no cgroups",)}),
    )
    done = run("agents")
    rows = [line.split() for line in done.out.splitlines()]
    assert rows[0] == [
        *("AGENT", "STATE", "SEEN", "RUNNING", "QUEUED", "LOAD", "MEMORY", "DISK", "CERTIFICATE", "VERSION"),
        *("ISOLATION", "HOST", "LABELS", "REPORTED"),
    ]
    assert [row[1] for row in rows[1:]] == ["online", "offline", "draining", "revoked", "online"]
    assert rows[1] == [
        "web-1",
        "online",
        "-",
        "3/64",
        "2",
        "0.26",
        "50%",
        "100%",
        "-",
        "1.2",
        "sealed",
        "web1.example",
        "role=web",
        "role=db",
    ]
    assert done.err.splitlines() == [
        r"web-3: drained by bob: new \x1bkernel", "web-4: revoked by bob: stolen", "web-5: no cgroups",
    ]  # fmt: skip
    assert [item["id"] for item in json.loads(run("agents", "-o", "json").out)] == [f"web-{n}" for n in range(1, 6)]


def test_drain_and_resume_say_what_the_agent_takes(run: Any, client: Any) -> None:
    client.answers |= {"drain_agent": AGENT.model_copy(update={"draining": True}), "resume_agent": AGENT}
    assert run("agents", "drain", "web-1", "--reason", "kernel").out == "web-1: takes no new executions\n"
    assert run("agents", "resume", "web-1").out == "web-1: takes executions\n"
    assert json.loads(run("agents", "resume", "web-1", "-o", "json").out) == AGENT.to_dict()
    assert [call[:2] for call in client.calls][:2] == [
        ("drain_agent", ("web-1", "kernel")), ("resume_agent", ("web-1",)),
    ]  # fmt: skip


def test_drain_waits_until_nothing_runs_or_waits(run: Any, client: Any, status: Any) -> None:
    draining = AGENT.model_copy(update={"draining": True})
    pages = [((status(),), ""), ((status(),), ""), ((), "")]
    client.answers |= {"drain_agent": draining, "agents": (draining,), "list_page": lambda *_, **__: pages.pop(0)}
    assert run("agents", "drain", "web-1", "-r", "x", "--wait").code == 0
    assert pages == []
    assert client.calls[1] == (
        "list_page",
        ("web-1",),
        {"states": (ExecState.QUEUED, ExecState.STARTED), "page_size": 1},
    )


def test_drain_stops_waiting_when_the_agent_is_resumed(run: Any, client: Any, status: Any) -> None:
    draining = AGENT.model_copy(update={"draining": True})
    client.answers |= {"drain_agent": draining, "agents": (AGENT,), "list_page": ((status(),), "")}
    done = run("agents", "drain", "web-1", "-r", "x", "--wait")
    assert (done.code, done.out, done.err) == (1, "", "tachikoma: web-1 was resumed\n")
    error = json.loads(run("agents", "drain", "web-1", "-r", "x", "--wait", "-o", "json").err)["error"]
    assert (error["reason"], error["metadata"]) == ("FAILED_PRECONDITION", {"agent": "web-1"})


def test_enroll_prints_the_token_alone_on_standard_output(run: Any, client: Any) -> None:
    expires = datetime(2026, 1, 31, tzinfo=UTC)
    client.answers["enroll_agent"] = Enrolment(agent_id="web-1", token="secret", expires=expires)
    done = run("agents", "enroll", "web-1", "--ttl", "2m")
    assert done.out == "secret\n"
    assert "a host with this token may join as web-1, once, until" in done.err
    assert "tachikoma worker join" in done.err
    assert client.calls == [("enroll_agent", ("web-1", timedelta(minutes=2)), {"labels": {}})]
    error = run("agents", "enroll", "web-1", "--ttl", "soon").error
    assert isinstance(error, InvalidRequest)
    assert str(error).startswith("--ttl: ")


def test_labels_are_bound_and_removed(run: Any, client: Any) -> None:
    client.answers["label_agent"] = AGENT
    assert run("agents", "label", "web-1", "role=web", "site-").out == "web-1: role=web\n"
    assert client.calls == [("label_agent", ("web-1", {"role": "web"}), {"remove": ("site",)})]
    client.answers["label_agent"] = AGENT.model_copy(update={"labels": {}})
    assert run("agents", "label", "web-1", "role-").out == "web-1: no labels\n"
    assert isinstance(run("agents", "label", "web-1", "role").error, InvalidRequest)


def test_enroll_names_labels_for_the_join(run: Any, client: Any) -> None:
    client.answers["enroll_agent"] = Enrolment(agent_id="web-1", token="t", expires=datetime(2026, 1, 31, tzinfo=UTC))
    assert run("agents", "enroll", "web-1", "--label", "role=web", "--label", "site=b1").code == 0
    assert client.calls[0][2] == {"labels": {"role": "web", "site": "b1"}}
    assert isinstance(run("agents", "enroll", "web-1", "--label", "role").error, InvalidRequest)


def test_revoke_needs_a_confirmation(run: Any, client: Any) -> None:
    client.answers["revoke_agent"] = Revocation(agent_id="web-1", cancelled=2, lost=1, warnings=("rotate it",))
    error = run("agents", "revoke", "web-1", "-r", "stolen").error
    assert isinstance(error, InvalidRequest)
    assert str(error) == "not a terminal: pass --yes to confirm"
    assert client.calls == []
    done = run("agents", "revoke", "web-1", "-r", "stolen", "--yes")
    assert done.out == "web-1: revoked; 2 waiting executions cancelled, 1 running ones lost\n"
    assert done.err == "web-1: rotate it\n"
    assert client.calls == [("revoke_agent", ("web-1", "stolen"), {})]


@pytest.mark.parametrize(("answer", "calls"), [("y", 1), ("n", 0)])
def test_revoke_asks_at_a_terminal(run: Any, client: Any, answer: str, calls: int) -> None:
    client.answers["revoke_agent"] = Revocation(agent_id="web-1")
    done = run("agents", "revoke", "web-1", "-r", "stolen", answers=[answer])
    assert "revoke web-1, whose running executions are then lost?" in done.err
    assert (len(client.calls), done.code) == (calls, 1 - calls)


@pytest.mark.parametrize("words", [("web-{1..3}",), ("web-[1-3]",), ("web-1", "web-2", "web-3", "web-1")])
def test_several_agents_are_enrolled_with_a_line_for_each(run: Any, client: Any, words: tuple[str, ...]) -> None:
    expires = datetime(2026, 1, 31, tzinfo=UTC)
    client.answers["enroll_agent"] = lambda name, *_, **__: Enrolment(agent_id=name, token=f"t-{name}", expires=expires)
    done = run("agents", "enroll", *words)
    assert done.out.splitlines() == [f"web-{number} t-web-{number}" for number in (1, 2, 3)]
    assert "worker install" in done.err
