"""The authority of an orchestrator, opened from its settings."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tachikoma.dev.ca import DevelopmentCA
from tachikoma.errors import ConfigurationError
from tachikoma.identity.authority import CertificateAuthority
from tachikoma.identity.file_source import FileSvidSource
from tachikoma.identity.spiffe import service_id
from tachikoma.identity.svid import Svid
from tachikoma.vocabulary.addresses import HostPort
from tachikoma_orchestrator.processes.joining import open_authority
from tachikoma_orchestrator.processes.settings import OrchestratorSettings

DOMAIN = "tachikoma.local"
JOINS, LISTENS = HostPort("10.0.0.1", 8535), HostPort("10.0.0.1", 8534)


def settings(folder: Path, **changes: Any) -> OrchestratorSettings:
    return OrchestratorSettings(redis_url="unix:///x", policy=folder, ca=folder / "ca", join_listen=JOINS, **changes)  # type: ignore[arg-type]


def identity(folder: Path, *dns: str) -> Svid:
    DevelopmentCA(folder / "ca", DOMAIN).issue(service_id(DOMAIN, "orchestrator"), folder / "identity", dns_names=dns)
    return FileSvidSource(folder / "identity").current()


def test_an_authority_names_the_addresses_that_agents_use(tmp_path: Path) -> None:
    svid = identity(tmp_path, "orch.example", "other.example")
    found = open_authority(settings(tmp_path, renew_address="orch.example:1"), svid, joins=JOINS, listens=LISTENS)
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
