"""The interface of a sink.

The methods of a sink block, and are called in a thread, one at a time. A sink that cannot take all events reports how
many it took; the shipper sends the others again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from tachikoma.vocabulary.audit import ExecAuditLog

__all__ = ["Sink", "SinkUnavailable"]


class SinkUnavailable(Exception):
    """A sink does not take events now; the message gives the reason.

    Attributes:
        sent: number of the given events that it took before.
    """

    def __init__(self, message: str, *, sent: int = 0) -> None:
        super().__init__(message)
        self.sent = sent


class Sink(Protocol):
    """A receiver of events, in order."""

    #: Shown to people; the sink's position is stored under this name.
    name: str

    def send(self, events: Sequence[ExecAuditLog]) -> None:
        """Take events. Raises SinkUnavailable."""

    def close(self) -> None:
        """Release descriptors and connections."""
