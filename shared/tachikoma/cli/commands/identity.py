"""`tachikoma identity`: your identity and its renewal, whom you trust, and what rotating the root would break."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from cryptography import x509

from tachikoma.cli.commands.certificates import ca
from tachikoma.cli.documents import (
    AgentUnderBundle,
    CertificateFacts,
    IdentityCheck,
    IdentityFacts,
    OwnIdentity,
    RenewedIdentity,
)
from tachikoma.cli.output import Output, OutputOption, WideOption, show_value
from tachikoma.cli.show import age, clock, warn
from tachikoma.cli.tables import Cell, Column, printable, table
from tachikoma.client.profile import Profile
from tachikoma.client.sync import Client
from tachikoma.diagnosis.identity import is_overdue
from tachikoma.errors import ConfigurationError
from tachikoma.identity.bundles import TrustBundle
from tachikoma.identity.certificates import key_digest
from tachikoma.identity.file_source import FileSvidSource
from tachikoma.identity.join_token import Joined
from tachikoma.identity.open import ENDPOINT_VARIABLE, open_identity
from tachikoma.identity.renewal import HALF
from tachikoma.identity.spiffe import InvalidIdentity
from tachikoma.identity.svid import Svid
from tachikoma.vocabulary.agents import AgentInfo

__all__ = ["identity"]

identity = typer.Typer(
    no_args_is_help=True, help="Show your identity, whom you trust, and what rotating the root would break."
)

identity.add_typer(ca, name="ca")

#: Characters of a key's digest that are shown.
DIGEST_CHARACTERS = 12

IdentityOption = Annotated[
    str | None,
    typer.Option(
        "--identity",
        help=f"Folder, or unix:///path of the Workload API; by default that of the profile, then {ENDPOINT_VARIABLE}.",
    ),
]


def _open(place: str | None) -> tuple[str, Svid]:
    """Return the source of the identity, and the identity."""
    chosen: str | Path | None = place
    if place is None:
        try:
            chosen = Profile.load().identity
        except ConfigurationError:
            # Without a profile the Workload API is used, whose error names what is missing.
            chosen = None
    source = open_identity(chosen)
    try:
        return source.place, source.current()
    finally:
        source.close()


def _left(end: datetime) -> str:
    return age(end) if end > datetime.now(UTC) else "EXPIRED"


@identity.command()
def show(place: IdentityOption = None, output: OutputOption = Output.TEXT) -> None:
    """Show your identity, whom you trust, and when each certificate expires. Exits 1 if the identity cannot be used."""
    source, svid = _open(place)
    problem = ""
    try:
        svid.verify()
    except InvalidIdentity as error:
        problem = str(error)
    show_value(_identity_content(source, svid, problem), output, text=lambda _: _show_identity(source, svid, problem))
    if problem:
        raise typer.Exit(1)


def _show_identity(source: str, svid: Svid, problem: str) -> None:
    for line in _identity_lines(source, svid):
        typer.echo(line)
    if problem:
        warn(f"tachikoma: this identity cannot be used: {problem}")


def _identity_content(source: str, svid: Svid, problem: str) -> IdentityFacts:
    return IdentityFacts(
        spiffe_id=str(svid.spiffe_id),
        source=source,
        usable=not problem,
        problem=problem,
        expires=svid.not_after,
        chain=tuple(map(_certificate_content, svid.chain)),
        bundles={bundle.trust_domain: tuple(map(_certificate_content, bundle.roots)) for bundle in svid.bundles},
    )


def _certificate_content(certificate: x509.Certificate) -> CertificateFacts:
    return CertificateFacts(
        subject=certificate.subject.rfc4514_string(),
        serial=f"{certificate.serial_number:x}",
        not_before=certificate.not_valid_before_utc,
        not_after=certificate.not_valid_after_utc,
        key=key_digest(certificate),
    )


def _identity_lines(source: str, svid: Svid) -> Iterator[str]:
    yield f"you are  {svid.spiffe_id}"
    yield f"source   {source}"
    for certificate in svid.chain:
        begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        name = printable(certificate.subject.rfc4514_string())
        yield f"chain    {clock(begin)} to {clock(end)}, ends {_left(end)}  {name}"
    for bundle in svid.bundles:
        for root in bundle.roots:
            name, end = f"{bundle.trust_domain}: root {_short(key_digest(root))}", root.not_valid_after_utc
            yield f"trusts   {name} until {clock(end)}, ends {_left(end)}"


def _short(digest: str) -> str:
    return digest[:DIGEST_CHARACTERS]


@dataclass(frozen=True)
class AgentCheck:
    """An agent under a planned bundle."""

    agent: AgentInfo
    #: Why the agent would be refused; empty if it would be accepted.
    problem: str
    #: Digests of planned roots that the agent does not trust, in their order.
    missing: tuple[str, ...]

    @classmethod
    def of(cls, agent: AgentInfo, planned: TrustBundle) -> AgentCheck:
        """Check an agent by the last report of its identity."""
        roots = {key_digest(root) for root in planned.roots}
        known = set(agent.trust.bundle) if agent.trust else set()
        return cls(agent, _problem(agent, roots), tuple(sorted(roots - known)))

    def content(self) -> AgentUnderBundle:
        """Return the check for JSON."""
        trust = self.agent.trust
        return AgentUnderBundle(
            id=self.agent.id,
            online=self.agent.online,
            expires=trust.expires if trust else None,
            root=trust.root if trust else "",
            problem=self.problem,
            roots_not_trusted=self.missing,
        )

    def row(self) -> tuple[str | Cell, ...]:
        """Return the check as a row of the table."""
        trust = self.agent.trust
        return (
            self.agent.id,
            Cell("online", "green") if self.agent.online else Cell("offline", "red"),
            clock(trust.expires if trust else None),
            _short(trust.root) if trust else "-",
            self.problem or ACCEPTED,
        )


ACCEPTED = "would be accepted"


def _problem(agent: AgentInfo, roots: set[str]) -> str:
    """Return why an agent would be refused by verifiers with these roots, or nothing."""
    trust = agent.trust
    if trust is None:
        return "does not report its certificate; upgrade it"
    if trust.expires <= datetime.now(UTC):
        return f"its certificate expired at {clock(trust.expires)}"
    if not trust.root:
        return "its certificate is not trusted by its own bundle"
    if trust.root not in roots:
        return f"its certificate is signed under root {_short(trust.root)}, which is not in the bundle"
    return ""


@identity.command()
def renew(
    place: Annotated[
        Path | None, typer.Option("--identity", help="Folder of the identity; by default the profile's.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Renew even if half of its lifetime is not over.")] = False,
    output: OutputOption = Output.TEXT,
) -> None:
    """Renew an identity that came with a token, if half of its lifetime is over; for a timer.

    Other commands renew the identity that they use automatically.
    """
    folder = place or Profile.load().identity
    if not isinstance(folder, Path):
        raise ConfigurationError("the identity is not in a folder; the Workload API renews it")
    if Joined.load(folder) is None:
        raise ConfigurationError(f"the identity in {folder} did not come with a token; its source renews it")
    # Imported here: the other commands do not need it.
    from tachikoma.client.membership.renewal import renew_if_due

    new = asyncio.run(renew_if_due(folder, part=1.0 if force else HALF))
    svid = new or FileSvidSource(folder).current()
    facts = RenewedIdentity(
        folder=str(folder), spiffe_id=str(svid.spiffe_id), expires=svid.not_after, renewed=new is not None
    )
    show_value(facts, output, name=lambda facts: facts.spiffe_id, text=_show_renewed)


def _show_renewed(facts: RenewedIdentity) -> None:
    state = "renewed" if facts.renewed else "not due"
    typer.echo(f"{facts.folder}: {facts.spiffe_id} {state}, until {clock(facts.expires)}")


@identity.command()
def check(
    planned: Annotated[
        Path | None,
        typer.Option("--bundle", help="Planned roots of your trust domain, PEM; by default the active ones."),
    ] = None,
    place: IdentityOption = None,
    wide: WideOption = False,
    output: OutputOption = Output.TEXT,
) -> None:
    """Show which agents would be refused under a planned bundle, and whether you would be.

    Exits 1 if any would be. For an agent that is offline, its last report is used.
    """
    _, svid = _open(place)
    bundle = svid.bundle if planned is None else _read_bundle(planned, svid.bundle.trust_domain)
    own_problem = _own_problem(svid, bundle)
    with Client() as client:
        checks = [AgentCheck.of(agent, bundle) for agent in client.agents() if not agent.revoked]
    failing = bool(own_problem) or any(check.problem for check in checks)
    content = IdentityCheck(
        ok=not failing,
        you=OwnIdentity(spiffe_id=str(svid.spiffe_id), problem=own_problem),
        agents=tuple(check.content() for check in checks),
    )
    show_value(content, output, text=lambda _: _show_checks(svid, own_problem, checks, wide))
    if failing:
        raise typer.Exit(1)


def _read_bundle(path: Path, trust_domain: str) -> TrustBundle:
    try:
        return TrustBundle(trust_domain, x509.load_pem_x509_certificates(path.read_bytes()))
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"cannot read the bundle {path}: {error}") from error


def _own_problem(svid: Svid, bundle: TrustBundle) -> str:
    """Return why this identity would be refused, or that its renewal is overdue; empty if neither."""
    try:
        bundle.verify(svid.chain[0], list(svid.chain[1:]))
    except InvalidIdentity as error:
        return str(error)
    if is_overdue(svid):
        return f"ends {_left(svid.not_after)} and should have been renewed"
    return ""


#: Columns of `check`; the last ones to be left out have the smallest numbers.
CHECK_COLUMNS = (
    Column("WHO"),
    Column("STATE", 1),
    Column("EXPIRES", 2),
    Column("ROOT", 3),
    Column("WITH THIS BUNDLE", elastic=True),
)


def _show_checks(svid: Svid, own_problem: str, checks: Sequence[AgentCheck], wide: bool) -> None:
    own: tuple[str | Cell, ...] = ("you", "-", clock(svid.not_after), "", own_problem or ACCEPTED)
    table(CHECK_COLUMNS, [own, *(check.row() for check in checks)], wide=wide)
    for check in checks:
        if check.missing:
            roots = ", ".join(map(_short, check.missing))
            warn(f"{check.agent.id} does not trust root {roots} yet, and refuses orders signed under it")
