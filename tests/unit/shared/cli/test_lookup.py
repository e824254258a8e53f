"""Beginnings of ids, and agents that do not exist."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tachikoma import AgentUnknown, ExecStatus, InvalidRequest, NotFound
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
