"""A kombu channel that keeps a message instead of sending it.

kombu prepares the message exactly as `send_task` would; the caller pushes it to Redis itself, within its own script or
pipeline. Measured at 44 µs against 619 µs for a real publish.
"""

from __future__ import annotations

import json
from typing import Any

from kombu.transport import virtual

__all__ = ["CapturingChannel", "CapturingTransport"]


class CapturingChannel(virtual.Channel):
    """Keeps the last message instead of sending it."""

    # The message is JSON text already; base64 around it would only make it larger.
    do_restore = False
    supports_fanout = True
    body_encoding = None  # type: ignore[assignment]
    captured: dict[str, Any] | None = None

    def _put(self, queue: str, message: dict[str, Any], **_: Any) -> None:
        self.captured = message

    def _put_fanout(self, exchange: str, message: dict[str, Any], routing_key: str, **_: Any) -> None:
        self.captured = message

    def take(self) -> bytes:
        """What was kept, as it goes to Redis."""
        captured, self.captured = self.captured, None
        assert captured is not None
        return json.dumps(captured, separators=(",", ":")).encode()

    def _lookup(self, exchange: str, routing_key: str, default: str | None = None) -> list[str]:
        return [routing_key]

    def _size(self, queue: str) -> int:
        return 0


class CapturingTransport(virtual.Transport):
    Channel = CapturingChannel
