"""Bounds of what an agent reports about itself."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from tachikoma.streams.heartbeat import HEARTBEAT_SECONDS, LEASE_SECONDS, Heartbeat, Started, Trust

BASE: dict[str, Any] = {
    **{"boot": "b", "run": "r", "version": "1", "hostname": "h", "running": 0, "slots": 1},
    **{"load": 0.5, "memory_used": 0.1, "disk_used": 0.2},
}


def test_a_heartbeat_survives_json_and_newer_fields_are_ignored() -> None:
    beat = Heartbeat(**BASE, labels={"role": "web"}, trust=Trust(spiffe_id="spiffe://x/agent/a", expires_ms=1))
    assert Heartbeat.model_validate_json(beat.model_dump_json()) == beat
    assert Heartbeat.model_validate({**beat.model_dump(), "later": 1}) == beat


@pytest.mark.parametrize(
    "values",
    [
        *({"boot": "x" * 256}, {"running": -1}, {"running": 1_000_001}, {"load": float("nan")}, {"load": float("inf")}),
        *({"labels": {"x" * 129: ""}}, {"labels": {"x": "y" * 129}}, {"labels": {str(n): "" for n in range(65)}}),
        *({"warnings": ("x" * 513,)}, {"warnings": ("x",) * 33}, {"type": "started"}),
        *({"trust": {"spiffe_id": "x" * 2049, "expires_ms": 1}}, {"trust": {"spiffe_id": "x", "expires_ms": -1}}),
        {"trust": {"spiffe_id": "x", "expires_ms": 1, "bundle": ["ab" * 32] * 33}},
    ],
)
def test_a_hostile_agent_cannot_report_more(values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Heartbeat(**{**BASE, **values})


def test_a_started_notice_names_its_execution() -> None:
    assert Started(id="job-7", started_ms=1).type == "started"
    with pytest.raises(ValidationError):
        Started(id="a.b", started_ms=1)


def test_a_lease_outlives_two_lost_heartbeats() -> None:
    assert LEASE_SECONDS >= 3 * HEARTBEAT_SECONDS


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({}, True),
        ({"load": 9.0, "memory_used": 0.9, "disk_used": 0.9, "sent_ms": 7}, True),
        ({"running": 1}, False),
        ({"labels": {"role": "db"}}, False),
        ({"life": "record"}, False),
        ({"executions": ("job-7",)}, False),
        ({"executions": None}, False),
    ],
)
def test_a_heartbeat_says_the_same_unless_more_than_measures_changes(changes: dict[str, Any], same: bool) -> None:
    last = Heartbeat(**BASE, executions=())
    assert last.model_copy(update=changes).says_the_same(last) is same


def test_an_agent_that_holds_executions_never_rests() -> None:
    beat = Heartbeat(**BASE, executions=("job-7",))
    assert not beat.says_the_same(beat)
