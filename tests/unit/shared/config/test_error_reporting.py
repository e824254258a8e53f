"""Settings of error reports, and what they refuse."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tachikoma.config import error_events, error_reporting
from tachikoma.config.error_reporting import configure
from tachikoma.errors import ConfigurationError

SECRET = "hunter2"


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """A minute that has just begun, and no settings of this machine."""
    monkeypatch.setattr(error_events, "budget", error_events.Budget())
    for name in ("DSN", "DSN_FILE", "ENVIRONMENT"):
        monkeypatch.delenv(f"TACHIKOMA_SENTRY_{name}", raising=False)


@pytest.mark.parametrize("dsn", [SECRET, f"https://{SECRET}@", f"ftp://{SECRET}@host/1", f"https://{SECRET}@host:x/1"])
def test_a_dsn_that_is_none_is_refused_without_being_shown(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TACHIKOMA_SENTRY_DSN", dsn)
    with pytest.raises(ConfigurationError, match=r"^TACHIKOMA_SENTRY_DSN is not a DSN") as caught:
        configure("orchestrator")
    assert SECRET not in str(caught.value)


def test_a_dsn_may_stand_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "dsn"
    monkeypatch.setenv("TACHIKOMA_SENTRY_DSN_FILE", str(file))
    with pytest.raises(ConfigurationError, match="cannot read the DSN"):
        configure("orchestrator")
    file.write_text("\n")
    with pytest.raises(ConfigurationError, match="there is no DSN"):
        configure("orchestrator")
    file.write_text("https://key@host/1\n")
    assert error_reporting.ErrorReportingSettings().read_dsn() == "https://key@host/1"


def test_a_dsn_without_sentry_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TACHIKOMA_SENTRY_DSN", "https://key@host/1")
    monkeypatch.setitem(sys.modules, "sentry_sdk", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'tachikoma-exec\[orchestrator\]'"):
        configure("orchestrator")
