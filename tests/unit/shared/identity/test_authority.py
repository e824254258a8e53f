"""The certificate authority of one trust domain."""

from __future__ import annotations

import datetime as dt
import stat
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from typer.testing import CliRunner

from tachikoma.cli.commands.certificates import ca
from tachikoma.errors import ConfigurationError
from tachikoma.identity.authority import (
    BACKDATE,
    CertificateAuthority,
    check_request,
    issued_at,
    make_request,
    new_key,
    private_pem,
)
from tachikoma.identity.bundles import TrustBundle
from tachikoma.identity.certificates import dns_names
from tachikoma.identity.file_source import FileSvidSource
from tachikoma.identity.spiffe import InvalidIdentity, agent_id

DOMAIN = "tachikoma.local"
WEB = agent_id(DOMAIN, "web-1")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> CertificateAuthority:
    folder = tmp_path_factory.mktemp("root")
    return CertificateAuthority.create(folder, DOMAIN, name="Root", lifetime=timedelta(days=9))


def test_an_authority_under_another_is_trusted_through_it(root: CertificateAuthority, tmp_path: Path) -> None:
    CertificateAuthority.create(tmp_path, DOMAIN, name="Agents", lifetime=timedelta(days=99), under=root)
    below = CertificateAuthority.load(tmp_path)
    assert below.not_after <= root.not_after
    leaf = below.sign(new_key().public_key(), WEB, lifetime=timedelta(days=999))
    assert leaf.not_valid_after_utc <= root.not_after
    chain = x509.load_pem_x509_certificates(below.chain(leaf))
    assert chain == [leaf, below.certificate]
    assert TrustBundle(DOMAIN, [root.certificate]).verify(chain[0], chain[1:]) == WEB
    assert below.issued(leaf)
    assert not root.issued(leaf)
    # And one below that is not, however it was made.
    lower = CertificateAuthority.create(tmp_path / "b", DOMAIN, name="x", lifetime=timedelta(days=1), under=below)
    lowest = x509.load_pem_x509_certificates(lower.chain(lower.sign(new_key().public_key(), WEB, lifetime=BACKDATE)))
    assert len(lowest) == 3
    with pytest.raises(InvalidIdentity):
        TrustBundle(DOMAIN, [root.certificate]).verify(lowest[0], lowest[1:])


def test_an_issued_identity_is_written_with_the_bundle_that_it_is_given(
    root: CertificateAuthority, tmp_path: Path
) -> None:
    bundle = root.certificate.public_bytes(Encoding.PEM)
    issued = root.issue(WEB, bundle_pem=bundle, lifetime=timedelta(hours=1), dns_names=("web-1.example",))
    issued.verify()
    issued.write(tmp_path / "a")
    stored = FileSvidSource(tmp_path / "a").current()
    assert (stored.spiffe_id, stored.key_pem) == (WEB, issued.key_pem)
    assert dns_names(stored.chain[0]) == ["web-1.example"]
    assert root.issue(WEB, bundle_pem=bundle, lifetime=timedelta(hours=1)).key_pem != issued.key_pem
    another = CertificateAuthority.create(tmp_path / "b", DOMAIN, name="x", lifetime=timedelta(days=1))
    with pytest.raises(InvalidIdentity):
        another.issue(WEB, bundle_pem=bundle, lifetime=timedelta(hours=1)).verify()
    with pytest.raises(InvalidIdentity, match="bundle"):
        another.issue(WEB, bundle_pem=b"none", lifetime=timedelta(hours=1))


def test_a_key_that_everybody_can_read_is_not_used(tmp_path: Path) -> None:
    CertificateAuthority.create(tmp_path, DOMAIN, name="x", lifetime=timedelta(days=1))
    assert stat.S_IMODE((tmp_path / "ca_key.pem").stat().st_mode) == 0o600
    (tmp_path / "ca_key.pem").chmod(0o644)
    with pytest.raises(ConfigurationError, match="chmod"):
        CertificateAuthority.load(tmp_path)


def test_what_is_no_authority_says_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="ca init"):
        CertificateAuthority.load(tmp_path)
    CertificateAuthority.create(tmp_path, DOMAIN, name="x", lifetime=timedelta(days=1))
    (tmp_path / "ca_key.pem").write_bytes(private_pem(new_key()))
    with pytest.raises(ConfigurationError, match="do not belong together"):
        CertificateAuthority.load(tmp_path)


def test_the_command_line_makes_authorities_and_identities(tmp_path: Path) -> None:
    def run(*arguments: str) -> int:
        return CliRunner().invoke(ca, [str(part) for part in arguments]).exit_code

    top, below, out = str(tmp_path / "top"), str(tmp_path / "below"), str(tmp_path / "out")
    assert run("init", top, "--trust-domain", DOMAIN) == 0
    assert run("init", top, "--trust-domain", DOMAIN) != 0
    assert run("init", below, "--trust-domain", "other.example", "--under", top) != 0
    assert run("init", below, "--trust-domain", DOMAIN, "--under", top, "--lifetime", "24h") == 0
    identity = ("--bundle", f"{top}/ca.pem", "--identity", out)
    assert run("issue", below, "spiffe://other.example/user/alice", *identity) != 0
    assert run("issue", below, f"spiffe://{DOMAIN}/service/orchestrator", *identity, "--dns", "orch.example") == 0
    svid = FileSvidSource(tmp_path / "out").current()
    svid.verify()
    assert dns_names(svid.chain[0]) == ["orch.example"]


def test_a_request_gives_its_key_and_nothing_else(root: CertificateAuthority) -> None:
    key = new_key()
    assert check_request(make_request(key, WEB), WEB) == key.public_key()
    with pytest.raises(InvalidIdentity, match="asks for something else than the ID"):
        check_request(make_request(key, WEB), agent_id(DOMAIN, "web-2"))
    for wrong in (b"", b"x", make_request(key, WEB)[:-1]):
        with pytest.raises(InvalidIdentity, match="certificate request"):
            check_request(wrong, WEB)
    with pytest.raises(InvalidIdentity, match="at most 8192 are allowed"):
        check_request(b"x" * 8193, WEB)


def test_a_request_that_was_changed_is_refused() -> None:
    request = bytearray(make_request(new_key(), WEB))
    request[-1] ^= 1
    with pytest.raises(InvalidIdentity, match="is not signed with its key"):
        check_request(bytes(request), WEB)


@pytest.mark.parametrize("seconds", [1, 300, 600, 3600, 86400])
def test_the_time_of_issue_is_known_from_a_certificate(root: CertificateAuthority, seconds: int) -> None:
    before = dt.datetime.now(dt.UTC)
    leaf = root.sign(new_key().public_key(), WEB, lifetime=timedelta(seconds=seconds))
    assert abs(issued_at(leaf) - before) < timedelta(seconds=60)
