"""The final states that an orchestrator remembers."""

from __future__ import annotations

from tachikoma.vocabulary.states import ExecState
from tachikoma_orchestrator.executions.settled import KEEP_SECONDS, Settled
from tachikoma_orchestrator.executions.transitions import Transition


def change(exec_id: str, target: ExecState = ExecState.CANCELLED) -> Transition:
    return Transition.settlement("web-1", exec_id, [ExecState.QUEUED], target, reason="r", fence=True)


def test_the_last_change_of_each_execution_is_remembered_in_order() -> None:
    settled = Settled()
    changes = [change("a"), change("b"), change("a", ExecState.EXPIRED)]
    for each in changes:
        settled.remember(each)
    assert list(settled) == changes[1:]


def test_only_the_latest_changes_are_remembered() -> None:
    settled = Settled(most=3)
    for number in range(10):
        settled.remember(change(str(number)))
    assert [each.exec_id for each in settled] == ["7", "8", "9"]


def test_a_change_is_forgotten_after_its_time() -> None:
    settled, short = Settled(), Settled(keep_seconds=-1)
    for each in (settled, short):
        each.remember(change("old"))
    assert ([each.exec_id for each in settled], list(short)) == (["old"], [])
    assert KEEP_SECONDS == 24 * 3600
