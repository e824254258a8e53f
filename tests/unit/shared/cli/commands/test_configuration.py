"""`tachikoma config`."""

from __future__ import annotations

import json
import os
import pwd
import re
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tachikoma.cli.commands.configuration import _text, config
from tachikoma.cli.commands.parts import Part, settings_class
from tachikoma.config.settings import PREFIX, PartSettings, read_settings, variable
from tachikoma.diagnosis import installed
from tachikoma.vocabulary.addresses import HostPort

#: Another value than the default of settings whose default says nothing about their form.
SAMPLES: dict[str, str] = {
    "redis_url": "rediss://redis.example.org:6380/1",
    "agent_id": "web-1",
    "data": "/var/lib/x",
    "policy": "/etc/policy.yaml",
    "schedules": "/etc/schedules",
    "flower_users": "/etc/users",
    "labels": "role=web,site=a",
    "metrics_class": "role",
    "capabilities": "CAP_KILL,CAP_CHOWN",
    "search_path": "/bin,/opt/bin",
    "trusted_proxies": "10.0.0.0/8,::1/128",
    "rate_limit": "requestsPerMinute=7,queueTimeout=90s",
    "limits": "best-effort",
    "cgroup": "own",
    "audit_failure": "open",
    "audit_syslog": "unix:///dev/log",
    "identity": "unix:///run/agent.sock",
    "cgroup_name": "other",
    "isolation": "private",
    "uid_range": "80000-80999",
    "default_memory": "2GiB",
}


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(PREFIX)]:
        monkeypatch.delenv(name)
    for name in ("redis_url", "agent_id", "data", "policy", "flower_users", "schedules"):
        monkeypatch.setenv(f"{PREFIX}{name.upper()}", SAMPLES[name])


def run(*arguments: str, code: int = 0) -> Any:
    result = CliRunner().invoke(config, arguments)
    assert result.exit_code == code, result.output + str(result.exception)
    return result


def sample(kind: type[PartSettings], name: str) -> str:
    """Return a text that is not the default's."""
    if name in SAMPLES:
        return SAMPLES[name]
    value = kind.model_fields[name].get_default(call_default_factory=True, validated_data={})
    if isinstance(value, bool):
        return str(not value).lower()
    if isinstance(value, int):
        return str(value + 1)
    if isinstance(value, timedelta):
        return f"{int(value.total_seconds()) + 1}s"
    # Addresses that may be missing are the orchestrator's; the rest of what may be missing is paths.
    return (
        "192.0.2.1:99" if isinstance(value, HostPort) or "HostPort" in str(kind.model_fields[name].annotation) else "/x"
    )


