"""The timeline of a recording: output and events in one order, with the times of an asciicast."""

from __future__ import annotations

import base64
import codecs
from collections.abc import Iterable, Iterator, Sequence

from tachikoma.sessions.asciicast import INPUT, MARKER, OUTPUT, RESIZE, CastEvent
from tachikoma_orchestrator.recordings.parts import Event, Output

__all__ = ["Timeline", "first_size"]


class Timeline:
    """Turns output and events into events of an asciicast.

    An event is placed before the first chunk that begins at or after its place in the output. So a change of size is
    where the program saw it. Times come from two clocks, the agent's and the orchestrator's. They never go back, and an
    event is not later than the output that follows it.
    """

    def __init__(self, began_us: int) -> None:
        """Begin at a time, in microseconds since the epoch."""
        self._began_us = began_us
        self._now_us = 0
        self._decoders = {is_error: _decoder() for is_error in (False, True)}
        self._input_decoder = _decoder()
        #: Number of input bytes until the end of the latest input.
        self._input_end = 0
        #: Bytes of output that are missing.
        self.missing_bytes = 0
        #: Number of output bytes, those that are missing included.
        self.offset = 0

    def events(self, outputs: Iterable[Output], events: Sequence[Event]) -> Iterator[tuple[CastEvent, bytes]]:
        """Yield the events of the recording, each with the bytes of output that it is made from.

        Args:
            outputs: in their order, each once.
            events: in the order of their places.
        """
        waiting = list(reversed(events))
        for output in outputs:
            while waiting and waiting[-1].offset <= output.offset:
                yield self._event(waiting.pop(), output.time_us), b""
            if output.offset > self.offset:
                yield self.gap(output.offset - self.offset, output.time_us), b""
            self.offset = output.offset + len(output.data)
            text = self._decoders[output.is_error].decode(output.data)
            yield CastEvent(self._at(output.time_us), OUTPUT, text), output.data
        while waiting:
            yield self._event(waiting.pop(), None), b""

    def gap(self, missing: int, time_us: int | None = None) -> CastEvent:
        """Return the marker of missing output, and count it."""
        self.missing_bytes += missing
        self.offset += missing
        # A character that has begun ends in the missing part.
        self._decoders = {is_error: _decoder() for is_error in (False, True)}
        at_us = self._now_us if time_us is None else self._at(time_us)
        return CastEvent(at_us, MARKER, f"{missing} bytes of output are missing here")

    @property
    def now_us(self) -> int:
        """Time of the latest event, in microseconds from the beginning."""
        return self._now_us

    def _event(self, event: Event, next_us: int | None) -> CastEvent:
        time_us = event.time_us if next_us is None else min(event.time_us, next_us)
        data = self._typed(event) if event.code == INPUT else event.data
        return CastEvent(self._at(time_us), event.code, data)

    def _typed(self, event: Event) -> str:
        """Return the input of an event, without the bytes that an earlier connection already recorded."""
        data = base64.b64decode(event.data)[max(0, self._input_end - event.place) :]
        self._input_end += len(data)
        return self._input_decoder.decode(data)

    def _at(self, time_us: int) -> int:
        self._now_us = max(self._now_us, time_us - self._began_us)
        return self._now_us


def _decoder() -> codecs.IncrementalDecoder:
    return codecs.getincrementaldecoder("utf-8")("replace")


def first_size(events: Sequence[Event]) -> tuple[int, int] | None:
    """Return columns and rows of the terminal before any output; None if no event has them."""
    for event in events:
        if event.code == RESIZE and event.offset == 0:
            columns, _, rows = event.data.partition("x")
            return int(columns), int(rows)
    return None
