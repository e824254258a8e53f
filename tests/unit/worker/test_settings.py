"""Settings of a worker: their bounds and their sources."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import pytest
from pydantic import ValidationError

from tachikoma.identity.svid import SvidSource
from tachikoma_worker.settings import PASSWORD_FILE, WorkerSettings

#: Not used without TLS.
SOURCE = cast(SvidSource, None)


def settings(folder: Path, **values: Any) -> WorkerSettings:
    return WorkerSettings(**{"agent_id": "web-1", "redis_url": "unix:///x", "data": folder, **values})


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests themselves set a user for commands."""
    monkeypatch.delenv("TACHIKOMA_USER", raising=False)


def test_defaults_enforce_limits_and_end_commands_with_the_worker(tmp_path: Path) -> None:
    found = settings(tmp_path)
    assert (found.limits, found.leave_running, found.user, found.capabilities) == ("enforce", False, "", ())
    assert (found.kill_grace, found.stop_grace) == (timedelta(seconds=10), timedelta(seconds=30))


def test_the_environment_is_read_where_no_option_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TACHIKOMA_SLOTS", "5")
    monkeypatch.setenv("TACHIKOMA_LABELS", '{"env": "dev"}')
    monkeypatch.setenv("TACHIKOMA_STOP_GRACE", "2m")
    found = settings(tmp_path)
    assert (found.slots, found.labels, found.stop_grace) == (5, {"env": "dev"}, timedelta(minutes=2))
    assert settings(tmp_path, slots=6).slots == 6


@pytest.mark.parametrize(
    "wrong",
    [
        {"agent_id": "with space"}, {"agent_id": ""}, {"slots": 0}, {"slots": 5000}, {"limits": "sometimes"},
        {"capabilities": ("CAP_EVERYTHING",)}, {"cgroup": "elsewhere"}, {"cgroup": ""}, {"cgroup_name": "../x"},
        {"cgroup_name": "-x"}, {"excerpt_bytes": 1}, {"log_bytes": 1000}, {"spool_bytes": 1000}, {"kill_grace": "soon"},
    ],
)  # fmt: skip
def test_a_value_out_of_its_bounds_is_refused(tmp_path: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        settings(tmp_path, **wrong)


@pytest.mark.parametrize("cgroup", ["top", "own", "/system.slice/x.service"])
def test_cgroups_may_be_at_three_places(tmp_path: Path, cgroup: str) -> None:
    assert settings(tmp_path, cgroup=cgroup).cgroup == cgroup


def test_a_password_in_the_address_of_redis_is_not_shown(tmp_path: Path) -> None:
    assert "hunter2" not in repr(settings(tmp_path, redis_url="redis://:hunter2@localhost:6379"))


def test_the_password_that_joining_wrote_is_used_unless_another_is_named(tmp_path: Path) -> None:
    identity, other = tmp_path / "identity", tmp_path / "other"
    identity.mkdir()
    found = settings(tmp_path, identity=identity, redis_url="redis://localhost")
    assert found.redis(SOURCE).credentials is None
    (identity / PASSWORD_FILE).write_text("joined\n")
    other.write_text("other\n")
    for given, expected in ((found, "joined"), (found.model_copy(update={"redis_password_file": other}), "other")):
        credentials = given.redis(SOURCE).credentials
        assert credentials is not None
        assert credentials.get_credentials() == ("agent.web-1", expected)
    in_url = settings(tmp_path, identity=identity, redis_url="redis://agent:url@localhost").redis(SOURCE).credentials
    assert in_url is not None
    assert in_url.get_credentials() == ("agent", "url")
