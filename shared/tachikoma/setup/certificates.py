"""Steps that create certificate authorities, and issue and renew certificates.

The operator moves the root to offline storage. So its certificates are stored in a file, from which every identity
gets its bundle, and a second root is never created beside that file or beside an authority.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from tachikoma.errors import ConfigurationError
from tachikoma.identity.authority import CERTIFICATE_FILE, KEY_FILE, RETIRED_FILE, CertificateAuthority
from tachikoma.identity.certificates import dns_names
from tachikoma.identity.file_source import FileSvidSource
from tachikoma.identity.join_token import Joined
from tachikoma.identity.renewal import HALF, due
from tachikoma.identity.spiffe import InvalidIdentity, SpiffeId
from tachikoma.setup.steps import Host, replace_file

__all__ = ["Authority", "Issued", "Root"]

#: Folders in that of an authority: its next key and certificate, complete, and those that are being created.
_NEXT, _PARTIAL = ".next", ".next.partial"
#: Part of an authority's life that is left when it is replaced.
THIRD = 1 / 3


@contextmanager
def _errors(path: Path) -> Iterator[None]:
    try:
        yield
    except InvalidIdentity as error:
        raise ConfigurationError(f"cannot create {path}: {error}") from None


def _certificates(path: Path) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(path.read_bytes())
    except ValueError as error:
        raise ConfigurationError(f"{path} does not contain certificates: {error}") from None


def _own_all(folder: Path, owner: str, host: Host) -> None:
    for path in (folder, *folder.iterdir()):
        host.own(path, owner)


def _owned_all(folder: Path, owner: str, host: Host) -> bool:
    return all(host.owned(path, owner) for path in (folder, *folder.iterdir()))


@dataclass(frozen=True, slots=True)
class Root:
    """The root of the trust domain, and the file with its certificate, which stays when the root is moved away."""

    folder: Path
    #: File with the certificates of all trusted roots. The operator adds one to change the root.
    stored: Path
    trust_domain: str
    lifetime: timedelta
    #: Folder of the authority below it.
    below: Path

    def pending(self, host: Host) -> str:
        """Compare the root with the plan. A root that is not on this host is complete if its certificate is stored."""
        certificate = self.folder / CERTIFICATE_FILE
        if certificate.is_file():
            if not self.stored.is_file():
                return f"store the certificate of the root in {self.stored}"
            if _certificates(certificate)[0] not in _certificates(self.stored):
                raise ConfigurationError(
                    f"the root in {self.folder} is not in {self.stored}: remove it, and put back the root of this "
                    f"installation; or add its certificate to {self.stored} to trust both"
                )
            return ""
        if self.stored.is_file():
            return ""
        if (self.below / CERTIFICATE_FILE).is_file():
            raise ConfigurationError(
                f"there is an authority in {self.below}, but no certificate of its root: copy the ca.pem of the root, "
                f"without its key, to {self.stored}"
            )
        return f"create the root of {self.trust_domain} in {self.folder}"

    def apply(self, host: Host) -> None:
        """Create the root if there is none, and store its certificate."""
        if not (self.folder / CERTIFICATE_FILE).is_file():
            with _errors(self.folder):
                CertificateAuthority.create(
                    self.folder, self.trust_domain, name="Tachikoma root", lifetime=self.lifetime
                )
        root = _certificates(self.folder / CERTIFICATE_FILE)[0].public_bytes(Encoding.PEM).decode()
        replace_file(self.stored, root, 0o644, "", host)


@dataclass(frozen=True, slots=True)
class Authority:
    """An authority below the root, which is replaced when a third of its life is left and the root's key is here."""

    folder: Path
    trust_domain: str
    lifetime: timedelta
    #: Folder of the root.
    under: Path
    owner: str = ""

    @property
    def _has_root(self) -> bool:
        return all((self.under / name).is_file() for name in (CERTIFICATE_FILE, KEY_FILE))

    def pending(self, host: Host) -> str:
        """Compare the authority with the plan."""
        if (self.folder / _NEXT).is_dir():
            return f"complete the authority in {self.folder}"
        if not (self.folder / CERTIFICATE_FILE).is_file():
            return f"create the authority of {self.trust_domain} in {self.folder}"
        found = CertificateAuthority.load(self.folder)
        if found.trust_domain != self.trust_domain:
            raise ConfigurationError(f"the authority in {self.folder} is of {found.trust_domain}")
        if self._is_due(found):
            return f"replace the authority in {self.folder}, which ends at {found.not_after:%Y-%m-%d}"
        return "" if _owned_all(self.folder, self.owner, host) else f"correct the owner of {self.folder}"

    def _due(self, found: CertificateAuthority) -> datetime:
        """Return the time from which on the authority is replaced."""
        return found.not_after - self.lifetime * THIRD

    def _is_due(self, found: CertificateAuthority) -> bool:
        return self._has_root and datetime.now(UTC) > self._due(found)

    def waits_for_root(self) -> str:
        """Return what the operator has to do if the replacement is due and needs the root; else an empty text."""
        found = CertificateAuthority.load(self.folder)
        if self._has_root or datetime.now(UTC) < self._due(found):
            return ""
        return f"put the root back to {self.under} and run `tachikoma setup` before {self._end(found)}"

    def advice(self) -> str:
        """Return what to do with a root that is on this host; empty if it is not."""
        found = CertificateAuthority.load(self.folder)
        if not self._has_root:
            return ""
        return (
            f"move {self.under} to offline storage; put it back there and run `tachikoma setup` after "
            f"{self._due(found):%Y-%m-%d}, before {self._end(found)}"
        )

    def _end(self, found: CertificateAuthority) -> str:
        return f"the authority in {self.folder} ends at {found.not_after:%Y-%m-%d}"

    def apply(self, host: Host) -> None:
        """Create the authority. Members of the previous one may renew at the new one.

        Key and certificate are first written beside the previous ones, with their owner. So neither a crash nor an
        orchestrator that reads them meanwhile finds halves that do not belong together for longer than two renames.
        """
        following, exists = self.folder / _NEXT, (self.folder / CERTIFICATE_FILE).is_file()
        if not following.is_dir() and (not exists or self._is_due(CertificateAuthority.load(self.folder))):
            self._prepare(host)
        if following.is_dir():
            for name in (RETIRED_FILE, KEY_FILE, CERTIFICATE_FILE):
                if (following / name).is_file():
                    (following / name).replace(self.folder / name)
            following.rmdir()
        _own_all(self.folder, self.owner, host)

    def _prepare(self, host: Host) -> None:
        if not self._has_root:
            raise ConfigurationError(
                f"there is no authority in {self.folder}, and no root to create one: put the root back to {self.under}"
            )
        partial, previous = self.folder / _PARTIAL, self.folder / CERTIFICATE_FILE
        shutil.rmtree(partial, ignore_errors=True)
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with _errors(self.folder):
            above = CertificateAuthority.load(self.under)
            CertificateAuthority.create(
                partial, self.trust_domain, name="Tachikoma CA", lifetime=self.lifetime, under=above
            )
        if previous.is_file():
            (partial / RETIRED_FILE).write_bytes(previous.read_bytes())
        _own_all(partial, self.owner, host)
        partial.rename(self.folder / _NEXT)


