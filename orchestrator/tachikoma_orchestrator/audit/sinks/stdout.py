"""Standard output as a sink: one JSON object a line."""

from __future__ import annotations

import os
from collections.abc import Sequence

from tachikoma.audit.chain import encode
from tachikoma.vocabulary.audit import ExecAuditLog
from tachikoma_orchestrator.audit.sinks.sink import SinkUnavailable

__all__ = ["StandardOutputSink"]


class StandardOutputSink:
    """Writes each event as a line."""

    name = "stdout"

    def __init__(self, descriptor: int = 1) -> None:
        self._descriptor = descriptor
        #: True if the last line was written in part.
        self._torn = False

    def send(self, events: Sequence[ExecAuditLog]) -> None:
        """Write events. Raises SinkUnavailable."""
        for number, event in enumerate(events):
            try:
                self._write(encode(event.to_dict()) + b"\n")
            except OSError as error:
                raise SinkUnavailable(f"cannot write to standard output: {error.strerror}", sent=number) from error

    def _write(self, line: bytes) -> None:
        """Write a line. If the previous line was written only in part, end that line first."""
        view = memoryview(b"\n" + line if self._torn else line)
        while view:
            view = view[os.write(self._descriptor, view) :]
            self._torn = bool(view)

    def close(self) -> None:
        """Leave standard output open: it belongs to the process."""
