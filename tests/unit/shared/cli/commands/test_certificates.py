"""`tachikoma identity ca`. The certificates themselves are tested with `tachikoma.identity.authority`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tachikoma import ConfigurationError, InvalidRequest
from tachikoma.identity.files import BUNDLE_FILE, CERTIFICATE_FILE, KEY_FILE
from tachikoma.identity.svid import Svid

ALICE = "spiffe://example.org/user/alice"


@pytest.fixture
def root(run: Any, tmp_path: Path) -> Path:
    folder = tmp_path / "root"
    done = run("identity", "ca", "init", str(folder), "--trust-domain", "example.org")
    assert done.out.startswith(f"{folder}: root of example.org, until ")
    return folder


def issue(run: Any, authority: Path, bundle: Path, spiffe_id: str = ALICE, lifetime: str = "24h") -> Any:
    return run(
        "identity", "ca", "issue", str(authority), spiffe_id, "--bundle", str(bundle),
        "--identity", str(authority.parent / "identity"), "--lifetime", lifetime, "--dns", "x.example.org",
    )  # fmt: skip


def test_an_identity_of_an_intermediate_is_trusted_under_the_root(run: Any, root: Path) -> None:
    between = root.parent / "between"
    done = run("identity", "ca", "init", str(between), "--trust-domain", "example.org", "--under", str(root))
    assert done.out.startswith(f"{between}: intermediate of example.org, until ")
    done = issue(run, between, root / "ca.pem")
    identity = root.parent / "identity"
    assert done.out.startswith(f"{identity}: {ALICE} until ")
    svid = Svid.load(*((identity / name).read_bytes() for name in (CERTIFICATE_FILE, KEY_FILE, BUNDLE_FILE)))
    svid.verify()
    assert (str(svid.spiffe_id), len(svid.chain)) == (ALICE, 2)


def test_an_authority_is_not_overwritten(run: Any, root: Path) -> None:
    before = (root / "ca.pem").read_bytes()
    error = run("identity", "ca", "init", str(root), "--trust-domain", "example.org").error
    assert isinstance(error, ConfigurationError)
    assert str(error) == f"there is a certificate authority in {root}; name another folder"
    assert (root / "ca.pem").read_bytes() == before


@pytest.mark.parametrize(
    ("spiffe_id", "lifetime", "message"),
    [
        ("spiffe://other.example/user/x", "24h", "the authority is of example.org, not of other.example"),
        ("alice", "24h", "alice"),
        (ALICE, "soon", "soon"),
    ],
)
def test_a_wrong_value_writes_nothing(run: Any, root: Path, spiffe_id: str, lifetime: str, message: str) -> None:
    error = issue(run, root, root / "ca.pem", spiffe_id, lifetime).error
    assert isinstance(error, InvalidRequest)
    assert message in str(error)
    assert not (root.parent / "identity").exists()


def test_an_identity_that_its_bundle_does_not_trust_is_not_written(run: Any, root: Path) -> None:
    other = root.parent / "other"
    run("identity", "ca", "init", str(other), "--trust-domain", "example.org")
    assert isinstance(issue(run, root, other / "ca.pem").error, InvalidRequest)
    assert not (root.parent / "identity").exists()


def test_a_bundle_that_is_not_there_is_named(run: Any, root: Path) -> None:
    error = issue(run, root, root / "none.pem").error
    assert isinstance(error, ConfigurationError)
    assert str(error).startswith("cannot write the identity: ")
