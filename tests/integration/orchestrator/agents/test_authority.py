"""The authority that issues agents' certificates."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from members import DOMAIN, Stand
from tachikoma.errors import (
    ConfigurationError,
)
from tachikoma.identity.authority import CertificateAuthority
from tachikoma.redis.commands import Redis
from tachikoma_orchestrator.agents.authority import Authority


@pytest.fixture
async def stand(redis: Redis, tmp_path: Path) -> Stand:
    return Stand(redis, tmp_path)


async def test_an_authority_outside_the_own_bundle_is_a_configuration_error(stand: Stand, tmp_path: Path) -> None:
    for domain in (DOMAIN, "evil.example"):
        strange = CertificateAuthority.create(tmp_path / domain, domain, name="x", lifetime=timedelta(days=1))
        authority = Authority(strange, timedelta(hours=1), "", "", "")
        with pytest.raises(ConfigurationError, match="would not trust"):
            authority.check(stand.identity.current())
