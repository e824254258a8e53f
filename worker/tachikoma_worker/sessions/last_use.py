"""The times of a session's last input and last detachment. A file contains them for the worker that continues it."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from pathlib import Path

import structlog

__all__ = ["LastUse"]

log = structlog.get_logger(__name__)

#: Shortest time between two writes of the file, in seconds. A killed worker may lose as much.
SAVE_SECONDS = 5.0


def now() -> float:
    """Return the time in seconds by the clock that measures idle sessions. All processes of a host share it."""
    return time.monotonic()


class LastUse:
    """The last input of a session, and the end of its last attachment."""

    def __init__(self, path: Path) -> None:
        """Count from now on, without a caller.

        Args:
            path: the file. It is only valid in this run of the host, as the session itself.
        """
        self._path = path
        self._input_at = now()
        #: Time since which no caller is attached; None while one is.
        self._detached_at: float | None = self._input_at
        self._saved: tuple[float, float | None] | None = None
        self._saved_at = float("-inf")

    @property
    def idle_seconds(self) -> float:
        """Seconds since the last input."""
        return now() - self._input_at

    @property
    def detached_seconds(self) -> float:
        """Seconds without an attached caller; 0 while one is attached."""
        return 0.0 if self._detached_at is None else now() - self._detached_at

    def note_input(self) -> None:
        """Record input, so that the idle time begins again."""
        self._input_at = now()

    def attach(self) -> None:
        """Stop counting the time without a caller."""
        self._detached_at = None

    def detach(self) -> None:
        """Start to count the time without a caller, unless that has begun."""
        if self._detached_at is None:
            self._detached_at = now()

    def resume(self) -> None:
        """Continue as an earlier worker left it. The attachment of a caller that it had ends now."""
        with suppress(OSError, ValueError, TypeError):
            input_at, detached_at = json.loads(self._path.read_bytes())
            self._input_at = min(float(input_at), now())
            self._detached_at = now() if detached_at is None else min(float(detached_at), now())

    def save(self) -> None:
        """Write the file if something has changed, from time to time. A disk that refuses it is only logged."""
        current = (self._input_at, self._detached_at)
        if current == self._saved or now() - self._saved_at < SAVE_SECONDS:
            return
        try:
            self._path.write_text(json.dumps(current))
        except OSError as error:
            log.warning("session.last_use_not_written", id=self._path.name, error=str(error))
        self._saved, self._saved_at = current, now()

    def remove(self) -> None:
        """Remove the file, because the session has ended."""
        with suppress(OSError):
            self._path.unlink(missing_ok=True)
