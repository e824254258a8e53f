"""Tables, facts and JSON."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest

from tachikoma import AgentInfo, ExecState
from tachikoma.cli import show
from tachikoma.cli.tables import Cell

FIRST, SECOND = AgentInfo(id="web-1", hostname="ä"), AgentInfo(id="web-2")


@pytest.mark.parametrize("state", ExecState)
def test_every_state_has_a_colour(state: ExecState) -> None:
    assert show.state_cell(state) == Cell(state, show.colour_of(state))
    assert show.colour_of(state) in {"green", "cyan", "yellow", "red"}


@pytest.mark.parametrize(
    ("spiffe_id", "short"), [("spiffe://example.org/user/alice", "user/alice"), ("", ""), ("alice", "")]
)
def test_people_are_named_by_their_path(spiffe_id: str, short: str) -> None:
    assert show.short_id(spiffe_id) == short


def test_a_time_has_its_day_unless_that_is_today() -> None:
    now = datetime.now(UTC)
    assert show.clock(None) == "-"
    assert show.clock(now - timedelta(days=2)) == (now - timedelta(days=2)).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    noon = now.astimezone().replace(hour=12, minute=0, second=0)
    assert show.clock(noon) == "12:00:00"


def test_one_value_is_an_object_and_several_are_an_array(capsys: pytest.CaptureFixture[str]) -> None:
    show.as_json(FIRST)
    out = capsys.readouterr().out
    assert json.loads(out) == FIRST.to_dict()
    assert '"hostname": "ä"' in out
    show.as_json([FIRST, SECOND])
    assert json.loads(capsys.readouterr().out) == [FIRST.to_dict(), SECOND.to_dict()]
    show.as_json(())
    assert json.loads(capsys.readouterr().out) == []


def test_facts_are_aligned_and_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    show.facts([("id", "x"), ("command", "a\x07b")])
    show.facts([])
    assert capsys.readouterr().out == "id       x\ncommand  a\\x07b\n"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-3, "3s ago"), (-300, "5m ago"), (-7300, "2h ago"), (-200_000, "2d ago"), (125, "in 2m"), (0.5, "0s ago")],
)
def test_a_distance_has_one_unit(seconds: float, text: str) -> None:
    assert show.age(datetime.now(UTC) + timedelta(seconds=seconds)) == text


def test_a_moment_is_local_and_relative() -> None:
    time = datetime.now(UTC) - timedelta(days=3)
    assert show.moment(time) == f"{show.clock(time)} (3d ago)"
    assert (show.moment(None), show.age(None)) == ("-", "-")


def test_warnings_go_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    show.warn("careful")
    assert capsys.readouterr() == ("", "careful\n")
