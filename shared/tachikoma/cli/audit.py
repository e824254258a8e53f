"""`tachikoma audit`."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from cryptography import x509
from rich.text import Text

from tachikoma.audit.chain import read_events
from tachikoma.audit.ocsf import to_ocsf
from tachikoma.audit.verification import verify_files
from tachikoma.cli.show import Output, OutputOption, as_json, clock, printable, short_id, table
from tachikoma.client.profile import Profile
from tachikoma.client.sync import Client
from tachikoma.errors import ConfigurationError, NotFound
from tachikoma.identity.bundles import TrustBundle
from tachikoma.identity.open import open_identity
from tachikoma.identity.spiffe import SpiffeId, service_id
from tachikoma.vocabulary.audit import ExecAuditLog

__all__ = ["add_to", "show_events", "trail_of"]

#: Events asked for at once.
PAGE = 1000

#: Between looks with --follow.
FOLLOW_SECONDS = 1.0

audit = typer.Typer(no_args_is_help=True, help="Read the audit trail.")


def add_to(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.add_typer(audit, name="audit")


def show_events(events: tuple[ExecAuditLog, ...]) -> None:
    """Print events as a table."""
    table(
        ("TIME", "EVENT", "ID", "AGENT", "BY", "EXIT", "COMMAND / REASON"),
        [
            (
                clock(event.time),
                Text(event.event, style="" if event.authorized else "red"),
                event.id,
                event.agent_id,
                short_id(event.requested_by),
                str(event.exit_code) if event.exit_code >= 0 else "-",
                " — ".join(part for part in (event.command, event.reason) if part),
            )
            for event in events
        ],
    )


@audit.command()
def tail(
    lines: Annotated[int, typer.Option("--lines", "-n", min=1, max=1000, help="How many events.")] = 20,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until Ctrl-C.")] = False,
    exec_id: Annotated[str, typer.Option("--id", help="Only of this execution.")] = "",
    output: OutputOption = Output.TEXT,
) -> None:
    """Show the latest events, oldest first."""
    show = as_json if output is Output.JSON else show_events
    with Client() as client:
        events = client.audit(limit=lines, exec_id=exec_id)
        show(events)
        cursor = events[-1].cursor if events else "0-0"
        try:
            while follow:
                time.sleep(FOLLOW_SECONDS)
                events = client.audit(after=cursor, limit=1000, exec_id=exec_id)
                if events:
                    show(events)
                    cursor = events[-1].cursor
        except KeyboardInterrupt:
            raise typer.Exit(130) from None


FileOption = Annotated[
    Path | None, typer.Option("--file", help="Read this audit log, or folder, instead of asking the orchestrator.")
]


def trail_of(file: Path | None) -> Iterator[ExecAuditLog]:
    """The whole trail, oldest first: of a file, or of the orchestrator."""
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
    exec_id: Annotated[str, typer.Argument(help="The execution.")],
    file: FileOption = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Show everything the trail says of one execution."""
    if file is None:
        with Client() as client:
            events = client.audit(limit=PAGE, exec_id=exec_id)
    else:
        events = tuple(event for event in read_events(file) if event.id == exec_id)
    if not events:
        raise NotFound(f"the audit trail says nothing of {exec_id!r}")
    if output is Output.JSON:
        as_json(events)
        return
    for number, event in enumerate(events):
        if number:
            typer.echo()
        # What repeats the event before it is left out.
        before = events[number - 1].to_dict() if number else {}
        typer.echo(f"{clock(event.time)}  {event.event}")
        for name, value in event.to_dict().items():
            said = json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else str(value)
            empty = value in ("", None, 0, False, "0s") or (name == "exitCode" and value == -1)
            if name not in ("time", "event", "cursor") and not empty and before.get(name) != value:
                typer.echo(f"  {name:<15} {printable(said)}")


