"""The bound of the matching work of one decision."""

from __future__ import annotations

import pytest

from tachikoma.policy.effort import Effort, TooMuchWork


def test_all_steps_can_be_spent_and_no_more() -> None:
    effort = Effort(3)
    effort.spend(2)
    effort.spend(1)
    with pytest.raises(TooMuchWork):
        effort.spend(1)


def test_what_was_spent_in_vain_stays_spent() -> None:
    """Otherwise a caller that catches the error could go on with small steps."""
    effort = Effort(3)
    for _ in range(2):
        with pytest.raises(TooMuchWork):
            effort.spend(10)
