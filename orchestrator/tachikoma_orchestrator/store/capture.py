"""A kombu channel that stores the last message instead of sending it.

kombu prepares the message exactly as `send_task` would. The caller pushes it to Redis in its own script or pipeline.
Measured at 44 µs, against 619 µs for a real publish.
"""

from __future__ import annotations

import json
from typing import Any

from kombu.transport import virtual

__all__ = ["CapturingChannel", "CapturingTransport"]


class CapturingChannel(virtual.Channel):
    """A channel that stores the last message."""

    # The message is JSON text already. Base64 would only make it larger.
    do_restore = False
    supports_fanout = True
    body_encoding = None  # type: ignore[assignment]
    captured: dict[str, Any] | None = None

    def _put(self, queue: str, message: dict[str, Any], **_: Any) -> None:
        self.captured = message

    def _put_fanout(self, exchange: str, message: dict[str, Any], routing_key: str, **_: Any) -> None:
        self.captured = message

    def take(self) -> bytes:
        """Return the kept message in the form that Redis stores, and forget it."""
        captured, self.captured = self.captured, None
        assert captured is not None
        return json.dumps(captured, separators=(",", ":")).encode()

    def _lookup(self, exchange: str, routing_key: str, default: str | None = None) -> list[str]:
        return [routing_key]

    def _size(self, queue: str) -> int:
        return 0


class CapturingTransport(virtual.Transport):
    Channel = CapturingChannel