@audit.command()
def verify(
    path: Annotated[Path, typer.Argument(help="The audit log, or its folder.")],
    head: Annotated[
        list[str] | None,
        typer.Option(
            help="A checkpoint that was kept elsewhere, or a file that holds some, as the orchestrator's log does."
        ),
    ] = None,
    bundle: Annotated[
        Path | None,
        typer.Option(help="Roots of its trust domain, PEM, with --writer; by default those of your identity."),
    ] = None,
    writer: Annotated[
        str, typer.Option(help="SPIFFE ID of who wrote it; by default the orchestrator of your trust domain.")
    ] = "",
    output: OutputOption = Output.TEXT,
) -> None:
    """Find what was changed, deleted, inserted or moved in an audit log; with a head, also an end that was cut off.

    Exits 1 if something is found.
    """
    trusted, signer = _trust(bundle, writer)
    report = verify_files(path, trusted, signer, _heads(head or []))
    if output is Output.JSON:
        content = {
            "lines": report.lines, "events": report.events, "checkpoints": report.checkpoints,
            "unsigned": report.unsigned, "firstSeq": report.first_seq, "lastSeq": report.last_seq,
            "head": report.head, "gaps": report.gaps, "findings": [str(finding) for finding in report.findings],
        }  # fmt: skip
        typer.echo(json.dumps(content, indent=2))
    else:
        for finding in report.findings:
            typer.echo(printable(str(finding)), err=True)
        for gap in report.gaps:
            typer.echo(f"note: {gap}", err=True)
        outcome = "is NOT as it was written" if report.findings else "holds"
        typer.echo(
            f"{path}: {outcome}: {report.events} events ({report.first_seq} to {report.last_seq}), "
            f"{report.checkpoints} checkpoints, {report.unsigned} events after the last"
        )
    if report.findings:
        raise typer.Exit(1)


def _trust(bundle: Path | None, writer: str) -> tuple[TrustBundle, SpiffeId]:
    """What checkpoints are verified with."""
    try:
        signer = SpiffeId.parse(writer) if writer else None
        if bundle is not None:
            if signer is None:
                raise ConfigurationError("--bundle needs --writer, the SPIFFE ID of who wrote the log")
            roots = x509.load_pem_x509_certificates(bundle.read_bytes())
            return TrustBundle(signer.trust_domain, roots), signer
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"cannot verify with {bundle or writer}: {error}") from error
    source = open_identity(Profile.load().identity)
    identity = source.current()
    source.close()
    return identity.bundle, signer or service_id(identity.spiffe_id.trust_domain, "orchestrator")


def _heads(given: list[str]) -> list[str]:
    """Signed checkpoints, given as they are or in files that hold them."""
    found: list[str] = []
    for item in given:
        if item.count(".") == 2 and item.startswith("eyJ"):
            found.append(item)
            continue
        try:
            text = Path(item).read_text(encoding="utf-8", errors="replace")
        except OSError as error:
            raise ConfigurationError(f"{item[:80]!r} is no checkpoint and no file: {error.strerror}") from error
        # Whatever the log looks like, a compact JWS stands out of it.
        tokens = re.findall(r"eyJ[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+", text)
        if not tokens:
            raise ConfigurationError(f"{item} holds no checkpoint")
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
        Format, typer.Option("--format", help="jsonl as it is; ocsf for a SIEM (OCSF 1.3.0).")
    ] = Format.JSONL,
    after: Annotated[int, typer.Option(min=0, help="Begin after the event of this number.")] = 0,
) -> None:
    """Write the trail to standard output, one JSON object a line, oldest first."""
    last = 0
    for event in trail_of(file):
        # What has no number belongs to the event before it.
        wanted = event.seq > after or (not event.seq and last >= after)
        last = event.seq or last
        if wanted:
            content = to_ocsf(event) if form is Format.OCSF else event.to_dict()
            sys.stdout.write(json.dumps(content, ensure_ascii=False) + "\n")
