"""An agent's installation, around the join itself, which tests/end_to_end/test_setup.py does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from authority import Authority
from tachikoma.client.membership.joining import Answer
from tachikoma.errors import ConfigurationError, Unauthenticated, Unavailable
from tachikoma.identity.join_token import JoinToken
from tachikoma.setup.layout import Layout
from tachikoma.setup.steps import Host
from tachikoma_worker import installation as module
from tachikoma_worker.installation import Installation

WEB = "spiffe://tachikoma.local/agent/web-1"


class Joining:
    """The join, which succeeds once."""

    def __init__(self, authority: Authority, redis_url: str = "rediss://r:1") -> None:
        self.authority, self.redis_url, self.joins = authority, redis_url, 0

    async def __call__(self, token: JoinToken, folder: Path, password_file: Path) -> Answer:
        self.joins += 1
        if self.joins > 1:
            raise Unauthenticated("used")
        self.authority.write(folder, token.id)
        return Answer("o:1", "o", redis_password=False, redis_url=self.redis_url)


@pytest.fixture
def installation(tmp_path: Path, authority: Authority) -> Installation:
    token = JoinToken(
        id=WEB, address="o:1", server_name="o", secret=b"s" * 32,
        root=authority.certificate.public_bytes(Encoding.DER),
    )  # fmt: skip
    return Installation(Layout(tmp_path), Host(owners=False, services=False), token)


def test_a_repetition_with_the_used_token_changes_nothing(
    installation: Installation, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "join", Joining(authority))
    first = list(installation.run())
    assert any("worker.env" in words for words in first)
    text = installation.environment.read_text()
    assert "TACHIKOMA_AGENT_ID=web-1\nTACHIKOMA_REDIS_URL=rediss://r:1\n" in text
    assert list(installation.run()) == [f"{WEB} in {installation.identity}"]
    assert installation.environment.read_text() == text


def test_a_used_token_on_another_host_is_refused(
    installation: Installation, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    joining: Any = Joining(authority)
    joining.joins = 1
    monkeypatch.setattr(module, "join", joining)
    with pytest.raises(Unauthenticated):
        list(installation.run())
    assert not installation.environment.exists()


def test_an_orchestrator_that_does_not_know_redis_needs_the_option(
    installation: Installation, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "join", Joining(authority, redis_url=""))
    with pytest.raises(ConfigurationError, match="--redis-url"):
        list(installation.run())


def test_an_agent_that_does_not_come_online_is_reported_with_the_place_to_look(
    installation: Installation, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def offline(settings: object) -> None:
        raise Unavailable("agent web-1 is offline")

    monkeypatch.setattr(module, "join", Joining(authority))
    monkeypatch.setattr(module, "read_lease", offline)
    monkeypatch.setattr(module, "LOOK_SECONDS", (0.001, 0.001))
    list(installation.run())
    with pytest.raises(Unavailable, match="systemctl status tachikoma-spawner"):
        installation.wait(0)
