"""Identities of a stack, and the authority that issues them."""

from __future__ import annotations

import getpass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tachikoma.dev import identities as module
from tachikoma.dev.folder import REDIS_HOST, SERVER_NAME, StackFolder
from tachikoma.dev.identities import Identities, own_user
from tachikoma.identity.files import BUNDLE_FILE, CERTIFICATE_FILE, KEY_FILE
from tachikoma.identity.spiffe import SpiffeId
from tachikoma.identity.svid import Svid


@pytest.fixture
def folder(tmp_path: Path) -> StackFolder:
    return StackFolder(tmp_path)


def load(folder: StackFolder, name: str) -> Svid:
    files = (folder.identity(name) / file for file in (CERTIFICATE_FILE, KEY_FILE, BUNDLE_FILE))
    svid = Svid.load(*(file.read_bytes() for file in files))
    svid.verify()
    return svid


def test_every_part_and_the_user_have_an_identity(folder: StackFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(getpass, "getuser", lambda: "alice")
    identities = Identities(folder, services=["orchestrator", "redis", "beat"], agents=["agent-1", "agent-2"])
    identities.issue_all()
    expected = {
        "user": "user/alice", "orchestrator": "service/orchestrator", "redis": "service/redis", "beat": "service/beat",
        "agent-1": "agent/agent-1", "agent-2": "agent/agent-2",
    }  # fmt: skip
    found = {name: load(folder, name) for name in expected}
    assert {name: str(svid.spiffe_id) for name, svid in found.items()} == {
        name: f"spiffe://tachikoma.local/{path}" for name, path in expected.items()
    }
    names = {name: svid.chain[0].extensions for name, svid in found.items()}
    assert SERVER_NAME in str(list(names["orchestrator"]))
    assert REDIS_HOST in str(list(names["redis"]))
    assert identities.user == found["user"].spiffe_id


def test_identities_are_renewed_at_half_of_their_lifetime(folder: StackFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    identities = Identities(folder, services=[], agents=["agent-1"])
    identities.issue_all()
    first = load(folder, "agent-1")
    now += module.SVID_LIFETIME.total_seconds() / 2
    identities.renew()
    assert load(folder, "agent-1").certificate_pem == first.certificate_pem
    now += 1
    identities.renew()
    second = load(folder, "agent-1")
    assert second.certificate_pem != first.certificate_pem
    # Of the same authority, so that who trusted the first trusts the second.
    assert second.bundle.roots == first.bundle.roots


def test_one_more_identity_has_a_folder_of_its_own(folder: StackFolder) -> None:
    identities = Identities(folder, services=[], agents=[])
    identities.issue(SpiffeId.parse("spiffe://tachikoma.local/user/bob"), "user-bob")
    assert str(load(folder, "user-bob").spiffe_id) == "spiffe://tachikoma.local/user/bob"
    assert load(folder, "user-bob").not_after < datetime.now(UTC) + module.SVID_LIFETIME + timedelta(minutes=1)


@pytest.mark.parametrize(
    ("name", "used"), [("alice", "alice"), ("DOMAIN\\alice", "DOMAIN-alice"), ("zoë", "zo-"), ("a.b_c-d", "a.b_c-d")]
)
def test_a_login_name_becomes_part_of_a_spiffe_id(monkeypatch: pytest.MonkeyPatch, name: str, used: str) -> None:
    monkeypatch.setattr(getpass, "getuser", lambda: name)
    assert own_user() == used


@pytest.mark.parametrize("error", [KeyError("no such user"), OSError("no such user")])
def test_a_user_without_a_name_has_a_number(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def unknown() -> str:
        raise error

    monkeypatch.setattr(getpass, "getuser", unknown)
    monkeypatch.setattr("os.getuid", lambda: 4711)
    assert own_user() == "4711"
