"""`tachikoma recordings` and `tachikoma play`: recordings of interactive executions."""

from __future__ import annotations

import asyncio
import io
import os
import shlex
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from tachikoma.cli import completion
from tachikoma.cli.commands.player import Pace, play
from tachikoma.cli.descriptors import write_all
from tachikoma.cli.lookup import LEAST_CHARACTERS
from tachikoma.cli.options import duration
from tachikoma.cli.output import Output, OutputOption, WatchOption, WideOption, show_list, watch
from tachikoma.cli.show import age, short_id
from tachikoma.cli.tables import Cell, Column, columns_of_terminal, printable, shortened, table
from tachikoma.cli.terminal import Modes, window_size
from tachikoma.client.sync import Client
from tachikoma.errors import InvalidRequest, NotFound, ServerError
from tachikoma.sessions.asciicast import EXIT, CastEvent, CastHeader, encode_event, read_cast
from tachikoma.vocabulary.durations import format_duration
from tachikoma.vocabulary.recordings import RecordingInfo

__all__ = ["add_to", "recordings"]

recordings = typer.Typer(no_args_is_help=True, help="List, search and export recordings of interactive executions.")

COLUMNS = (
    Column("ID", is_id=True),
    Column("AGENT", 1, elastic=True),
    Column("BY", 3, elastic=True),
    Column("AGE"),
    Column("DURATION", 2),
    Column("BYTES", 4),
    Column("STATE", 2),
    Column("COMMAND", elastic=True),
)
#: Recordings that are searched for the beginning of an id.
SEARCHED = 1000

IdArgument = Annotated[
    str,
    typer.Argument(
        help="The execution, or the beginning of its id.", metavar="ID", autocompletion=completion.recordings
    ),
]
TextOption = Annotated[str, typer.Option("--text", "-s", help="Only recordings on whose screen this text was.")]


class CastFormat(StrEnum):
    """The formats of an exported recording."""

    V3 = "v3"
    V2 = "v2"


def add_to(app: typer.Typer) -> None:
    """Add `play`."""
    app.command("play")(play_recording)


@recordings.command("ls")
def list_recordings(
    agent: Annotated[str, typer.Argument(help="Only recordings on this agent.", autocompletion=completion.agents)] = "",
    text: TextOption = "",
    by: Annotated[
        str, typer.Option(help="Only recordings of this requester: a SPIFFE ID, or what the list shows, as user/anna.")
    ] = "",
    limit: Annotated[int, typer.Option("--limit", "-l", min=1, max=1000, help="At most n recordings.")] = 50,
    wide: WideOption = False,
    again: WatchOption = False,
    output: OutputOption = Output.TEXT,
) -> None:
    """List the finished recordings that you may play, newest first; with --text, also the lines that contain it."""

    def show(form: Output) -> None:
        found = client.recordings(agent_id=agent, text=text, requested_by=by, limit=limit)
        show_list(found, form, name=lambda item: item.id, text=lambda found: _show(found, wide))

    with Client() as client:
        watch(show, output, again=again)


def _show(found: Sequence[RecordingInfo], wide: bool) -> None:
    rows = (
        (
            item.id,
            item.agent_id,
            short_id(item.requested_by),
            age(item.start_time),
            format_duration(timedelta(seconds=round(item.duration.total_seconds()))),
            str(item.size),
            Cell("complete") if item.complete else Cell("incomplete", "yellow"),
            shlex.join(item.command),
        )
        for item in found
    )
    table(COLUMNS, rows, wide=wide)
    width = None if wide else columns_of_terminal()
    for item in found:
        for match in item.matches:
            seconds = f"{match.at.total_seconds():.1f}s"
            line = f"{item.id[:8]}  {seconds:>8}  {printable(match.line)}"
            typer.echo(line if width is None else shortened(line, width))


