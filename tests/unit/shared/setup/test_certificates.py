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
from tachikoma.setup.certificates import Authority, Issued
from tachikoma.setup.steps import Host, Step, apply

PLAIN = Host(owners=False, services=False)
DAY = timedelta(days=1)


def steps(folder: Path) -> list[Step]:
    return [
        Authority(folder / "root", "example.org", "Root", 3650 * DAY),
        Authority(folder / "ca", "example.org", "CA", 365 * DAY, folder / "root"),
        Issued(
            folder / "redis", "spiffe://example.org/service/redis", folder / "ca", folder / "root/ca.pem", 30 * DAY,
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
    begin = datetime.now(UTC) - age * issued.lifetime
    original = CertificateAuthority.sign
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            CertificateAuthority, "sign",
            lambda self, *given, **named: original(self, *given, **{**named, "not_before": begin}),
        )  # fmt: skip
        issued.apply(PLAIN)
    assert ca.issued(FileSvidSource(tmp_path / "redis").current().chain[0])
    assert issued.pending(PLAIN).partition(" ")[0] == word
    list(apply([issued], PLAIN))
    assert issued.pending(PLAIN) == ""


def test_an_authority_that_ends_soon_is_replaced_and_its_members_may_renew_at_the_new_one(tmp_path: Path) -> None:
    short = Authority(tmp_path / "ca", "example.org", "CA", 100 * DAY, tmp_path / "root")
    list(apply([steps(tmp_path)[0], short, steps(tmp_path)[2]], PLAIN))
    leaf = FileSvidSource(tmp_path / "redis").current().chain[0]
    # A third of a year is more than it has left.
    assert done(tmp_path) == ["replace"]
    assert CertificateAuthority.load(tmp_path / "ca").issued(leaf)
    assert done(tmp_path) == []


def test_without_the_root_on_this_host_the_authority_stays(tmp_path: Path) -> None:
    short = Authority(tmp_path / "ca", "example.org", "CA", 100 * DAY, tmp_path / "root")
    list(apply([steps(tmp_path)[0], short], PLAIN))
    (tmp_path / "root/ca.pem").unlink()
    assert steps(tmp_path)[1].pending(PLAIN) == ""


def test_an_authority_of_another_trust_domain_is_not_touched(tmp_path: Path) -> None:
    done(tmp_path)
    with pytest.raises(ConfigurationError, match=r"is of example\.org"):
        Authority(tmp_path / "ca", "example.com", "CA", DAY).pending(PLAIN)
