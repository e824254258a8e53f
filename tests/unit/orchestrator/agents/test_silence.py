"""How long an agent may be silent, and be without the result of an execution, before the execution is lost."""

from __future__ import annotations

from datetime import timedelta

import pytest

from tachikoma.streams.heartbeat import LEASE_SECONDS, Heartbeat
from tachikoma_orchestrator.agents import silence as module
from tachikoma_orchestrator.agents.registry import AgentState
from tachikoma_orchestrator.agents.silence import RESULT_SECONDS, Silence

LEASE = 45.0


class Clock:
    """A monotonic clock that tests set."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def monotonic(self) -> float:
        return self.seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def agent(*, online: bool = True, boot: str = "boot", holds: tuple[str, ...] | None = ()) -> AgentState:
    heartbeat = Heartbeat(
        boot=boot, run="run", version="1", hostname="host", running=0, slots=1, load=0, memory_used=0, disk_used=0,
        executions=holds,
    )  # fmt: skip
    return AgentState(heartbeat, 0, online)


def test_a_silent_agent_loses_its_executions_after_the_rest_of_its_lease(clock: Clock) -> None:
    silence = Silence(timedelta(seconds=LEASE))
    clock.seconds += LEASE
    assert silence.lost("web-1", "boot", agent(online=False)) == ""
    # Redis forgets a heartbeat after its own lease, which counts.
    clock.seconds += LEASE - LEASE_SECONDS - 1
    assert silence.lost("web-1", "boot", agent(online=False)) == ""
    clock.seconds += 1
    assert silence.lost("web-1", "boot", agent(online=False)) == f"its agent sent no heartbeat for {LEASE:.0f} s"


def test_a_heartbeat_ends_the_silence(clock: Clock) -> None:
    silence = Silence(timedelta(seconds=LEASE))
    silence.lost("web-1", "boot", agent(online=False))
    clock.seconds += LEASE
    silence.hear({"web-1": agent(), "web-2": agent(online=False)})
    assert silence.lost("web-1", "boot", agent(online=False)) == ""


def test_the_silence_of_an_agent_without_executions_is_forgotten(clock: Clock) -> None:
    """Nobody looks whether it is online again."""
    silence = Silence(timedelta(seconds=LEASE))
    silence.lost("web-1", "boot", agent(online=False))
    clock.seconds += LEASE
    silence.keep((), ())
    assert silence.lost("web-1", "boot", agent(online=False)) == ""


def test_a_claim_that_is_found_in_the_silence_is_a_sign_of_life(clock: Clock) -> None:
    silence = Silence(timedelta(seconds=LEASE))
    away = agent(online=False)
    assert silence.lost("web-1", "boot", away, claimed="old") == ""
    clock.seconds += LEASE
    # A worker that was stopped runs again, and its heartbeat comes after its claim.
    assert silence.lost("web-1", "boot", away, claimed="new") == ""
    assert silence.lost("web-1", "boot", away, claimed="old") != ""
    assert silence.lost("web-1", "boot", away) != ""
    silence.keep({"new"}, {"web-1"})
    assert silence.lost("web-1", "boot", away, claimed="new") != ""
    # Its entry was removed when it ended.
    assert silence.lost("web-1", "boot", away, claimed="old") == ""


def test_an_interruption_gives_every_agent_a_full_lease(clock: Clock) -> None:
    silence = Silence(timedelta(seconds=LEASE))
    silence.lost("web-1", "boot", None)
    clock.seconds += 10 * LEASE
    assert silence.lost("web-1", "boot", None) == "its agent is unknown"
    silence.restart_leases()
    silence.forget_agents()
    clock.seconds += LEASE - 1
    assert silence.lost("web-1", "boot", None) == ""
    assert silence.lost("web-1", "boot", agent(boot="other")) == ""


def test_an_agent_that_lost_its_journal_loses_what_the_journal_claimed(clock: Clock) -> None:
    silence = Silence(timedelta(seconds=LEASE))
    clock.seconds += LEASE
    assert silence.lost("web-1", "boot", agent(boot="other")) == (
        "its agent lost its journal, so the result is unknown"
    )
    assert silence.lost("web-1", "boot", agent()) == ""
    assert silence.lost("web-1", "", agent(boot="other")) == ""


@pytest.mark.parametrize(("has_result", "words"), [(True, "is not accepted"), (False, "is gone")])
def test_an_execution_that_its_agent_no_longer_holds_is_given_up_after_several_heartbeats(
    clock: Clock, has_result: bool, words: str
) -> None:
    silence = Silence(timedelta(seconds=LEASE))
    assert silence.without_result("job-7", agent(), has_result=has_result) == ""
    clock.seconds += RESULT_SECONDS - 1
    assert silence.without_result("job-7", agent(), has_result=has_result) == ""
    clock.seconds += 1
    assert silence.without_result("job-7", agent(), has_result=has_result) == (
        f"its agent no longer holds it, and its result in Redis {words}"
    )


@pytest.mark.parametrize("state", [None, agent(online=False), agent(holds=("job-7",)), agent(holds=None)])
def test_an_agent_that_may_hold_an_execution_is_waited_for(clock: Clock, state: AgentState | None) -> None:
    silence = Silence(timedelta(seconds=LEASE))
    silence.without_result("job-7", agent(), has_result=False)
    clock.seconds += RESULT_SECONDS
    assert silence.without_result("job-7", state, has_result=False) == ""
    # Its time begins again.
    assert silence.without_result("job-7", agent(), has_result=False) == ""


def test_an_execution_that_ended_is_forgotten(clock: Clock) -> None:
    silence = Silence(timedelta(seconds=LEASE))
    for exec_id in ("open", "ended"):
        silence.without_result(exec_id, agent(), has_result=False)
    silence.keep({"open"}, {"web-1"})
    clock.seconds += RESULT_SECONDS
    assert silence.without_result("open", agent(), has_result=False) != ""
    assert silence.without_result("ended", agent(), has_result=False) == ""
