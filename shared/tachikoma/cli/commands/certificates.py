"""`tachikoma identity ca`: a small certificate authority, for agents that join and for sites without SPIRE."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from tachikoma.cli.documents import AuthorityFacts, IssuedIdentity
from tachikoma.cli.output import Output, OutputOption, show_value
from tachikoma.cli.show import clock
from tachikoma.errors import ConfigurationError, InvalidRequest
from tachikoma.identity.authority import CERTIFICATE_FILE, CertificateAuthority
from tachikoma.identity.spiffe import InvalidIdentity, SpiffeId
from tachikoma.vocabulary.durations import parse_duration

__all__ = ["ca"]

ca = typer.Typer(no_args_is_help=True, help="Create a certificate authority, and identities that it signs.")

FolderArgument = Annotated[Path, typer.Argument(help="Folder of the authority.")]


@contextmanager
def _errors(cannot: str) -> Iterator[None]:
    """Report wrong values and files as errors of this CLI; `cannot` says what failed in the case of a file."""
    try:
        yield
    except (InvalidIdentity, ValueError) as error:
        raise InvalidRequest(str(error)) from None
    except OSError as error:
        raise ConfigurationError(f"{cannot}: {error}") from error


@ca.command()
def init(
    folder: FolderArgument,
    trust_domain: Annotated[str, typer.Option(help="Trust domain whose identities it signs.")],
    under: Annotated[
        Path | None, typer.Option(help="Folder of the authority that signs it; without one it is a root.")
    ] = None,
    lifetime: Annotated[str, typer.Option(help="Lifetime of its certificate.")] = "8760h",
    name: Annotated[str, typer.Option(help="Its name in certificates.")] = "",
    output: OutputOption = Output.TEXT,
) -> None:
    """Create a certificate authority.

    Guard its folder: a reader of its key can take any identity of the trust domain.
    """
    if (folder / CERTIFICATE_FILE).exists():
        raise ConfigurationError(f"there is a certificate authority in {folder}; name another folder")
    above = None if under is None else CertificateAuthority.load(under)
    name = name or ("Tachikoma root" if above is None else "Tachikoma CA")
    with _errors(f"cannot create a certificate authority in {folder}"):
        made = CertificateAuthority.create(
            folder, trust_domain, name=name, lifetime=parse_duration(lifetime), under=above
        )
    facts = AuthorityFacts(folder=str(folder), root=above is None, trust_domain=trust_domain, expires=made.not_after)
    show_value(facts, output, name=lambda facts: facts.folder, text=_show_authority)


def _show_authority(facts: AuthorityFacts) -> None:
    kind = "root" if facts.root else "intermediate"
    typer.echo(f"{facts.folder}: {kind} of {facts.trust_domain}, until {clock(facts.expires)}")


@ca.command()
def issue(
    folder: FolderArgument,
    spiffe_id: Annotated[str, typer.Argument(help="spiffe://<trust domain>/user/<name>, …/service/orchestrator, …")],
    bundle: Annotated[Path, typer.Option(help="Roots of the trust domain, PEM: ca.pem of the root.")],
    identity: Annotated[Path, typer.Option(help="Folder for key, certificate and bundle.")],
    dns: Annotated[list[str] | None, typer.Option(help="DNS name; the orchestrator's needs one.")] = None,
    lifetime: Annotated[str, typer.Option(help="Lifetime; the identity is not renewed.")] = "24h",
    output: OutputOption = Output.TEXT,
) -> None:
    """Write an identity with a new key into a folder, for a service or a person where there is no SPIRE."""
    authority = CertificateAuthority.load(folder)
    with _errors("cannot write the identity"):
        wanted = SpiffeId.parse(spiffe_id)
        if wanted.trust_domain != authority.trust_domain:
            raise InvalidIdentity(f"the authority is of {authority.trust_domain}, not of {wanted.trust_domain}")
        issued = authority.issue(
            wanted, bundle_pem=bundle.read_bytes(), lifetime=parse_duration(lifetime), dns_names=tuple(dns or ())
        )
        # An identity that its own bundle does not trust is useless, so it is not written.
        issued.verify()
        issued.write(identity)
    facts = IssuedIdentity(folder=str(identity), spiffe_id=str(wanted), expires=issued.chain[0].not_valid_after_utc)
    show_value(facts, output, name=lambda facts: facts.spiffe_id, text=_show_issued)


def _show_issued(facts: IssuedIdentity) -> None:
    typer.echo(f"{facts.folder}: {facts.spiffe_id} until {clock(facts.expires)}")
