"""`tachikoma audit`: the audit trail, from the orchestrator or from its files."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from cryptography import x509

from tachikoma.audit.chain import read_events
from tachikoma.audit.ocsf import to_ocsf
from tachikoma.audit.verification import Report, verify_files
from tachikoma.cli import completion
from tachikoma.cli.documents import AuditReport
from tachikoma.cli.lookup import with_full_id
from tachikoma.cli.output import INTERRUPTED, Output, OutputOption, WideOption, show_list, show_value
from tachikoma.cli.show import clock, short_id, warn
from tachikoma.cli.tables import Cell, Column, printable, table
from tachikoma.client.profile import Profile
from tachikoma.client.sync import Client
from tachikoma.errors import ConfigurationError, NotFound
from tachikoma.identity.bundles import TrustBundle
from tachikoma.identity.open import open_identity
from tachikoma.identity.spiffe import SpiffeId, service_id
from tachikoma.vocabulary.audit import ExecAuditLog

__all__ = ["FileOption", "add_to", "show_events", "trail_of"]

#: Events of one request to the orchestrator, its largest page.
PAGE = 1000

#: Between two requests for new events with --follow, in seconds.
FOLLOW_SECONDS = 1.0

audit = typer.Typer(no_args_is_help=True, help="Read, verify and export the audit trail.")


def add_to(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.add_typer(audit, name="audit")


#: Columns of the list; the last ones to be left out have the smallest numbers.
COLUMNS = (
    Column("TIME"),
    Column("EVENT"),
    Column("ID", 1, is_id=True),
    Column("AGENT", 2, elastic=True),
    Column("BY", 4, elastic=True),
    Column("EXIT", 3),
    Column("COMMAND / REASON", 1, elastic=True),
)


def show_events(events: Sequence[ExecAuditLog], *, wide: bool = False) -> None:
    """Print events as a table."""
    rows = (
        (
            clock(event.time),
            Cell(event.event, "" if event.authorized else "red"),
            event.id,
            event.agent_id,
            short_id(event.requested_by),
            str(event.exit_code) if event.exit_code >= 0 else "-",
            " — ".join(part for part in (event.command, event.reason) if part),
        )
        for event in events
    )
    table(COLUMNS, rows, wide=wide)


@audit.command()
def tail(
    lines: Annotated[int, typer.Option("--lines", "-n", min=1, max=1000, help="Number of events.")] = 20,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Show new events until Ctrl-C.")] = False,
    exec_id: Annotated[
        str, typer.Option("--id", help="Only events of this execution.", autocompletion=completion.executions)
    ] = "",
    wide: WideOption = False,
    output: OutputOption = Output.TEXT,
) -> None:
    """Show the latest events, oldest first. With --follow, -o json prints one object per line."""
    form = Output.JSONL if follow and output is Output.JSON else output

    def show(events: Sequence[ExecAuditLog]) -> None:
        show_list(events, form, name=lambda event: event.id, text=lambda events: show_events(events, wide=wide))
        sys.stdout.flush()

    with Client() as client:
        # With an id, the new events of all executions are read: a search would pass over the same ones each time.
        latest = client.audit(limit=1) if follow and exec_id else ()
        exec_id, events = _events_of(client, exec_id, lines)
        show(events)
        shown = {event.cursor for event in events}
        cursor = next((event.cursor for event in (*latest, *reversed(events))), "0-0")
        try:
            while follow:
                time.sleep(FOLLOW_SECONDS)
                events = client.audit(after=cursor, limit=PAGE)
                cursor = events[-1].cursor if events else cursor
                new = [event for event in events if event.cursor not in shown and (not exec_id or event.id == exec_id)]
                if new:
                    show(tuple(new))
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None


def _events_of(client: Client, exec_id: str, limit: int) -> tuple[str, Sequence[ExecAuditLog]]:
    """Return the whole id of an execution, and its latest events; without an id, those of all executions.

    An id with events is whole: a refused request has events and is no execution.
    """
    events = client.audit(limit=limit, exec_id=exec_id)
    if exec_id and not events:
        with suppress(NotFound):
            exec_id = with_full_id(client, exec_id, client.status).id
            events = client.audit(limit=limit, exec_id=exec_id)
    return exec_id, events


FileOption = Annotated[
    Path | None, typer.Option("--file", help="Read this audit log, or folder, instead of asking the orchestrator.")
]


def trail_of(file: Path | None) -> Iterator[ExecAuditLog]:
    """Yield the whole trail, oldest first.

    Args:
        file: an audit log or its folder; None to ask the orchestrator.
    """
    if file is not None:
        yield from read_events(file)
        return
    with Client() as client:
        cursor = "0-0"
        while events := client.audit(after=cursor, limit=PAGE):
            yield from events
            cursor = events[-1].cursor


@audit.command()
def show(
    exec_id: Annotated[str, typer.Argument(help="The execution.", autocompletion=completion.executions)],
    file: FileOption = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Show all events of one execution in full."""
    if file is None:
        with Client() as client:
            exec_id, events = _events_of(client, exec_id, PAGE)
    else:
        events = tuple(event for event in read_events(file) if event.id == exec_id)
    if not events:
        raise NotFound(f"the audit trail has no event of {exec_id!r}")
    show_list(events, output, name=lambda event: event.id, text=_show_in_full)


