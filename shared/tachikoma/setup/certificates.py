"""Steps that create certificate authorities, and issue and renew certificates."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from tachikoma.errors import ConfigurationError
from tachikoma.identity.authority import CERTIFICATE_FILE, CertificateAuthority
from tachikoma.identity.certificates import dns_names
from tachikoma.identity.file_source import FileSvidSource
from tachikoma.identity.join_token import Joined
from tachikoma.identity.renewal import HALF, due
from tachikoma.identity.spiffe import InvalidIdentity, SpiffeId
from tachikoma.setup.steps import Host

__all__ = ["Authority", "Issued"]

#: File with the certificates of previous authorities.
RETIRED_FILE = "retired.pem"


@contextmanager
def _errors(path: Path) -> Iterator[None]:
    try:
        yield
    except InvalidIdentity as error:
        raise ConfigurationError(f"cannot create {path}: {error}") from None


@dataclass(frozen=True, slots=True)
class Authority:
    """A certificate authority: a root, or one below it, which is replaced when a third of its life is left."""

    folder: Path
    trust_domain: str
    name: str
    lifetime: timedelta
    #: Folder of the authority above; None for a root.
    under: Path | None = None
    owner: str = ""

    def pending(self, host: Host) -> str:
        """Compare the authority with the plan."""
        kind = "root" if self.under is None else "authority"
        if not (self.folder / CERTIFICATE_FILE).is_file():
            return f"create the {kind} of {self.trust_domain} in {self.folder}"
        found = CertificateAuthority.load(self.folder)
        if found.trust_domain != self.trust_domain:
            raise ConfigurationError(f"the authority in {self.folder} is of {found.trust_domain}")
        left = found.not_after - datetime.now(UTC)
        if self.under is not None and left < self.lifetime / 3 and (self.under / CERTIFICATE_FILE).is_file():
            return f"replace the authority in {self.folder}, which ends at {found.not_after:%Y-%m-%d}"
        return ""

    def apply(self, host: Host) -> None:
        """Create the authority. Members of the previous one may renew at the new one."""
        previous = self.folder / CERTIFICATE_FILE
        retired = previous.read_bytes() if previous.is_file() else b""
        with _errors(self.folder):
            above = None if self.under is None else CertificateAuthority.load(self.under)
            CertificateAuthority.create(
                self.folder, self.trust_domain, name=self.name, lifetime=self.lifetime, under=above
            )
        if retired:
            (self.folder / RETIRED_FILE).write_bytes(retired)
        for path in (self.folder, *self.folder.iterdir()):
            host.own(path, self.owner)


@dataclass(frozen=True, slots=True)
class Issued:
    """An identity that an authority on this host issued, and that is issued again when half of its life is over."""

    folder: Path
    spiffe_id: str
    #: Folder of the authority.
    ca: Path
    #: Certificate of the root.
    root: Path
    lifetime: timedelta
    dns: tuple[str, ...] = ()
    owner: str = ""
    #: Where its owner renews it; None for an owner that does not.
    joined: Joined | None = None

    def pending(self, host: Host) -> str:
        """Compare the identity with the plan."""
        try:
            svid = FileSvidSource(self.folder).current()
            svid.verify()
        except (ConfigurationError, InvalidIdentity):
            return f"issue {self.spiffe_id} in {self.folder}"
        if (str(svid.spiffe_id), tuple(dns_names(svid.chain[0]))) != (self.spiffe_id, self.dns):
            return f"issue {self.spiffe_id} again in {self.folder}, with other names"
        if due(svid, HALF) < timedelta(0):
            return f"renew {self.spiffe_id} in {self.folder}"
        if self.joined is not None and Joined.load(self.folder) is None:
            return f"say where {self.spiffe_id} is renewed"
        return ""

    def apply(self, host: Host) -> None:
        """Issue the identity with a new key."""
        authority, roots = CertificateAuthority.load(self.ca), self.root.read_bytes()
        with _errors(self.folder):
            wanted = SpiffeId.parse(self.spiffe_id)
            issued = authority.issue(wanted, bundle_pem=roots, lifetime=self.lifetime, dns_names=self.dns)
        issued.write(self.folder)
        if self.joined is not None:
            self.joined.save(self.folder)
        for path in (self.folder, *self.folder.iterdir()):
            host.own(path, self.owner)