@recordings.command()
def export(
    exec_id: IdArgument,
    file: Annotated[
        Path | None, typer.Option("--file", "-f", help="File to write; without it, standard output.")
    ] = None,
    form: Annotated[CastFormat, typer.Option("--format", help="Version of the asciicast.")] = CastFormat.V3,
) -> None:
    """Write a recording as asciicast, which `asciinema play` and its web player show."""
    with Client() as client:
        info = _find(client, exec_id)
        data: Iterable[bytes] = client.recording(info.id)
        if form is CastFormat.V2:
            data = _as_version_2(*_read(data))
        if file is None:
            for part in data:
                sys.stdout.buffer.write(part)
            return
        try:
            # Never over a file that exists: a recording is evidence.
            with file.open("xb") as target:
                for part in data:
                    target.write(part)
        except OSError as error:
            raise InvalidRequest(f"cannot write {file}: {error.strerror}") from None


def play_recording(
    exec_id: IdArgument,
    speed: Annotated[float, typer.Option(min=0.01, max=1000, help="Speed of playback; 2 is twice as fast.")] = 1.0,
    idle_limit: Annotated[
        str, typer.Option(help="Longest pause, for instance 2s; by default the original pauses.")
    ] = "",
    search: Annotated[str, typer.Option("--search", "-s", help="Start where this text is on the screen.")] = "",
    at: Annotated[str, typer.Option(help="Start at this time, for instance 1m30s.")] = "",
) -> None:
    """Play a recording of an interactive execution at this terminal.

    Ctrl-C ends it. Output before the starting point is shown at once.
    """
    idle = duration(idle_limit, "--idle-limit").total_seconds() if idle_limit else None
    begin = duration(at, "--at") if at else timedelta(0)
    with Client() as client:
        info = _find(client, exec_id, search)
        if search:
            begin = next((match.at for match in info.matches if match.at >= begin), begin)
        header, events = _read(client.recording(info.id))
        _note_size(header)
        pace = Pace(speed, idle, begin // timedelta(microseconds=1))
        modes = Modes()

        async def write(data: bytes) -> None:
            modes.feed(data)
            await write_all(1, data)

        try:
            with suppress(KeyboardInterrupt):
                asyncio.run(play(events, write, pace))
        finally:
            if os.isatty(1):
                os.write(1, modes.reset())


def _note_size(header: CastHeader) -> None:
    """Print a note if the recording does not fit the window."""
    if os.isatty(1):
        size = window_size(1)
        if header.rows > size.rows or header.columns > size.columns:
            typer.echo(
                f"recorded at {header.columns}x{header.rows}; this window is {size.columns}x{size.rows}", err=True
            )


def _find(client: Client, exec_id: str, text: str = "") -> RecordingInfo:
    """Return a recording by its id, or by the beginning of it.

    Raises:
        NotFound: no recording may be played, or none contains the text.
        InvalidRequest: several begin with the text.
    """
    found = client.recordings(exec_id=exec_id)
    if not found and len(exec_id) >= LEAST_CHARACTERS:
        found = tuple(item for item in client.recordings(limit=SEARCHED) if item.id.startswith(exec_id))
    if len(found) > 1:
        raise InvalidRequest(f"{len(found)} recordings begin with {exec_id!r}; write more of the id")
    if not found:
        raise NotFound(f"there is no finished recording of {exec_id!r} that you may play")
    if text:
        found = client.recordings(exec_id=found[0].id, text=text)
        if not found:
            raise NotFound(f"the screen of {exec_id!r} never had {text!r}")
    return found[0]


def _read(parts: Iterable[bytes]) -> tuple[CastHeader, Iterable[CastEvent]]:
    """Read a recording from the server.

    Raises:
        ServerError: the bytes are not a recording. Reading an event may raise it too.
    """
    with _readable():
        header, events = read_cast(io.BytesIO(b"".join(parts)))
    return header, _checked(events)


def _checked(events: Iterator[CastEvent]) -> Iterator[CastEvent]:
    with _readable():
        yield from events


@contextmanager
def _readable() -> Iterator[None]:
    """Turn the mistakes of a recording into errors for people."""
    try:
        yield
    except ValueError as error:
        raise ServerError(f"the server sent a recording that this client cannot read: {error}") from None


def _as_version_2(header: CastHeader, events: Iterable[CastEvent]) -> Iterable[bytes]:
    yield f"{header.encode(2)}\n".encode(errors="replace")
    for event in events:
        # Version 2 has no exit code.
        if event.code != EXIT:
            yield f"{encode_event(event)}\n".encode(errors="replace")
