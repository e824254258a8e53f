"""The states of an execution."""

from __future__ import annotations

from tachikoma.vocabulary.states import ExecState


def test_open_states_are_three_and_all_others_are_for_ever() -> None:
    open_states = {state for state in ExecState if not state.terminal}
    assert open_states == {ExecState.PENDING_APPROVAL, ExecState.QUEUED, ExecState.STARTED}
