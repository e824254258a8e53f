"""`tachikoma setup` on folders; tests/end_to_end/test_setup.py starts what it makes."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from tachikoma_orchestrator.commands.setup.command import setup

#: Echoes its version.
REDIS = "#!/bin/sh\necho 'Redis server v=7.2.4'\n"


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    program = tmp_path / "redis-server"
    program.write_text(REDIS)
    program.chmod(0o755)
    # A port of 127.0.0.2 on which nothing listens.
    return [
        "--root", str(tmp_path / "root"), "--host", "127.0.0.2", "--trust-domain", "example.org", "--operator", "ada",
        "--redis-port", "1", "--redis-server", str(program),
    ]  # fmt: skip


def lines(*words: str) -> list[str]:
    done = CliRunner().invoke(setup, list(words))
    assert done.exit_code == 0, done.output
    return done.output.splitlines()


def test_a_dry_run_says_what_the_setup_then_does(words: list[str], tmp_path: Path) -> None:
    *planned, number = lines(*words, "--dry-run")
    assert not (tmp_path / "root").exists()
    assert number == f"{len(planned)} steps"
    done = lines(*words)
    # A folder that another step creates on its way gets its mode afterwards.
    assert {line.removeprefix("would ").rpartition(" ")[2] for line in planned} <= {
        line.rpartition(" ")[2] for line in done
    }
    assert lines(*words, "--dry-run") == ["nothing to do"]
    assert lines(*words)[0] == "nothing to do"
    assert "systemctl enable --now tachikoma-redis.service" in "\n".join(done)


def test_choices_are_kept_and_a_renewal_only_renews(words: list[str], tmp_path: Path) -> None:
    lines(*words)
    root = ["--root", str(tmp_path / "root")]
    (tmp_path / "root/etc/tachikoma/orchestrator.env").unlink()
    assert lines(*root, "--renew") == ["nothing to do"]
    assert lines(*root)[0].endswith("orchestrator.env")


def test_an_existing_redis_needs_no_server_here(words: list[str], tmp_path: Path) -> None:
    words[words.index("--redis-server") + 1] = "/nonexistent"
    output = "\n".join(lines(*words, "--redis-url", "rediss://redis.example.org:6379"))
    assert "users.acl into rediss://redis.example.org:6379" in output
    assert not (tmp_path / "root/etc/tachikoma/redis.conf").exists()


def test_a_changed_option_is_shown_by_a_dry_run_and_takes_effect(words: list[str], tmp_path: Path) -> None:
    lines(*words)
    root = ("--root", str(tmp_path / "root"))
    planned = lines(*root, "--port", "9000", "--dry-run")
    done = lines(*root, "--port", "9000")
    assert [line.removeprefix("would ") for line in planned[:-1]] == done[: len(planned) - 1]
    assert any(line.endswith("profile.json to 127.0.0.2:9000") for line in done)
    assert "agents and people that joined before use 127.0.0.2:8534, which is 127.0.0.2:9000 now" in "\n".join(done)
    # Also without the options of the first time, its program of Redis for instance.
    assert lines(*root)[0] == "nothing to do"


def test_a_change_to_an_existing_redis_names_what_remains_of_the_own_one(words: list[str], tmp_path: Path) -> None:
    lines(*words)
    output = "\n".join(lines("--root", str(tmp_path / "root"), "--redis-url", "rediss://redis.example.org:6379"))
    assert "systemctl disable --now tachikoma-redis" in output
    (tmp_path / "root/etc/tachikoma/redis.conf").unlink()
    assert "disable" not in "\n".join(lines("--root", str(tmp_path / "root")))
