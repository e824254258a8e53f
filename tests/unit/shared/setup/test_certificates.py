"""Steps that create authorities and issue certificates: each once, and again when it is due."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tachikoma.errors import ConfigurationError
from tachikoma.identity.authority import CertificateAuthority
from tachikoma.identity.certificates import dns_names
from tachikoma.identity.file_source import FileSvidSource
from tachikoma.identity.join_token import Joined
from tachikoma.identity.spiffe import SpiffeId
from tachikoma.setup.certificates import Authority, Issued, Root
from tachikoma.setup.steps import Host, Step, apply

PLAIN = Host(owners=False, services=False)
DAY = timedelta(days=1)


def steps(folder: Path) -> list[Step]:
    return [
        Root(folder / "root", folder / "roots.pem", "example.org", 3650 * DAY, folder / "ca"),
        Authority(folder / "ca", "example.org", 365 * DAY, folder / "root"),
        Issued(
            folder / "redis", "spiffe://example.org/service/redis", folder / "ca", folder / "roots.pem", 30 * DAY,
            ("redis.example.org",), joined=Joined(address="o:1", server_name="o"),
        ),
    ]  # fmt: skip


def done(folder: Path, *more: Step) -> list[str]:
    return [words.split(" ", 1)[0] for words in apply([*steps(folder), *more], PLAIN)]


def test_authorities_and_certificates_are_made_once(tmp_path: Path) -> None:
    assert done(tmp_path) == ["create", "create", "issue"]
    svid = FileSvidSource(tmp_path / "redis").current()
    svid.verify()
    assert dns_names(svid.chain[0]) == ("redis.example.org",) or list(dns_names(svid.chain[0])) == ["redis.example.org"]
    assert Joined.load(tmp_path / "redis") == Joined(address="o:1", server_name="o")
    assert done(tmp_path) == []


def test_a_certificate_with_other_names_is_issued_again(tmp_path: Path) -> None:
    done(tmp_path)
    issued = steps(tmp_path)[-1]
    assert isinstance(issued, Issued)
    changed = replace(issued, dns=("other.example.org",))
    assert changed.pending(PLAIN).endswith("with other names")
    assert list(apply([changed], PLAIN)) != []
    assert changed.pending(PLAIN) == ""


@pytest.mark.parametrize(("age", "word"), [(0.4, ""), (0.6, "renew"), (2.0, "issue")])
def test_a_certificate_is_renewed_when_half_of_its_life_is_over(tmp_path: Path, age: float, word: str) -> None:
    done(tmp_path)
    issued = steps(tmp_path)[-1]
    assert isinstance(issued, Issued)
    ca = CertificateAuthority.load(tmp_path / "ca")
    ca.issue(
        SpiffeId.parse(issued.spiffe_id), bundle_pem=issued.roots.read_bytes(), lifetime=issued.lifetime,
        dns_names=issued.dns, not_before=datetime.now(UTC) - age * issued.lifetime,
    ).write(issued.folder)  # fmt: skip
    assert ca.issued(FileSvidSource(tmp_path / "redis").current().chain[0])
    assert issued.pending(PLAIN).partition(" ")[0] == word
    list(apply([issued], PLAIN))
    assert issued.pending(PLAIN) == ""


def test_an_authority_that_ends_soon_is_replaced_and_its_members_may_renew_at_the_new_one(tmp_path: Path) -> None:
    short = Authority(tmp_path / "ca", "example.org", 100 * DAY, tmp_path / "root")
    list(apply([steps(tmp_path)[0], short, steps(tmp_path)[2]], PLAIN))
    leaf = FileSvidSource(tmp_path / "redis").current().chain[0]
    # A third of a year is more than it has left.
    assert done(tmp_path) == ["replace"]
    assert CertificateAuthority.load(tmp_path / "ca").issued(leaf)
    assert done(tmp_path) == []


@pytest.mark.parametrize("moved", ["root", "root/ca_key.pem", "root/ca.pem"])
def test_without_the_root_on_this_host_the_authority_stays_and_no_root_is_created(tmp_path: Path, moved: str) -> None:
    short = Authority(tmp_path / "ca", "example.org", 100 * DAY, tmp_path / "root")
    list(apply([steps(tmp_path)[0], short, steps(tmp_path)[2]], PLAIN))
    before = (tmp_path / "ca/ca.pem").read_bytes()
    (tmp_path / moved).rename(tmp_path / "away")
    assert done(tmp_path) == []
    authority = steps(tmp_path)[1]
    assert isinstance(authority, Authority)
    assert authority.waits_for_root().startswith(
        f"put the root back to {tmp_path / 'root'} and run `tachikoma setup` before"
    )
    # With the root it is replaced.
    (tmp_path / "away").rename(tmp_path / moved)
    assert done(tmp_path) == ["replace"]
    assert (tmp_path / "ca/retired.pem").read_bytes() == before


def test_without_root_and_authority_a_second_root_is_refused(tmp_path: Path) -> None:
    done(tmp_path)
    (tmp_path / "root").rename(tmp_path / "away")
    (tmp_path / "roots.pem").rename(tmp_path / "stored")
    with pytest.raises(ConfigurationError, match=r"copy the ca\.pem of the root"):
        done(tmp_path)
    (tmp_path / "stored").rename(tmp_path / "roots.pem")
    (tmp_path / "ca").rename(tmp_path / "lost")
    with pytest.raises(ConfigurationError, match="put the root back"):
        done(tmp_path)
    assert not (tmp_path / "root").exists()


def test_another_root_is_refused_until_the_operator_trusts_it(tmp_path: Path) -> None:
    done(tmp_path)
    (tmp_path / "root").rename(tmp_path / "away")
    CertificateAuthority.create(tmp_path / "root", "example.org", name="Other", lifetime=9 * DAY)
    with pytest.raises(ConfigurationError, match="put back the root of this installation"):
        done(tmp_path)
    both = (tmp_path / "roots.pem").read_bytes() + (tmp_path / "root/ca.pem").read_bytes()
    (tmp_path / "roots.pem").write_bytes(both)
    assert done(tmp_path) == ["issue"]
    assert len(FileSvidSource(tmp_path / "redis").current().bundle.roots) == 2
    assert done(tmp_path) == []


@pytest.mark.parametrize("name", ["retired.pem", "ca_key.pem", "ca.pem"])
def test_a_replacement_that_was_interrupted_is_completed(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    list(apply([steps(tmp_path)[0], Authority(tmp_path / "ca", "example.org", 100 * DAY, tmp_path / "root")], PLAIN))
    old = CertificateAuthority.load(tmp_path / "ca")
    original = Path.replace

    def crash(path: Path, target: Path) -> Path:
        if target == tmp_path / "ca" / name:
            raise OSError("no space left")
        return original(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", crash)
        with pytest.raises(ConfigurationError, match="no space left"):
            done(tmp_path)
    assert done(tmp_path) == ["complete", "issue"]
    new = CertificateAuthority.load(tmp_path / "ca")
    assert new.certificate != old.certificate
    assert old.certificate in new.retired
    assert done(tmp_path) == []


def test_a_certificate_that_the_stored_roots_do_not_trust_is_not_written(tmp_path: Path) -> None:
    done(tmp_path)
    before = (tmp_path / "redis/svid.pem").read_bytes()
    other = CertificateAuthority.create(tmp_path / "other", "example.org", name="Other", lifetime=9 * DAY)
    CertificateAuthority.create(tmp_path / "ca", "example.org", name="CA", lifetime=365 * DAY, under=other)
    issued = steps(tmp_path)[-1]
    with pytest.raises(ConfigurationError, match="cannot create"):
        issued.apply(PLAIN)
    assert (tmp_path / "redis/svid.pem").read_bytes() == before


def test_an_authority_of_another_trust_domain_is_not_touched(tmp_path: Path) -> None:
    done(tmp_path)
    with pytest.raises(ConfigurationError, match=r"is of example\.org"):
        Authority(tmp_path / "ca", "example.com", DAY, tmp_path / "root").pending(PLAIN)
