"""The commands `tachikoma worker` and `tachikoma spawner` up to the point where something starts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from patience import PATIENCE_SECONDS
from tachikoma.errors import ConfigurationError
from tachikoma_worker import command as module
from tachikoma_worker.command import spawner, worker
from tachikoma_worker.settings import WorkerSettings


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[WorkerSettings, int | None]]:
    """The settings with which a worker would have been run."""
    seen: list[tuple[WorkerSettings, int | None]] = []

    def record(settings: WorkerSettings, ready_fd: int | None) -> int:
        seen.append((settings, ready_fd))
        return 3

    monkeypatch.setattr(module, "_run_worker", record)
    monkeypatch.setattr(module.logs, "configure", lambda _: None)
    return seen


def run(app: Any, *arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments))


def test_options_become_settings_and_the_exit_code_is_the_workers(started: Any, tmp_path: Path) -> None:
    result = run(
        worker, "--agent-id", "web-1", "--redis-url", "unix:///x", "--data", str(tmp_path), "--label", "env=dev",
        "--capability", "CAP_KILL", "--slots", "5", "--ready-fd", "9",
    )  # fmt: skip
    assert result.exit_code == 3
    [(settings, ready_fd)] = started
    assert (settings.agent_id, settings.data, settings.labels, settings.slots) == ("web-1", tmp_path, {"env": "dev"}, 5)
    assert (settings.capabilities, ready_fd) == (("CAP_KILL",), 9)


def test_a_setting_that_is_missing_is_named(started: Any) -> None:
    result = run(worker, "--agent-id", "web-1")
    assert isinstance(result.exception, ConfigurationError)
    assert "worker settings: " in str(result.exception)
    assert started == []


def test_a_sub_command_starts_no_worker(started: Any) -> None:
    assert run(worker, "join", "--help").exit_code == 0
    assert started == []


@pytest.mark.parametrize("content", [b"\xff", b"nonsense"])
def test_a_file_without_a_token_is_refused_without_its_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "secret-name"
    path.write_bytes(content)
    result = run(worker, "join", "--token-file", str(path), "--identity", str(tmp_path / "identity"))
    assert isinstance(result.exception, Exception)
    assert "secret-name" not in f"{result.exception}{result.output}"


def test_a_spawner_for_an_unknown_user_is_refused(tmp_path: Path) -> None:
    result = run(spawner, "--agent-id", "a", "--socket", str(tmp_path / "s"), "--worker-user", "no-such-user")
    assert isinstance(result.exception, ConfigurationError)
    assert "there is no user 'no-such-user'" in str(result.exception)


def test_the_help_of_the_worker_names_each_option() -> None:
    result = CliRunner().invoke(worker, ["--help"], env={"COLUMNS": "300"})
    for name in ("--agent-id", "--sweep", "--cgroup-name", "--local-policy", "--spawner"):
        assert name in result.output
    assert "--ready-fd" not in result.output


@pytest.mark.slow
def test_the_commands_need_no_celery_module_of_their_own() -> None:
    source = Path(module.__file__).read_text()
    assert "import celery" not in source
    assert "from celery" not in source
    done = subprocess.run(
        [sys.executable, "-c", "import tachikoma_worker.command"], check=False, timeout=PATIENCE_SECONDS
    )
    assert done.returncode == 0
