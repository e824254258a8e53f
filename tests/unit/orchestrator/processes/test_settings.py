"""Settings of the processes, as they come from options and the environment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from authority import Authority
from tachikoma.config.settings import read_settings
from tachikoma.errors import ConfigurationError
from tachikoma.identity.file_source import FileSvidSource
from tachikoma.vocabulary.addresses import HostPort
from tachikoma_orchestrator.processes.settings import OrchestratorSettings, SubmitterSettings


def settings(kind: type[OrchestratorSettings] = OrchestratorSettings, **given: Any) -> Any:
    return read_settings(kind, "orchestrator", redis_url="unix:///nowhere", policy=Path("policy.yaml"), **given)


@pytest.fixture
def identity(authority: Authority, tmp_path: Path) -> FileSvidSource:
    authority.write(tmp_path / "identity", "spiffe://tachikoma.local/service/orchestrator")
    return FileSvidSource(tmp_path / "identity")


def test_addresses_are_parsed_when_they_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    assert settings().listen == HostPort("127.0.0.1", 8534)
    monkeypatch.setenv("TACHIKOMA_LISTEN", "[::1]:0")
    monkeypatch.setenv("TACHIKOMA_METRICS", "localhost:9100")
    monkeypatch.setenv("TACHIKOMA_JOIN_ADDRESS", "")
    found = settings()
    assert found.listen == HostPort("::1", 0)
    assert found.metrics == HostPort("localhost", 9100)
    assert found.join_address is None
    # Options win over the environment.
    assert settings(listen="10.0.0.7:1").listen == HostPort("10.0.0.7", 1)


@pytest.mark.parametrize("name", ["listen", "metrics", "join_address", "renew_address"])
def test_a_wrong_address_is_named_with_its_mistake(name: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        settings(**{name: ":9100"})
    named = f"TACHIKOMA_{name.upper()} (--{name.replace('_', '-')})"
    assert str(caught.value).startswith(f"orchestrator settings: {named}: ':9100' has no host; write host:port")


def test_the_enroller_is_optional(identity: FileSvidSource, tmp_path: Path) -> None:
    assert settings().enroller(identity) is None
    (tmp_path / "password").write_text("secret\n")
    access = settings(enroller_password_file=tmp_path / "password").enroller(identity)
    assert access is not None
    assert access.credentials.get_credentials() == ("enroller", "secret")


def test_celery_never_gets_the_orchestrators_rights(identity: FileSvidSource, tmp_path: Path) -> None:
    for name in ("own", "celery"):
        (tmp_path / name).write_text(f"{name}\n")
    # Without any password there are no rights to separate.
    assert settings(SubmitterSettings).celery(identity).credentials is None
    for given in ({"redis_password_file": tmp_path / "own"}, {"redis_user": "orchestrator"}):
        with pytest.raises(ConfigurationError, match="TACHIKOMA_SUBMITTER_PASSWORD_FILE"):
            settings(SubmitterSettings, **given).celery(identity)
    found = settings(
        SubmitterSettings, redis_password_file=tmp_path / "own", submitter_password_file=tmp_path / "celery"
    )
    assert found.celery(identity).credentials.get_credentials() == ("submitter", "celery")
    assert found.redis(identity).credentials.get_credentials() == ("orchestrator", "own")