@pytest.mark.parametrize(
    ("part", "name"), [(part, name) for part in Part for name in settings_class(part).model_fields]
)
def test_each_setting_is_set_and_read_back(part: Part, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = settings_class(part)
    if name in ("ca", "join_listen"):
        # One without the other is refused.
        monkeypatch.setenv("TACHIKOMA_CA", "/x")
        monkeypatch.setenv("TACHIKOMA_JOIN_LISTEN", "192.0.2.1:1")
    monkeypatch.setenv(variable(kind, name), sample(kind, name))
    first = read_settings(kind, part)
    assert name in ("redis_url", "agent_id", "data", "policy", "flower_users", "schedules") or (
        getattr(first, name) != kind.model_fields[name].get_default(call_default_factory=True, validated_data={})
    )
    monkeypatch.setenv(variable(kind, name), _text(getattr(first, name)))
    assert getattr(read_settings(kind, part), name) == getattr(first, name)


def test_values_come_with_their_origin_and_without_passwords(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text("slots = 3\n")
    monkeypatch.setenv("TACHIKOMA_SETTINGS", str(file))
    monkeypatch.setenv("TACHIKOMA_REDIS_URL", "rediss://u:secret@redis.example.org:1")
    result = run("show", "worker", "-o", "json")
    shown = {fact["setting"]: (fact["value"], fact["origin"]) for fact in json.loads(result.output)}
    assert shown["TACHIKOMA_REDIS_URL"] == ("rediss://u:***@redis.example.org:1", "environment")
    assert shown["TACHIKOMA_SLOTS"] == ("3", "file")
    assert shown["TACHIKOMA_KILL_GRACE"] == ("10s", "default")
    text = run("show", "worker").output
    assert "secret" not in text
    assert re.search("^TACHIKOMA_SLOTS +file +3$", text, re.MULTILINE)


def test_a_check_names_what_no_part_reads_and_what_does_not_exist(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("TACHIKOMA_POLICY")
    monkeypatch.delenv("TACHIKOMA_FLOWER_USERS")
    monkeypatch.delenv("TACHIKOMA_SCHEDULES")
    monkeypatch.setenv("TACHIKOMA_SLTS", "3")
    monkeypatch.setenv("TACHIKOMA_SENTRY_DSN", "https://k@h/1")
    result = run("check", "worker")
    assert result.stdout == f"worker: {len(settings_class(Part.WORKER).model_fields)} settings, all right\n"
    assert result.stderr == "tachikoma: TACHIKOMA_SLTS is no setting of the worker\n"
    monkeypatch.setenv("TACHIKOMA_LOCAL_POLICY", str(tmp_path / "missing"))
    assert f"TACHIKOMA_LOCAL_POLICY: {tmp_path}/missing does not exist\n" in run("check", "worker", code=1).stderr


def test_wrong_settings_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TACHIKOMA_SLOTS", "0")
    assert "worker settings: TACHIKOMA_SLOTS: Input should be greater than or equal to 1" in str(
        run("check", "worker", code=1).exception
    )


def test_settings_with_mistakes_are_shown_as_they_are_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text("labels = {role = 'web'}\n")
    monkeypatch.setenv("TACHIKOMA_SETTINGS", str(file))
    monkeypatch.delenv("TACHIKOMA_AGENT_ID")
    monkeypatch.setenv("TACHIKOMA_REDIS_URL", "rediss://u:secret@redis.example.org:1")
    monkeypatch.setenv("TACHIKOMA_SLOTS", "many")
    result = run("show", "worker", "-o", "json", code=1)
    shown = {fact["setting"]: (fact["value"], fact["origin"]) for fact in json.loads(result.stdout)}
    assert shown["TACHIKOMA_AGENT_ID"] == ("", "missing")
    assert shown["TACHIKOMA_SLOTS"] == ("many", "environment")
    assert shown["TACHIKOMA_LABELS"] == ("role=web", "file")
    assert shown["TACHIKOMA_KILL_GRACE"] == ("10s", "default")
    assert shown["TACHIKOMA_REDIS_URL"] == ("rediss://u:***@redis.example.org:1", "environment")
    assert "TACHIKOMA_AGENT_ID is not set; TACHIKOMA_SLOTS: " in result.stderr
    text = run("show", "worker", code=1)
    assert re.search("^TACHIKOMA_AGENT_ID +missing +-$", text.stdout, re.MULTILINE)


def test_the_settings_of_a_unit_are_shown_and_checked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "environ", os.environ.copy())
    monkeypatch.setattr(installed, "UNIT_FOLDERS", (tmp_path,))
    file, unit = tmp_path / "worker.env", tmp_path / "tachikoma-worker.service"
    file.write_text("TACHIKOMA_AGENT_ID=web-9\nTACHIKOMA_REDIS_URL=unix:///x\nTACHIKOMA_DATA=/x\n")
    unit.write_text(f"[Service]\nUser={pwd.getpwuid(os.geteuid()).pw_name}\nEnvironmentFile={file}\n")
    result = run("show", "worker", "--installed", "-o", "json")
    shown = {fact["setting"]: fact["value"] for fact in json.loads(result.stdout)}
    assert shown["TACHIKOMA_AGENT_ID"] == "web-9"
    assert result.stderr == f"tachikoma: the environment is that of tachikoma-worker.service ({file})\n"
    assert (
        f"settings, from tachikoma-worker.service ({file}), all right" in run("check", "worker", "--installed").stdout
    )
