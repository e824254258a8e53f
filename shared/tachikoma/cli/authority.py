"""`tachikoma identity ca`: a small certificate authority, for agents that join and for sites without SPIRE."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tachikoma.cli.show import clock
from tachikoma.errors import ConfigurationError, InvalidRequest
from tachikoma.identity.authority import CERTIFICATE_FILE, CertificateAuthority, new_key, private_pem
from tachikoma.identity.files import write_identity
from tachikoma.identity.spiffe import InvalidIdentity, SpiffeId
from tachikoma.identity.svid import Svid
from tachikoma.vocabulary.types import parse_duration

__all__ = ["ca"]

ca = typer.Typer(no_args_is_help=True, help="Make a certificate authority, and identities that it vouches for.")

FolderArgument = Annotated[Path, typer.Argument(help="Folder of the authority.")]


@ca.command()
def init(
    folder: FolderArgument,
    trust_domain: Annotated[str, typer.Option(help="Trust domain whose identities it vouches for.")],
    under: Annotated[
        Path | None, typer.Option(help="Folder of the authority that vouches for it; without one it is a root itself.")
    ] = None,
    lifetime: Annotated[str, typer.Option(help="How long it lasts.")] = "8760h",
    name: Annotated[str, typer.Option(help="What it is called in certificates.")] = "",
) -> None:
    """Make a certificate authority. Whoever reads its key can be anybody of the trust domain: guard the folder."""
    if (folder / CERTIFICATE_FILE).exists():
        raise ConfigurationError(f"there is a certificate authority in {folder}; name another folder")
    above = None if under is None else CertificateAuthority.load(under)
    name = name or ("Tachikoma root" if above is None else "Tachikoma CA")
    try:
        made = CertificateAuthority.create(
            folder, trust_domain, name=name, lifetime=parse_duration(lifetime), under=above
        )
    except (InvalidIdentity, ValueError) as error:
        raise InvalidRequest(str(error)) from None
    except OSError as error:
        raise ConfigurationError(f"cannot make a certificate authority in {folder}: {error}") from error
    kind = "root" if above is None else "intermediate"
    typer.echo(f"{folder}: {kind} of {trust_domain}, until {clock(made.not_after)}")


@ca.command()
def issue(
    folder: FolderArgument,
    spiffe_id: Annotated[str, typer.Argument(help="spiffe://<trust domain>/user/<name>, …/service/orchestrator, …")],
    bundle: Annotated[Path, typer.Option(help="Roots of the trust domain, PEM: ca.pem of the root.")],
    identity: Annotated[Path, typer.Option(help="Folder for key, certificate and bundle.")],
    dns: Annotated[list[str] | None, typer.Option(help="DNS name; the orchestrator's needs one.")] = None,
    lifetime: Annotated[str, typer.Option(help="How long it lasts; nobody renews it.")] = "24h",
) -> None:
    """Write an identity with a fresh key into a folder, for a service or a person where there is no SPIRE."""
    authority = CertificateAuthority.load(folder)
    try:
        wanted = SpiffeId.parse(spiffe_id)
        if wanted.trust_domain != authority.trust_domain:
            raise InvalidIdentity(f"the authority is of {authority.trust_domain}, not of {wanted.trust_domain}")
        key = new_key()
        leaf = authority.sign(key.public_key(), wanted, lifetime=parse_duration(lifetime), dns_names=tuple(dns or ()))
        # Not written where nobody would trust it.
        Svid.load(authority.chain(leaf), private_pem(key), bundle.read_bytes()).verify()
        write_identity(
            identity,
            key_pem=private_pem(key),
            certificate_pem=authority.chain(leaf),
            bundle_pem=bundle.read_bytes(),
        )
    except (InvalidIdentity, ValueError) as error:
        raise InvalidRequest(str(error)) from None
    except OSError as error:
        raise ConfigurationError(f"cannot write the identity: {error}") from error
    typer.echo(f"{identity}: {wanted} until {clock(leaf.not_valid_after_utc)}")
