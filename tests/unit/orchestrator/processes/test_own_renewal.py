"""The orchestrator renews its own identity, when its authority issued it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tachikoma.dev.ca import DevelopmentCA
from tachikoma.identity.authority import CertificateAuthority
from tachikoma.identity.certificates import dns_names
from tachikoma.identity.file_source import FileSvidSource
from tachikoma.identity.renewal import renewal_lock
from tachikoma.identity.spiffe import service_id
from tachikoma_orchestrator.processes.own_renewal import OwnRenewal, renew_at_start
from tachikoma_orchestrator.processes.settings import OrchestratorSettings

ORCHESTRATOR = service_id("tachikoma.local", "orchestrator")


class Place:
    """An authority, and the identity of an orchestrator."""

    def __init__(self, folder: Path) -> None:
        self.identity, self.folder = folder / "identity", folder / "ca"
        self.ca = CertificateAuthority.create(self.folder, "tachikoma.local", name="CA", lifetime=timedelta(days=30))

    def settings(self) -> OrchestratorSettings:
        return OrchestratorSettings(
            redis_url="unix:///x", policy=Path("p"), identity=self.identity, ca=self.folder, join_listen="127.0.0.1:0"
        )

    def issue(self, *, begin: timedelta, life: timedelta) -> FileSvidSource:
        """Write an identity that was issued some time ago."""
        self.ca.issue(
            ORCHESTRATOR, bundle_pem=(self.folder / "ca.pem").read_bytes(), lifetime=life, dns_names=("orch.example",),
            not_before=datetime.now(UTC) - begin,
        ).write(self.identity)  # fmt: skip
        return FileSvidSource(self.identity)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.mark.parametrize("begin", [timedelta(hours=13), timedelta(days=9)])
def test_an_identity_that_is_due_or_ended_is_renewed_at_the_start_with_the_same_names(
    place: Place, begin: timedelta
) -> None:
    old = place.issue(begin=begin, life=timedelta(hours=24)).current()
    renew_at_start(place.settings())
    new = FileSvidSource(place.identity).current()
    new.verify()
    assert new.spiffe_id == ORCHESTRATOR
    assert dns_names(new.chain[0]) == dns_names(old.chain[0])
    assert new.key_pem != old.key_pem
    assert new.not_after > datetime.now(UTC) + timedelta(hours=23)
    # A second start finds nothing to do.
    renew_at_start(place.settings())
    assert FileSvidSource(place.identity).current().certificate_pem == new.certificate_pem


async def test_a_renewal_while_it_runs_stores_a_certificate_that_is_read(place: Place) -> None:
    source = place.issue(begin=timedelta(hours=1), life=timedelta(hours=24))
    renewal = OwnRenewal.of(place.settings(), source)
    assert renewal is not None
    new = await renewal._renew(source.current())
    assert FileSvidSource(place.identity).current().certificate_pem == new.certificate_pem


def test_nothing_is_renewed_that_another_authority_issued_or_another_process_renews(
    place: Place, tmp_path: Path
) -> None:
    source = place.issue(begin=timedelta(hours=20), life=timedelta(hours=24))
    before = source.current().certificate_pem
    with renewal_lock(place.identity) as free:
        assert free
        renew_at_start(place.settings())
    assert FileSvidSource(place.identity).current().certificate_pem == before

    DevelopmentCA(tmp_path / "other", "tachikoma.local").issue(ORCHESTRATOR, place.identity, dns_names=("x",))
    assert OwnRenewal.of(place.settings(), FileSvidSource(place.identity)) is None
    before = (place.identity / "svid.pem").read_bytes()
    renew_at_start(place.settings())
    assert (place.identity / "svid.pem").read_bytes() == before


def test_without_an_authority_or_a_folder_there_is_no_renewal(place: Place) -> None:
    source = place.issue(begin=timedelta(hours=20), life=timedelta(hours=24))
    bare = place.settings().model_copy(update={"ca": None})
    assert OwnRenewal.of(bare, source) is None
    renew_at_start(bare)
    renew_at_start(place.settings().model_copy(update={"identity": "unix:///run/spire.sock"}))


async def test_a_certificate_comes_from_the_authority_that_is_in_the_folder_now(place: Place) -> None:
    root = place.ca
    below = CertificateAuthority.create(
        place.folder.with_name("below"), "tachikoma.local", name="First", lifetime=timedelta(days=30), under=root
    )
    settings = place.settings().model_copy(update={"ca": place.folder.with_name("below")})
    below.issue(ORCHESTRATOR, bundle_pem=(place.folder / "ca.pem").read_bytes(), lifetime=timedelta(hours=24)).write(
        place.identity
    )
    source = FileSvidSource(place.identity)
    renewal = OwnRenewal.of(settings, source)
    assert renewal is not None
    second = CertificateAuthority.create(
        place.folder.with_name("below"), "tachikoma.local", name="Second", lifetime=timedelta(days=30), under=root
    )
    new = await renewal._renew(source.current())
    assert second.issued(new.chain[0])