@dataclass(frozen=True, slots=True)
class Issued:
    """An identity that an authority on this host issued, and that is issued again when half of its life is over."""

    folder: Path
    spiffe_id: str
    #: Folder of the authority.
    ca: Path
    #: File with the certificates of the trusted roots.
    roots: Path
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
        if self.roots.is_file() and set(svid.bundle.roots) != set(_certificates(self.roots)):
            return f"issue {self.spiffe_id} again in {self.folder}, with the roots of {self.roots}"
        if due(svid, HALF) < timedelta(0):
            return f"renew {self.spiffe_id} in {self.folder}"
        if self.joined is not None and Joined.load(self.folder) is None:
            return f"say where {self.spiffe_id} is renewed"
        return "" if _owned_all(self.folder, self.owner, host) else f"correct the owner of {self.folder}"

    def apply(self, host: Host) -> None:
        """Issue the identity with a new key.

        Raises:
            ConfigurationError: the stored roots would not trust it; the previous identity stays.
        """
        authority, roots = CertificateAuthority.load(self.ca), self.roots.read_bytes()
        with _errors(self.folder):
            wanted = SpiffeId.parse(self.spiffe_id)
            issued = authority.issue(wanted, bundle_pem=roots, lifetime=self.lifetime, dns_names=self.dns)
            issued.verify()
        issued.write(self.folder)
        if self.joined is not None:
            self.joined.save(self.folder)
        _own_all(self.folder, self.owner, host)
