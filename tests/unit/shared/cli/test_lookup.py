"""Beginnings of ids, and agents that do not exist."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest

from tachikoma import AgentUnknown, ExecStatus, InvalidRequest, NotFound, RecordingInfo, TachikomaError
from tachikoma.cli.components import COMPONENTS
from tachikoma.cli.lookup import similar_agents

IDS = ("4f1c2a9d8e7b6a5f4c3d2e1f", "4f1c2a9d00000a5f4c3d2e1f", "nightly-7")


@pytest.fixture
def known(client: Any, status: Callable[..., ExecStatus]) -> Any:
    """A client that knows some executions, on two pages."""
    found = {exec_id: status(id=exec_id) for exec_id in IDS}

    def one(exec_id: str) -> ExecStatus:
        if exec_id not in found:
            raise NotFound(f"there is no execution {exec_id!r}")
        return found[exec_id]

    def page(**named: Any) -> tuple[tuple[ExecStatus, ...], str]:
        assert named["include_ended"]
        return ((found[IDS[2]],), "") if named["page_token"] else ((found[IDS[0]], found[IDS[1]]), "next")

    client.answers |= {"status": one, "list_page": page, "attach": lambda exec_id, **_: one(exec_id) and ()}
    return client


def test_a_whole_id_needs_no_search(run: Any, known: Any) -> None:
    assert run("status", IDS[0], "-o", "name").out == f"{IDS[0]}\n"
    assert [call[0] for call in known.calls] == ["status"]


@pytest.mark.parametrize(("beginning", "full"), [("4f1c2a9d8", IDS[0]), ("4f1c2a9d0", IDS[1]), ("nigh", IDS[2])])
def test_an_unambiguous_beginning_is_enough(run: Any, known: Any, beginning: str, full: str) -> None:
    assert run("status", beginning, "-o", "name").out == f"{full}\n"
    assert run("logs", beginning).code == 0
    assert known.calls[-1][1] == (full,)


def test_an_ambiguous_beginning_is_refused_with_the_ids(run: Any, known: Any) -> None:
    error = run("status", "4f1c").error
    assert isinstance(error, InvalidRequest)
    assert str(error) == f"2 executions begin with '4f1c': {IDS[0]}, {IDS[1]}; write more of the id"


@pytest.mark.parametrize("text", ["4f1", "9999", ""])
def test_too_short_or_unknown_is_not_found(run: Any, known: Any, text: str) -> None:
    assert isinstance(run("status", text).error, NotFound)


@pytest.mark.parametrize(
    ("agent", "text"),
    [
        ("agent1", "there is no agent; did you mean agent-1 or agent-12?"),
        ("wbe-1", "there is no agent; did you mean web-1?"),
        ("database", "there is no agent"),
    ],
)
def test_similar_agents_are_named(agent: str, text: str) -> None:
    error = AgentUnknown("there is no agent", metadata={"agent": agent})
    found = similar_agents(error, agent, ["agent-1", "agent-12", "web-1"])
    assert (str(found), found.metadata) == (text, error.metadata)


FULL, BEGINNING = "4f1c2a9d8e7b6a5f4c3d2e1f", "4f1c2a9d"
#: Each command that takes the id of an execution, a batch or a recording, by its path; the id comes after it.
TAKERS: dict[str, tuple[str, ...]] = {
    "approvals": (), "approve": ("-m", "why", "--digest", "ab" * 32), "audit show": (), "audit tail": ("--id",),
    "batches approvals": (), "batches approve": ("-m", "why", "--digest", "ab" * 32), "batches reject": ("-m", "why"),
    "batches cancel": (), "batches logs": (), "batches retry": (), "batches status": (), "cancel": (), "logs": (),
    "play": (), "recordings export": (), "reject": ("-m", "why"), "sessions attach": (),
    "sessions close": (), "sessions watch": (), "status": (),
}  # fmt: skip


def takers() -> set[str]:
    """Commands with a parameter for such an id. `exec` and `run` give one to something new."""

    def below(name: str, command: Any) -> Iterator[str]:
        names = {parameter.name for parameter in command.params}
        if names & {"exec_id", "exec_ids", "batch_id"} and command.name not in ("exec", "run"):
            yield name
        for child, part in getattr(command, "commands", {}).items():
            yield from below(f"{name} {child}", part)

    client_commands = (component for component in COMPONENTS if not component.extra)
    return {name for component in client_commands for name in below(component.name, component.load())}


class Reached(TachikomaError):
    """A call was made with the whole id."""


def known_as_whole(*given: Any, **named: Any) -> Any:
    """The answer of a server that knows one id."""
    if FULL in (*given, *named.values()):
        raise Reached("reached")
    raise NotFound(f"there is no {given}")


def test_the_commands_that_take_an_id_are_known() -> None:
    assert takers() == set(TAKERS)


@pytest.mark.parametrize("command", TAKERS)
def test_every_command_takes_the_beginning_of_an_id(
    run: Any, client: Any, status: Callable[..., ExecStatus], command: str
) -> None:
    recorded = RecordingInfo(
        id=FULL, agent_id="web-1", requested_by="spiffe://e/user/a", command=("bash",), sha256="ab" * 32,
        start_time=datetime(2026, 1, 31, 12, tzinfo=UTC),
    )  # fmt: skip
    calls = ("status", "cancel", "approval", "approve", "reject", "attach", "cancel_batch", "watch_batch", "recording")
    calls += ("batch_approval", "approve_batch", "reject_batch", "watch_session", "batch")
    client.answers |= dict.fromkeys(calls, known_as_whole)
    client.answers |= {
        "list_page": ((status(id=FULL), status(id="nightly-7")), ""),
        "batches": (SimpleNamespace(id=FULL),),
        "batch_approvals": (SimpleNamespace(id=FULL), SimpleNamespace(id="nightly-7")),
        "audit": (),
        "recordings": lambda exec_id="", **_: (recorded,) if exec_id in ("", FULL) else (),
    }
    done = run(*command.split(), *TAKERS[command], BEGINNING)
    # `cancel` goes on after an error, and what runs a command ends with a code of its own.
    assert isinstance(done.error, Reached) or (command in ("cancel", "batches retry") and "reached" in done.err)
    assert any(FULL in (*given, *named.values()) for _, given, named in client.calls)
