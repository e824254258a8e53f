"""`tachikoma identity`."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import typer
from cryptography import x509
from rich.text import Text

from tachikoma.cli.authority import ca
from tachikoma.cli.show import Output, OutputOption, clock, printable, table
from tachikoma.client.profile import Profile
from tachikoma.client.sync import Client
from tachikoma.errors import ConfigurationError
from tachikoma.identity.bundles import TrustBundle
from tachikoma.identity.certificates import key_digest
from tachikoma.identity.open import ENDPOINT_VARIABLE, open_identity
from tachikoma.identity.spiffe import InvalidIdentity
from tachikoma.identity.svid import Svid
from tachikoma.vocabulary.agents import AgentInfo
from tachikoma.vocabulary.types import format_duration

__all__ = ["identity"]

identity = typer.Typer(
    no_args_is_help=True, help="Who one is, whom one trusts, and what a change of roots would break."
)

identity.add_typer(ca, name="ca")

#: Less than so much of its lifetime left says that a certificate was not renewed when it should have been.
OVERDUE = 1 / 4

IdentityOption = Annotated[
    str | None,
    typer.Option(
        "--identity",
        help=f"Folder, or unix:///path of the Workload API; by default the profile's, then {ENDPOINT_VARIABLE}.",
    ),
]


def _open(place: str | None) -> tuple[str, Svid]:
    """Where the identity comes from, and the identity."""
    chosen: str | Path | None = place
    if place is None:
        try:
            chosen = Profile.load().identity
        except ConfigurationError:
            # Whoever has no profile may have the Workload API; if not, what is missing is said by that.
            chosen = None
    source = open_identity(chosen)
    try:
        return source.place, source.current()
    finally:
        source.close()


def _left(end: datetime) -> str:
    left = timedelta(seconds=round((end - datetime.now(UTC)).total_seconds()))
    return f"in {format_duration(left)}" if left > timedelta(0) else "EXPIRED"


def _certificate(certificate: x509.Certificate) -> dict[str, Any]:
    return {
        "subject": certificate.subject.rfc4514_string(),
        "serial": f"{certificate.serial_number:x}",
        "notBefore": certificate.not_valid_before_utc.isoformat(),
        "notAfter": certificate.not_valid_after_utc.isoformat(),
        "key": key_digest(certificate),
    }


@identity.command()
def show(place: IdentityOption = None, output: OutputOption = Output.TEXT) -> None:
    """Say who one is, whom one trusts, and when what expires. Exits 1 if the identity cannot be used now."""
    where, svid = _open(place)
    problem = ""
    try:
        svid.verify()
    except InvalidIdentity as error:
        problem = str(error)
    if output is Output.JSON:
        content = {
            "spiffeId": str(svid.spiffe_id),
            "source": where,
            "usable": not problem,
            "problem": problem,
            "expires": svid.not_after.isoformat(),
            "chain": [_certificate(certificate) for certificate in svid.chain],
            "bundles": {bundle.trust_domain: [_certificate(root) for root in bundle.roots] for bundle in svid.bundles},
        }
        typer.echo(json.dumps(content, indent=2))
    else:
        typer.echo(f"you are  {svid.spiffe_id}")
        typer.echo(f"source   {where}")
        for certificate in svid.chain:
            begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
            name = certificate.subject.rfc4514_string()
            typer.echo(f"chain    {clock(begin)} to {clock(end)}, ends {_left(end)}  {printable(name)}")
        for bundle in svid.bundles:
            for root in bundle.roots:
                name, end = f"{bundle.trust_domain}: root {key_digest(root)[:12]}", root.not_valid_after_utc
                typer.echo(f"trusts   {name} until {clock(end)}, ends {_left(end)}")
        if problem:
            typer.echo(f"tachikoma: it cannot be used: {problem}", err=True)
    if problem:
        raise typer.Exit(1)


def _overdue(svid: Svid) -> bool:
    whole = svid.not_after - max(certificate.not_valid_before_utc for certificate in svid.chain)
    return svid.not_after - datetime.now(UTC) < whole * OVERDUE


def _finding(agent: AgentInfo, planned: TrustBundle) -> str:
    """What is wrong with an agent where a bundle is in force, or nothing."""
    trust = agent.trust
    if trust is None:
        return "does not say whose certificate it has; upgrade it"
    if trust.expires <= datetime.now(UTC):
        return f"its certificate ended at {clock(trust.expires)}"
    if not trust.root:
        return "its certificate is not trusted by its own bundle"
    if trust.root not in {key_digest(root) for root in planned.roots}:
        return f"its certificate stands on root {trust.root[:12]}, which the bundle has not"
    return ""


@identity.command()
def check(
    planned: Annotated[
        Path | None,
        typer.Option("--bundle", help="Planned roots of one's trust domain, PEM; by default those in force."),
    ] = None,
    place: IdentityOption = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Say which agents, and whether oneself, would be refused where a bundle is in force.

    Exits 1 if somebody would be. Agents that are offline count as they were last heard of.
    """
    _, svid = _open(place)
    bundle = svid.bundle
    if planned is not None:
        try:
            bundle = TrustBundle(bundle.trust_domain, x509.load_pem_x509_certificates(planned.read_bytes()))
        except (OSError, ValueError) as error:
            raise ConfigurationError(f"cannot read the bundle {planned}: {error}") from error
    mine = ""
    try:
        bundle.verify(svid.chain[0], list(svid.chain[1:]))
        if _overdue(svid):
            mine = f"ends {_left(svid.not_after)} and should have been renewed"
    except InvalidIdentity as error:
        mine = str(error)
    with Client() as client:
        agents = [agent for agent in client.agents() if not agent.revoked]
    found = {agent.id: _finding(agent, bundle) for agent in agents}
    roots = {key_digest(root) for root in bundle.roots}
    missing = {agent.id: sorted(roots - set(agent.trust.bundle if agent.trust else ())) for agent in agents}
    failing = bool(mine) or any(found.values())
    if output is Output.JSON:
        content = {
            "ok": not failing,
            "you": {"spiffeId": str(svid.spiffe_id), "problem": mine},
            "agents": [
                {
                    "id": agent.id,
                    "online": agent.online,
                    "expires": agent.trust.expires.isoformat() if agent.trust else None,
                    "root": agent.trust.root if agent.trust else "",
                    "problem": found[agent.id],
                    "rootsNotTrusted": missing[agent.id],
                }
                for agent in agents
            ],
        }
        typer.echo(json.dumps(content, indent=2))
    else:
        rows = [("you", Text("-"), clock(svid.not_after), "", mine or "would be accepted")]
        for agent in agents:
            rows.append(
                (
                    agent.id,
                    Text("online", style="green") if agent.online else Text("offline", style="red"),
                    clock(agent.trust.expires if agent.trust else None),
                    agent.trust.root[:12] if agent.trust else "-",
                    found[agent.id] or "would be accepted",
                )
            )
        table(("WHO", "STATE", "EXPIRES", "ROOT", "WITH THIS BUNDLE"), rows)
        for agent in agents:
            if missing[agent.id]:
                names = ", ".join(digest[:12] for digest in missing[agent.id])
                typer.echo(f"{agent.id} does not trust root {names} yet, and refuses orders of it", err=True)
    if failing:
        raise typer.Exit(1)
