"""The two ways in which an order is not carried out: the agent refuses it, or its program cannot be executed."""

from __future__ import annotations

__all__ = ["CannotExecute", "Refused"]


class Refused(Exception):
    """The agent does not run the order; the message says why. Nothing was started."""


class CannotExecute(Exception):
    """The program does not exist or may not be executed. The exit code is the one that shells use."""

    def __init__(self, exit_code: int, message: str) -> None:
        """Keep 127 for a program that was not found, or 126 for one that cannot be executed."""
        super().__init__(message)
        self.exit_code = exit_code
