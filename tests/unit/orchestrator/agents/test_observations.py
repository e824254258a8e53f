"""What one orchestrator observes about agents: their clocks, and second workers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tachikoma.identity.signing import CLOCK_SKEW_SECONDS
from tachikoma.streams.heartbeat import Contender, Heartbeat
from tachikoma.vocabulary.formats import FORMATS
from tachikoma_orchestrator.agents import observations as module
from tachikoma_orchestrator.agents.observations import CONTENDER_SECONDS, WARNING_SECONDS, Observations

NOW_MS = 1_800_000_000_000


@pytest.fixture(autouse=True)
def still(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "now_ms", lambda: NOW_MS)


def beat(ahead_seconds: float | None, run: str = "r") -> Heartbeat:
    sent_ms = None if ahead_seconds is None else NOW_MS + round(ahead_seconds * 1000)
    return Heartbeat(
        boot="b", run=run, version="1", hostname="h", running=0, slots=1, load=0, memory_used=0, disk_used=0,
        sent_ms=sent_ms,
    )  # fmt: skip


@given(st.integers(-(10**8), 10**8))
def test_a_difference_is_refused_beyond_the_bound_and_shown_before(ahead: int) -> None:
    seen = Observations()
    for _ in range(2):
        seen.heard("web-1", beat(ahead))
    assert bool(seen.obstacle("web-1")) == (abs(ahead) > CLOCK_SKEW_SECONDS)
    shown = list(seen.warnings("web-1"))
    assert bool(shown) == (abs(ahead) > WARNING_SECONDS)
    if shown:
        assert f"its clock is {abs(ahead)} s {'ahead of' if ahead > 0 else 'behind'} the orchestrator's" in shown[0]


def test_one_late_heartbeat_makes_no_clock_slow() -> None:
    seen = Observations()
    for ahead in (0.0, -90.0):
        seen.heard("web-1", beat(ahead))
        assert not seen.obstacle("web-1")
    seen.heard("web-1", beat(-90))
    assert "90 s behind" in seen.obstacle("web-1")


@given(st.floats(-(10**6), 10**6), st.floats(0, 1000))
def test_the_age_of_a_stored_heartbeat_makes_no_clock_slow(ahead: float, age: float) -> None:
    seen = Observations()
    for _ in range(2):
        seen.heard("web-1", beat(ahead), age_seconds=age)
    assert seen._difference_seconds("web-1") == pytest.approx(ahead if ahead >= 0 else min(0, ahead + age), abs=0.01)


def test_a_clock_that_was_set_right_is_no_obstacle_for_the_next_run() -> None:
    seen = Observations()
    seen.heard("web-1", beat(500))
    assert seen.obstacle("web-1")
    seen.heard("web-1", beat(0, run="r2"))
    assert not seen.obstacle("web-1")
    seen.heard("web-1", beat(500, run="r2"))
    for _ in range(2):
        seen.heard("web-1", beat(0, run="r2"))
    assert not seen.obstacle("web-1")


def test_an_agent_that_sends_no_time_has_no_difference() -> None:
    seen = Observations()
    assert not seen.obstacle("web-1")
    seen.heard("web-1", beat(500))
    seen.heard("web-1", beat(None))
    assert (seen.obstacle("web-1"), list(seen.warnings("web-1"))) == ("", [])


@pytest.mark.parametrize(
    ("formats", "words"),
    [
        ({"order": 2}, "order format 2 instead of 1"),
        ({"order": 0, "receipt": 3}, "order format 0 instead of 1, receipt format 3 instead of 1"),
        ({"heartbeat": 7}, "heartbeat format 7 instead of 1"),
        ({"claim": 2, "order": 1}, "claim format 2 instead of 1"),
    ],
)
def test_other_formats_are_an_obstacle_with_both_versions(formats: dict[str, int], words: str) -> None:
    seen = Observations()
    other = beat(0).model_copy(update={"formats": formats, "version": "9.1"})
    seen.heard("web-1", other)
    expected = f"its worker is version 9.1, with {words}; install the same version on both hosts"
    assert (seen.obstacle("web-1"), list(seen.warnings("web-1"))) == (expected, [expected])
    seen.heard("web-1", beat(0))
    assert seen.obstacle("web-1") == ""


@pytest.mark.parametrize("formats", [{}, dict(FORMATS), {**FORMATS, "another": 4}])
def test_formats_that_are_the_same_or_not_known_are_no_obstacle(formats: dict[str, int]) -> None:
    seen = Observations()
    seen.heard("web-1", beat(0).model_copy(update={"formats": formats}))
    assert seen.obstacle("web-1") == ""


def test_a_second_worker_is_shown_until_it_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    seen = Observations()
    seen.contended("web-1", Contender(boot="b2", run="r", hostname="clone", holder="web1"))
    assert list(seen.warnings("web-1")) == [
        "a second worker with its identity waits on host clone (journal b2), while the one on web1 holds its lease"
    ]
    assert list(seen.warnings("web-2")) == []
    now[0] += CONTENDER_SECONDS
    assert list(seen.warnings("web-1")) == []
