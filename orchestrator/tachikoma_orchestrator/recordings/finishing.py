"""Finishing: from the parts of a recording to its asciicast, its text for searches, and its signed seal."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from shlex import join
from typing import BinaryIO, cast

from tachikoma.identity.signed_messages import RecordingSeal
from tachikoma.identity.signing import sign
from tachikoma.identity.svid import Svid
from tachikoma.sessions.asciicast import EXIT, INPUT, OUTPUT, RESIZE, CastEvent, CastHeader, encode_event
from tachikoma.vocabulary.clock import micros_as_ms, whole_seconds_of_ms
from tachikoma.vocabulary.results import ExecResponse
from tachikoma_orchestrator.recordings.parts import Event, Origin, Output, is_output, numbered, read_lines
from tachikoma_orchestrator.recordings.search import ScreenText
from tachikoma_orchestrator.recordings.store import FileKind, RecordingStore
from tachikoma_orchestrator.recordings.timeline import Timeline, first_size

__all__ = ["finish"]

#: Size of a terminal that no caller had: columns and rows.
DEFAULT_SIZE = (80, 24)


class _Digest:
    """A file that is written, with its size and digest."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._sha256 = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes) -> int:
        self._sha256.update(data)
        self.size += len(data)
        return self._file.write(data)

    @property
    def sha256(self) -> str:
        return self._sha256.hexdigest()


@dataclass(frozen=True, slots=True)
class _Written:
    """The facts that were found while the files were written."""

    duration_us: int
    missing_bytes: int
    #: SHA-256 of standard output, and at True of standard error.
    digests: dict[bool, str]


def finish(
    store: RecordingStore, exec_id: str, result: ExecResponse | None, svid: Svid, *, problem: str = ""
) -> RecordingSeal | None:
    """Make the finished recording of an execution, and remove its parts. It can be repeated after a failure.

    Args:
        store: of the recordings.
        exec_id: the execution.
        result: as its agent signed it; None if it is unknown.
        svid: signs the seal.
        problem: why output may be missing, if that is known; empty if it is not.

    Returns:
        The seal; None if no output was recorded, nor that any should be.

    Raises:
        StoreFailed: it could not be read or written.
    """
    origin, events = _read_events(store, exec_id)
    if origin is None:
        store.remove_parts(exec_id)
        return None
    written, text, recording = _write_files(store, exec_id, origin, events, result)
    seal = RecordingSeal(
        iss=str(svid.spiffe_id), iat=int(time.time()), jti=exec_id, agent=origin.agent, sub=origin.requested_by,
        policy=origin.policy, request=origin.request,
        began_ms=micros_as_ms(origin.began_us), duration_us=written.duration_us,
        size=recording.size, sha256=recording.sha256, text_sha256=text.sha256,
        exit_code=-1 if result is None else result.exit_code,
        problem=_problem(written, result, problem), has_input=origin.includes_input,
    )  # fmt: skip
    with store.create(exec_id, FileKind.SEAL) as file:
        file.write(sign(svid, seal).encode())
    store.remove_parts(exec_id)
    return seal


def _write_files(
    store: RecordingStore, exec_id: str, origin: Origin, events: list[Event], result: ExecResponse | None
) -> tuple[_Written, _Digest, _Digest]:
    """Write the text and the asciicast of a recording; return what was found, and the digests of both."""
    with ExitStack() as files:
        text = _Digest(files.enter_context(store.create(exec_id, FileKind.TEXT)))
        recording = _Digest(files.enter_context(store.create(exec_id, FileKind.CAST)))
        names = [name for name in store.parts(exec_id) if is_output(name)]
        parts = [files.enter_context(closing(store.read_part(exec_id, name))) for name in names]
        outputs = numbered(read_lines(part) for part in parts)
        return _Writer(origin, events, text, recording).write(outputs, events, result), text, recording


def _problem(written: _Written, result: ExecResponse | None, known: str) -> str:
    """Return why a recording does not contain all output; empty if the digests of the agent's receipt match it."""
    if known:
        return known
    if written.missing_bytes:
        return f"{written.missing_bytes} bytes of output are missing"
    if result is None:
        return "the result of the execution is unknown"
    for summary, is_error in ((result.stdout_summary, False), (result.stderr_summary, True)):
        if summary.sha256 and summary.sha256 != written.digests[is_error]:
            return "the output differs from the one that its agent signed for"
    return ""


def _read_events(store: RecordingStore, exec_id: str) -> tuple[Origin | None, list[Event]]:
    """Return the origin of a recording, None without one, and the events of its callers in the order of their places.

    The earliest origin counts.
    """
    origins: list[Origin] = []
    events: list[Event] = []
    for name in store.parts(exec_id):
        with closing(store.read_part(exec_id, name)) as file:
            for line in read_lines(file):
                if isinstance(line, Event):
                    events.append(line)
                elif isinstance(line, Origin):
                    origins.append(line)
                    # The rest of the part is output, which may be long.
                    break
    events.sort(key=lambda event: (event.offset, event.time_us))
    return min(origins, key=lambda origin: origin.began_us, default=None), events


class _Writer:
    """Writes the two files of a recording while its output is read once."""

    def __init__(self, origin: Origin, events: list[Event], text: _Digest, recording: _Digest) -> None:
        columns, rows = first_size(events) or DEFAULT_SIZE
        header = CastHeader(
            columns,
            rows,
            timestamp=whole_seconds_of_ms(micros_as_ms(origin.began_us)),
            command=join(origin.request.command),
        )
        self._recording = recording
        self._line(header.encode())
        self._screen = ScreenText(cast(BinaryIO, text), rows, columns)
        self._timeline = Timeline(origin.began_us)
        self._digests = {False: hashlib.sha256(), True: hashlib.sha256()}
        self._latest_us = 0

    def write(self, outputs: Iterable[Output], events: list[Event], result: ExecResponse | None) -> _Written:
        """Write everything."""
        missing = 0
        for event, data in self._timeline.events(self._digested(outputs), events):
            if event.code == OUTPUT:
                self._screen.feed(event.at_us, data)
            elif event.code == RESIZE:
                columns, _, rows = event.data.partition("x")
                self._screen.resize(int(rows), int(columns))
            elif self._timeline.missing_bytes > missing:
                missing = self._timeline.missing_bytes
                self._screen.skip()
            self._add(event)
        if result is not None:
            total = result.stdout_summary.total_bytes + result.stderr_summary.total_bytes
            if total > self._timeline.offset:
                self._add(self._timeline.gap(total - self._timeline.offset))
            self._add(CastEvent(self._timeline.now_us, EXIT, str(result.exit_code)))
        self._screen.look()
        digests = {is_error: digest.hexdigest() for is_error, digest in self._digests.items()}
        return _Written(self._timeline.now_us, self._timeline.missing_bytes, digests)

    def _digested(self, outputs: Iterable[Output]) -> Iterator[Output]:
        for output in outputs:
            self._digests[output.is_error].update(output.data)
            yield output

    def _add(self, event: CastEvent) -> None:
        if event.code in (INPUT, OUTPUT) and not event.data:
            # A character has begun, and ends in the next chunk; or the input was recorded before.
            return
        self._line(encode_event(event, self._latest_us))
        self._latest_us = event.at_us

    def _line(self, text: str) -> None:
        self._recording.write(text.encode(errors="replace") + b"\n")
