"""`tachikoma doctor`: problems of a part on this host, or of your own access, and their remedies."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Iterator, Sequence
from importlib import import_module
from importlib.metadata import version
from typing import Annotated

import typer

from tachikoma.cli.commands.parts import (
    InstalledOption,
    Part,
    diagnosis_of,
    enter_installed,
    server_diagnosis_of,
    settings_class,
)
from tachikoma.cli.output import Output, OutputOption, show_value
from tachikoma.cli.tables import printable
from tachikoma.client.profile import Profile, default_profile_path
from tachikoma.client.sync import Client
from tachikoma.config.settings import PartSettings, read_settings
from tachikoma.diagnosis.findings import Diagnosis, Finding
from tachikoma.diagnosis.identity import check_identity
from tachikoma.errors import ConfigurationError, TachikomaError
from tachikoma.vocabulary.agents import AgentInfo

__all__ = ["add_to"]

#: Longest wait for the orchestrator.
PATIENCE_SECONDS = 10.0
#: Remedy of problems of an agent.
ON_ITS_HOST = "on its host, run: sudo tachikoma doctor worker"


def add_to(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command()(doctor)


def doctor(
    part: Annotated[
        Part | None, typer.Argument(help="A part of the system, with its settings; by default your own access.")
    ] = None,
    installed: InstalledOption = False,
    output: OutputOption = Output.TEXT,
) -> None:
    """Find problems of a part on this host, and print remedies.

    The exit code is 1 if there is a finding. On a host where the part is installed, run it as root: it takes the
    settings of the part's unit and continues as the unit's user, unless this shell has settings of the part. Else run
    it as the user of the part and with its environment. Without a part it checks your profile, your identity, and the
    agents that you may see.
    """
    report = _of_client() if part is None else _of_part(part, forced=installed)
    show_value(report, output, text=_show)
    if report.findings:
        raise typer.Exit(1)


def _of_client() -> Diagnosis:
    return Diagnosis(
        part="client",
        version=version("tachikoma-exec"),
        hostname=platform.node(),
        findings=tuple(_diagnose_client()),
    )


def _of_part(part: Part, *, forced: bool) -> Diagnosis:
    # The parts log what the findings say, by default to standard output.
    import_module("tachikoma.config.logs").configure("error")
    unit = enter_installed(part, forced=forced)
    findings, unchecked = list[Finding](), list[str]()
    settings: PartSettings | None = None
    try:
        settings = read_settings(settings_class(part), part)
    except ConfigurationError as error:
        advice = f"run: tachikoma config show {part}; docs/settings.md"
        findings.append(Finding(where="settings", what=str(error), remedy=advice))
    if settings is not None and (diagnose_server := server_diagnosis_of(part)) is not None:
        try:
            findings += diagnose_server(settings)
        except TachikomaError as error:
            unchecked.append(f"settings, users and memory of Redis: {error}")
    if unit is not None:
        unit.become()
    if settings is not None:
        findings += diagnosis_of(part)(settings)
    return Diagnosis(
        part=part.value,
        version=version("tachikoma-exec"),
        hostname=platform.node(),
        settings="environment" if unit is None else str(unit),
        unchecked=tuple(unchecked),
        findings=tuple(findings),
    )


def _diagnose_client() -> Iterator[Finding]:
    path = default_profile_path()
    try:
        profile = Profile.load()
    except ConfigurationError as error:
        yield Finding(where=str(path), what=str(error), remedy="ask an operator for a profile")
        return
    identity = list(check_identity(profile.identity, f"identity in {path}"))
    yield from identity
    try:
        with Client(profile, patience=PATIENCE_SECONDS) as client:
            agents = client.agents()
    except TachikomaError as error:
        yield Finding(
            where=profile.address,
            what=f"the orchestrator gives no answer: {error}",
            remedy="check your identity first"
            if identity
            else "ask an operator to run there: sudo tachikoma doctor orchestrator",
        )
        return
    for agent in agents:
        yield from _check_agent(agent)
    yield from _check_versions(agents)


def _check_agent(agent: AgentInfo) -> Iterator[Finding]:
    if agent.revoked:
        return
    if not agent.online:
        yield Finding(where=agent.id, what="the agent is offline", remedy=ON_ITS_HOST)
        return
    for warning in agent.warnings:
        yield Finding(where=agent.id, what=warning, remedy=ON_ITS_HOST)


def _check_versions(agents: Sequence[AgentInfo]) -> Iterator[Finding]:
    """Compare the versions of the agents that are online with that of this program."""
    own = version("tachikoma-exec")
    found = Counter(agent.version for agent in agents if agent.online and agent.version not in ("", own))
    for other, number in sorted(found.items()):
        yield Finding(
            where="versions",
            what=f"{number} {'agent runs' if number == 1 else 'agents run'} version {other}, and this program is {own}",
            remedy="update the older ones: see docs/deployment.md; tachikoma agents -o json has the version of each",
        )


def _show(report: Diagnosis) -> None:
    for finding in report.findings:
        typer.echo(printable(f"{finding.where}: {finding.what}"))
        typer.echo(printable(f"  {finding.remedy}"))
    number = len(report.findings)
    summary = "nothing is wrong" if number == 0 else "1 finding" if number == 1 else f"{number} findings"
    for sentence in report.unchecked:
        typer.echo(printable(f"not checked: {sentence}"))
    origin = f", settings of {report.settings}" if report.settings else ""
    typer.echo(printable(f"{report.part} on {report.hostname}, version {report.version}{origin}: {summary}"))
