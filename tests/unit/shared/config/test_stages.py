from __future__ import annotations

import asyncio
import json
from contextvars import ContextVar
from pathlib import Path

import pytest

from tachikoma.config import stages
from tachikoma.config.stages import Span, Stage
from tachikoma.errors import ConfigurationError


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> list[Span]:
    """The spans of this test, whose observers end with it."""
    found: list[Span] = []
    monkeypatch.setattr(stages, "_observers", [found.append])
    # Tests share a context, so one could continue the measurement of another.
    monkeypatch.setattr(stages, "_measured", ContextVar("measured", default=None))
    return found


async def test_stages_of_an_execution_follow_each_other_without_a_gap(spans: list[Span]) -> None:
    stages.begin(since_ns=5)
    stages.identify("one")
    stages.passed(Stage.READ)
    stages.passed(Stage.DECIDE)
    first, second = spans
    assert (first.exec_id, first.stage, first.begin_ns) == ("one", Stage.READ, 5)
    assert (second.exec_id, second.stage, second.begin_ns) == ("one", Stage.DECIDE, first.end_ns)
    assert first.begin_ns < first.end_ns <= second.end_ns


async def test_each_task_measures_its_own_execution(spans: list[Span]) -> None:
    async def execution(name: str) -> None:
        stages.begin(name)
        await asyncio.sleep(0)
        stages.passed(Stage.VERIFY)
        await asyncio.sleep(0)
        stages.passed(Stage.CLAIM)

    await asyncio.gather(execution("one"), execution("two"))
    for name in ("one", "two"):
        own = [span for span in spans if span.exec_id == name]
        assert [span.stage for span in own] == [Stage.VERIFY, Stage.CLAIM]
        assert own[0].end_ns == own[1].begin_ns


async def test_a_later_step_continues_the_measurement_of_its_caller_or_begins_one(spans: list[Span]) -> None:
    stages.begin(since_ns=5)
    stages.begin_unless_begun("one")
    stages.passed(Stage.DECIDE)
    stages.begin_unless_begun("one")
    stages.passed(Stage.SIGN)
    # A task that works on one execution after another.
    stages.begin_unless_begun("two")
    stages.passed(Stage.DECIDE)
    first, second, third = spans
    assert (first.exec_id, first.begin_ns) == ("one", 5)
    assert (second.exec_id, second.begin_ns) == ("one", first.end_ns)
    assert third.exec_id == "two"
    assert third.begin_ns >= second.end_ns


async def test_a_task_that_began_no_execution_measures_nothing(spans: list[Span]) -> None:
    stages.identify("one")
    stages.passed(Stage.READ)
    assert spans == []


async def test_without_an_observer_nothing_is_measured(spans: list[Span], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "_observers", [])
    stages.begin("one")
    late: list[Span] = []
    stages.observe(late.append)
    stages.passed(Stage.READ)
    assert late == spans == []


async def test_stages_are_lines_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "_observers", [])
    path = tmp_path / "stages.jsonl"
    stages.write_to(path)
    stages.begin("one")
    stages.passed(Stage.READ)
    stages.passed(Stage.ANSWER)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line["exec_id"], line["stage"]) for line in lines] == [("one", "read"), ("one", "answer")]
    assert all(line["begin_ns"] <= line["end_ns"] for line in lines)


def test_a_file_that_cannot_be_written_is_a_mistake_of_the_settings(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"cannot write the stages of executions to .*: No such file"):
        stages.write_to(tmp_path / "missing" / "stages.jsonl")
