"""The check of an agent's identity at the start of its worker."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from authority import Authority
from tachikoma.errors import ConfigurationError
from tachikoma.identity.file_source import FileSvidSource
from tachikoma_worker.engine.certificates import check_identity
from tachikoma_worker.settings import WorkerSettings

ID = "spiffe://tachikoma.local/agent/web-1"


def settings(agent: str) -> WorkerSettings:
    return WorkerSettings(agent_id=agent, redis_url="unix:///x", data=Path("/x"))


def test_an_identity_must_be_valid_and_that_of_the_agent(tmp_path: Path, authority: Authority) -> None:
    authority.write(tmp_path, ID)
    source = FileSvidSource(tmp_path)
    check_identity(source, settings("web-1"), remedy="")
    with pytest.raises(ConfigurationError, match=r"is .*/agent/web-1, not .*/agent/web-2"):
        check_identity(source, settings("web-2"), remedy="")


def test_an_invalid_identity_is_refused_with_its_remedy(authority: Authority) -> None:
    class Ended:
        place = "a test"

        def current(self) -> object:
            now = datetime.now(UTC)
            return authority.svid(ID, begin=now - timedelta(hours=2), end=now - timedelta(hours=1))

    with pytest.raises(ConfigurationError, match=r"cannot be used.*; join again"):
        check_identity(Ended(), settings("web-1"), remedy="; join again")  # type: ignore[arg-type]