def _show_in_full(events: Sequence[ExecAuditLog]) -> None:
    before: dict[str, Any] = {}
    for event in events:
        if before:
            typer.echo()
        content = event.to_dict()
        _show_event(event, content, before)
        before = content


def _show_event(event: ExecAuditLog, content: dict[str, Any], before: dict[str, Any]) -> None:
    """Print one event, without values that are empty or repeat the event before."""
    typer.echo(f"{clock(event.time)}  {event.event}")
    for name, value in content.items():
        text = json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else str(value)
        empty = value in ("", None, 0, False, "0s") or (name == "exitCode" and value == -1)
        if name not in ("time", "event", "cursor") and not empty and before.get(name) != value:
            typer.echo(f"  {name:<15} {printable(text)}")


@audit.command()
def verify(
    path: Annotated[Path, typer.Argument(help="The audit log, or its folder.")],
    head: Annotated[
        list[str] | None,
        typer.Option(help="A checkpoint that was stored elsewhere, or a file with some, as the orchestrator's log."),
    ] = None,
    bundle: Annotated[
        Path | None,
        typer.Option(help="Roots of the writer's trust domain, PEM, with --writer; by default your identity's."),
    ] = None,
    writer: Annotated[
        str, typer.Option(help="SPIFFE ID of the writer; by default the orchestrator of your trust domain.")
    ] = "",
    output: OutputOption = Output.TEXT,
) -> None:
    """Find changed, deleted, inserted and moved lines of an audit log; with --head, also a missing end.

    Exits 1 if something is found.
    """
    trusted, signer = _trust(bundle, writer)
    report = verify_files(path, trusted, signer, _heads(head or []))
    show_value(_report_content(report), output, text=lambda _: _show_report(path, report))
    if report.findings:
        raise typer.Exit(1)


def _report_content(report: Report) -> AuditReport:
    return AuditReport(
        lines=report.lines, events=report.events, checkpoints=report.checkpoints,
        unsigned=report.unsigned, first_seq=report.first_seq, last_seq=report.last_seq,
        head=report.head, gaps=tuple(report.gaps), findings=tuple(map(str, report.findings)),
    )  # fmt: skip


def _show_report(path: Path, report: Report) -> None:
    for finding in report.findings:
        warn(printable(str(finding)))
    for gap in report.gaps:
        warn(f"note: {gap}")
    outcome = "was ALTERED" if report.findings else "is unaltered"
    typer.echo(
        f"{path}: {outcome}: {_count(report.events, 'event')} ({report.first_seq} to {report.last_seq}), "
        f"{_count(report.checkpoints, 'checkpoint')}, {_count(report.unsigned, 'event')} after the last checkpoint"
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _trust(bundle: Path | None, writer: str) -> tuple[TrustBundle, SpiffeId]:
    """Return the roots and the signer that checkpoints are verified with."""
    try:
        signer = SpiffeId.parse(writer) if writer else None
        if bundle is not None:
            if signer is None:
                raise ConfigurationError("--bundle needs --writer, the SPIFFE ID of the log's writer")
            roots = x509.load_pem_x509_certificates(bundle.read_bytes())
            return TrustBundle(signer.trust_domain, roots), signer
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"cannot verify with {bundle or writer}: {error}") from error
    source = open_identity(Profile.load().identity)
    identity = source.current()
    source.close()
    return identity.bundle, signer or service_id(identity.spiffe_id.trust_domain, "orchestrator")


def _heads(given: list[str]) -> list[str]:
    """Read signed checkpoints, given as such or as files that contain some.

    Raises:
        ConfigurationError: a value is neither.
    """
    found: list[str] = []
    for item in given:
        if item.count(".") == 2 and item.startswith("eyJ"):
            found.append(item)
            continue
        try:
            text = Path(item).read_text(encoding="utf-8", errors="replace")
        except OSError as error:
            raise ConfigurationError(f"{item[:80]!r} is no checkpoint and no file: {error.strerror}") from error
        # A compact JWS is recognized in a log of any format.
        tokens = re.findall(r"eyJ[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+", text)
        if not tokens:
            raise ConfigurationError(f"{item} contains no checkpoint")
        found += tokens
    return found


class Format(StrEnum):
    """Values of `--format`."""

    JSONL = "jsonl"
    OCSF = "ocsf"


@audit.command()
def export(
    file: FileOption = None,
    form: Annotated[
        Format, typer.Option("--format", help="jsonl: as in the audit log; ocsf: OCSF 1.3.0, for a SIEM.")
    ] = Format.JSONL,
    after: Annotated[int, typer.Option(min=0, help="Begin after the event with this number.")] = 0,
    output: OutputOption = Output.TEXT,
) -> None:
    """Write the trail to standard output, oldest first: one JSON object per line, or ids with `-o name`."""
    last = 0
    for event in trail_of(file):
        # An event without a number belongs to the event before it.
        wanted = event.seq > after or (not event.seq and last >= after)
        last = event.seq or last
        if wanted and output is Output.NAME:
            sys.stdout.write(f"{event.id}\n")
        elif wanted:
            content = to_ocsf(event) if form is Format.OCSF else event.to_dict()
            sys.stdout.write(json.dumps(content, ensure_ascii=False) + "\n")
