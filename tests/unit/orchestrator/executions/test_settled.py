"""The final states and records that an orchestrator remembers."""

from __future__ import annotations

import json
from typing import Any, cast

import pytest

from tachikoma.vocabulary.states import ExecState
from tachikoma_orchestrator.executions import settled as module
from tachikoma_orchestrator.executions.settled import KEEP_SECONDS, EndedRecords
from tachikoma_orchestrator.executions.transitions import Transition
from tachikoma_orchestrator.store.scripts import Call, Runner


def test_a_final_state_is_remembered_for_a_day() -> None:
    assert KEEP_SECONDS == 24 * 3600


class Calls:
    """Takes the place of Redis."""

    def __init__(self) -> None:
        self.calls: list[Call] = []

    async def run(self, call: Call) -> int:
        self.calls.append(call)
        return 1


def record(exec_id: str) -> list[bytes]:
    return [b"state", b"CANCELLED", b"admitted_ms", b"7", b"command", exec_id.encode()]


def fenced(exec_id: str, *, fence: bool = True) -> Transition:
    return Transition.settlement(
        "web-1", exec_id, [ExecState.QUEUED], ExecState.CANCELLED, reason="r", by="alice", fence=fence
    )


async def written(records: EndedRecords, transition: Transition) -> list[dict[str, Any]]:
    """The arguments of the scripts that write a record again."""
    calls = Calls()
    assert await records.write_again(cast(Runner, calls), transition) == bool(calls.calls)
    return [json.loads(str(call.command[3 + len(call.keys)])) for call in calls.calls]


@pytest.mark.parametrize(("fence", "claim"), [(True, "fence"), (False, "")])
async def test_a_remembered_record_is_written_again_with_two_events(fence: bool, claim: str) -> None:
    records = EndedRecords(60)
    records.remember("a", record("a"))
    [args] = await written(records, fenced("a", fence=fence))
    assert (args["state"], args["admitted_ms"], args["fence"], args["keep_seconds"]) == ("CANCELLED", "7", claim, 60)
    assert args["record"] == ["state", "CANCELLED", "admitted_ms", "7", "command", "a"]
    restored, cancelled = (dict(zip(event[::2], event[1::2], strict=True)) for event in args["events"])
    assert (restored["event"], restored["reason"], restored["actor"]) == ("record_restored", module.REASON, "")
    assert (cancelled["event"], cancelled["reason"], cancelled["actor"]) == ("cancelled", "r", "alice")
    assert restored["command"] == cancelled["command"] == "a"


@pytest.mark.parametrize(
    "wrong", [[], [b"state", b"\xff"], [b"command", b"x" * module.MAX_BYTES]], ids=["empty", "no-text", "long"]
)
async def test_what_is_no_record_is_not_remembered(wrong: list[bytes]) -> None:
    records = EndedRecords(60)
    records.remember("a", record("a"))
    records.remember("a", wrong)
    assert await written(records, fenced("a")) == []


async def test_only_the_latest_records_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_RECORDS", 2)
    records = EndedRecords(60)
    for name in ("a", "b", "c"):
        records.remember(name, record(name))
    assert [len(await written(records, fenced(name))) for name in ("a", "b", "c")] == [0, 1, 1]


async def test_a_record_is_forgotten_after_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KEEP_RECORDS_SECONDS", -1)
    records = EndedRecords(60)
    records.remember("a", record("a"))
    assert await written(records, fenced("a")) == []
