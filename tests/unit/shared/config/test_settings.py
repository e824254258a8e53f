"""Settings from options and environment variables."""

from __future__ import annotations

import pytest
from pydantic_settings import BaseSettings, SettingsConfigDict

from tachikoma.config.settings import Address, OptionalAddress, read_settings
from tachikoma.errors import ConfigurationError


class Settings(BaseSettings):
    """The settings of this test."""

    model_config = SettingsConfigDict(env_prefix="TEST_", extra="ignore")

    listen: Address
    metrics: OptionalAddress = None
    size: int = 1


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LISTEN", "METRICS", "SIZE"):
        monkeypatch.delenv(f"TEST_{name}", raising=False)


def test_an_option_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_LISTEN", "a:1")
    monkeypatch.setenv("TEST_SIZE", "2")
    settings = read_settings(Settings, "test", listen="b:2", size=None)
    assert (settings.listen.host, settings.listen.port, settings.size) == ("b", 2, 2)


def test_an_optional_address_may_be_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_METRICS", "")
    assert read_settings(Settings, "test", listen="a:1").metrics is None
    monkeypatch.setenv("TEST_METRICS", "127.0.0.1:9100")
    metrics = read_settings(Settings, "test", listen="a:1").metrics
    assert metrics is not None
    assert metrics.port == 9100


def test_every_mistake_is_named() -> None:
    with pytest.raises(ConfigurationError, match=r"^test settings: .*listen: .*; size: "):
        read_settings(Settings, "test", size="x")
    with pytest.raises(ConfigurationError, match=r"^test settings: listen: "):
        read_settings(Settings, "test", listen="no port")
