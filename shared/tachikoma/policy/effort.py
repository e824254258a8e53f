"""The bound of the matching work of one decision, by count, so that it depends neither on time nor on the machine."""

from __future__ import annotations

__all__ = ["MAX_STEPS", "Effort", "TooMuchWork"]

#: Largest number of steps of one decision. A step compares one character with one position of a pattern.
MAX_STEPS = 1_000_000


class TooMuchWork(Exception):
    """The matching work of a decision exceeds its bound, so the request is denied."""


class Effort:
    """The steps that are left to one decision; all policies share them."""

    __slots__ = ("left",)

    def __init__(self, steps: int = MAX_STEPS) -> None:
        self.left = steps

    def spend(self, steps: int) -> None:
        """Take steps.

        Raises:
            TooMuchWork: fewer steps are left.
        """
        self.left -= steps
        if self.left < 0:
            raise TooMuchWork
