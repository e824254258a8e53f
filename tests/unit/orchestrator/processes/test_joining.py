"""The authority of an orchestrator, opened from its settings."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from support import wait_until

from tachikoma.dev.ca import DevelopmentCA
from tachikoma.errors import ConfigurationError
from tachikoma.identity.authority import CertificateAuthority
from tachikoma.identity.file_source import FileSvidSource
from tachikoma.identity.spiffe import service_id
from tachikoma.vocabulary.addresses import HostPort
from tachikoma_orchestrator.metrics import REGISTRY
from tachikoma_orchestrator.processes import joining
from tachikoma_orchestrator.processes.joining import WatchedAuthority, open_authority
from tachikoma_orchestrator.processes.settings import OrchestratorSettings

DOMAIN = "tachikoma.local"
JOINS, LISTENS = HostPort("10.0.0.1", 8535), HostPort("10.0.0.1", 8534)


def settings(folder: Path, **changes: Any) -> OrchestratorSettings:
    return OrchestratorSettings(redis_url="unix:///x", policy=folder, ca=folder / "ca", join_listen=JOINS, **changes)  # type: ignore[arg-type]


def identity(folder: Path, *dns: str) -> FileSvidSource:
    DevelopmentCA(folder / "ca", DOMAIN).issue(service_id(DOMAIN, "orchestrator"), folder / "identity", dns_names=dns)
    return FileSvidSource(folder / "identity")


def test_an_authority_names_the_addresses_that_agents_use(tmp_path: Path) -> None:
    svid = identity(tmp_path, "orch.example", "other.example")
    found = open_authority(
        settings(tmp_path, renew_address="orch.example:1"), svid, joins=JOINS, listens=LISTENS
    ).current
    assert (found.join_address, found.renew_address) == ("10.0.0.1:8535", "orch.example:1")
    assert found.server_name == "orch.example"


def test_agents_must_be_able_to_verify_the_orchestrator(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="certificate has no DNS name"):
        open_authority(settings(tmp_path), identity(tmp_path), joins=JOINS, listens=LISTENS)


def test_agents_must_be_able_to_reach_the_orchestrator(tmp_path: Path) -> None:
    svid = identity(tmp_path, "orch.example")
    everywhere = HostPort("0.0.0.0", 8534)
    with pytest.raises(ConfigurationError, match="set TACHIKOMA_JOIN_ADDRESS"):
        open_authority(settings(tmp_path), svid, joins=everywhere, listens=LISTENS)
    with pytest.raises(ConfigurationError, match="set TACHIKOMA_RENEW_ADDRESS"):
        open_authority(settings(tmp_path), svid, joins=JOINS, listens=everywhere)


def test_an_authority_that_nobody_trusts_is_refused(tmp_path: Path) -> None:
    svid = identity(tmp_path, "orch.example")
    CertificateAuthority.create(tmp_path / "foreign", DOMAIN, name="Foreign", lifetime=timedelta(days=1))
    with pytest.raises(ConfigurationError, match="would not trust"):
        open_authority(
            settings(tmp_path).model_copy(update={"ca": tmp_path / "foreign"}), svid, joins=JOINS, listens=LISTENS
        )


class Replaced:
    """A root, an authority below it that an orchestrator uses, and its successors."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.ca = folder, folder / "ca"
        self.root = CertificateAuthority.create(folder / "root", DOMAIN, name="Root", lifetime=timedelta(days=99))
        self.create(self.root)
        pem = (folder / "root/ca.pem").read_bytes()
        CertificateAuthority.load(self.ca).issue(
            service_id(DOMAIN, "orchestrator"), bundle_pem=pem, lifetime=timedelta(days=1), dns_names=("orch.example",)
        ).write(folder / "identity")
        source = FileSvidSource(folder / "identity")
        self.watched = open_authority(settings(folder), source, joins=JOINS, listens=LISTENS)

    def create(self, root: CertificateAuthority) -> CertificateAuthority:
        return CertificateAuthority.create(self.ca, DOMAIN, name="CA", lifetime=timedelta(days=9), under=root)

    @property
    def active(self) -> int:
        return self.watched.current.ca.certificate.serial_number


def test_an_authority_that_was_replaced_is_used_without_a_restart(tmp_path: Path) -> None:
    place = Replaced(tmp_path)
    first = place.active
    place.watched.reload()
    assert place.active == first
    second = place.create(place.root)
    place.watched.reload()
    assert place.active == second.certificate.serial_number != first
    assert REGISTRY.get_sample_value("tachikoma_certificate_expires_seconds", {"of": "authority"}) == (
        second.not_after.timestamp()
    )
    assert REGISTRY.get_sample_value("tachikoma_authority_lifetime_seconds") == second.lifetime.total_seconds()


def test_the_previous_authority_stays_active_while_the_files_are_wrong(tmp_path: Path) -> None:
    place = Replaced(tmp_path)
    first, key = place.active, (place.ca / "ca_key.pem").read_bytes()
    second = place.create(place.root)
    own = (place.ca / "ca_key.pem").read_bytes()
    (place.ca / "ca_key.pem").write_bytes(key)
    place.watched.reload()
    assert place.active == first
    (place.ca / "ca_key.pem").write_bytes(own)
    (place.ca / "ca_key.pem").chmod(0o644)
    place.watched.reload()
    assert place.active == first
    # Only the mode changes.
    (place.ca / "ca_key.pem").chmod(0o600)
    place.watched.reload()
    assert place.active == second.certificate.serial_number


def test_an_authority_under_another_root_is_used_when_the_own_bundle_contains_it(tmp_path: Path) -> None:
    place = Replaced(tmp_path)
    first = place.active
    other = CertificateAuthority.create(tmp_path / "other", DOMAIN, name="Other", lifetime=timedelta(days=99))
    second = place.create(other)
    place.watched.reload()
    assert place.active == first
    both = b"".join((tmp_path / name / "ca.pem").read_bytes() for name in ("root", "other"))
    (tmp_path / "identity/svid_bundle.pem").write_bytes(both)
    place.watched = WatchedAuthority(place.watched._watch, place.watched.current, FileSvidSource(tmp_path / "identity"))
    place.watched.reload()
    assert place.active == second.certificate.serial_number


async def test_the_files_are_checked_while_the_orchestrator_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(joining, "CHECK_SECONDS", 0.01)
    place = Replaced(tmp_path)
    task = asyncio.create_task(place.watched.run())
    second = place.create(place.root)
    await asyncio.to_thread(wait_until, lambda: place.active == second.certificate.serial_number, "it is active")
    task.cancel()
