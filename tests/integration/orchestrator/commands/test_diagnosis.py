"""`tachikoma doctor` of the parts beside the agents: planted faults are found, with a real Redis."""

from __future__ import annotations

import asyncio
import datetime as dt
import resource
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from authority import Authority
from tachikoma.diagnosis import redis as redis_diagnosis
from tachikoma.diagnosis.findings import Finding
from tachikoma.errors import ConfigurationError
from tachikoma.identity.authority import CERTIFICATE_FILE, CertificateAuthority
from tachikoma.identity.files import KEY_FILE
from tachikoma.redis.commands import Redis
from tachikoma.redis.passwords import Passwords
from tachikoma.redis.users import SERVICES, rules
from tachikoma.vocabulary.addresses import HostPort
from tachikoma_orchestrator.commands.beat import BeatSettings
from tachikoma_orchestrator.commands.diagnosis import (
    diagnose_beat,
    diagnose_flower,
    diagnose_orchestrator,
    diagnose_server,
)
from tachikoma_orchestrator.commands.flower import FlowerSettings
from tachikoma_orchestrator.processes.settings import OrchestratorSettings

#: Nothing listens there: an orchestrator that is not running is found in each test.
NOWHERE = HostPort("127.0.0.1", 1)


@pytest.fixture(autouse=True)
def _machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine of a test may be slow, and have low limits."""
    monkeypatch.setattr(redis_diagnosis, "SLOW_MS", 60_000)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (65536, 65536))


@pytest.fixture
async def passwords(redis: Redis, tmp_path: Path) -> AsyncIterator[Passwords]:
    """All services are users of Redis, with passwords in a folder."""
    passwords = Passwords(tmp_path / "passwords")
    for name in SERVICES:
        passwords.make(name)
        await redis.execute_command("ACL", "SETUSER", name, *rules(name, passwords.hashes(name)))
    yield passwords
    await redis.execute_command("ACL", "DELUSER", *SERVICES)


@pytest.fixture
def settings(redis_url: str, passwords: Passwords, tmp_path: Path) -> dict[str, Any]:
    """Settings of an orchestrator that are right."""
    Authority().write(tmp_path / "identity", "spiffe://tachikoma.local/service/orchestrator")
    (tmp_path / "identity" / KEY_FILE).chmod(0o600)
    (tmp_path / "policy.yaml").write_text("policies: []\n")
    return {
        "redis_url": redis_url, "redis_password_file": passwords.path("orchestrator"), "listen": NOWHERE,
        "identity": tmp_path / "identity", "policy": tmp_path / "policy.yaml",
    }  # fmt: skip


async def where(diagnose: Any, settings: Any) -> list[str]:
    """Return where there are findings; the checks run their own loop, as they do in the command."""
    findings: list[Finding] = await asyncio.to_thread(lambda: list(diagnose(settings)))
    assert all(finding.what and finding.remedy for finding in findings)
    return [finding.where for finding in findings]


async def test_the_server_is_compared_with_the_requirements(settings: dict[str, Any], redis: Redis) -> None:
    # The server of these tests keeps nothing on disk, and lets every client in.
    always = {"Redis: appendonly", "Redis: aclfile", "Redis: user default"}
    right = OrchestratorSettings(**settings, audit_durable=False)
    assert set(await where(diagnose_server, right)) == always
    await redis.execute_command("ACL", "SETUSER", "orchestrator", "+flushall")
    await redis.config_set("maxmemory-policy", "allkeys-lru")
    try:
        found = set(await where(diagnose_server, right))
    finally:
        await redis.config_set("maxmemory-policy", "noeviction")
    assert found == {*always, "Redis: maxmemory-policy", "Redis: user orchestrator"}


async def test_the_server_is_not_compared_without_the_password_of_the_check(
    settings: dict[str, Any], passwords: Passwords
) -> None:
    passwords.path("check").unlink()
    with pytest.raises(ConfigurationError, match="can read no password 'check' beside"):
        await where(diagnose_server, OrchestratorSettings(**settings))


async def test_an_orchestrator_with_too_few_files_or_without_its_authority_is_found(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    CertificateAuthority.create(tmp_path / "ca", "tachikoma.local", name="Test", lifetime=dt.timedelta(days=365))
    joining = {"ca": tmp_path / "ca", "join_listen": NOWHERE}
    assert await where(diagnose_orchestrator, OrchestratorSettings(**settings, **joining)) == ["TACHIKOMA_LISTEN"]
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 1024))
    found = await where(diagnose_orchestrator, OrchestratorSettings(**settings))
    assert found == ["TACHIKOMA_LISTEN", "TACHIKOMA_CONNECTIONS"]
    (tmp_path / "ca" / CERTIFICATE_FILE).unlink()
    found = await where(diagnose_orchestrator, OrchestratorSettings(**settings, **joining, connections=100))
    assert found == ["TACHIKOMA_CA", "TACHIKOMA_LISTEN"]


async def test_faults_of_beat_are_found(redis_url: str, passwords: Passwords, tmp_path: Path) -> None:
    schedules = tmp_path / "schedules.yaml"
    schedules.write_text("schedules: []\n")
    given = {"redis_url": redis_url, "redis_password_file": passwords.path("beat"), "schedules": str(schedules)}
    assert await where(diagnose_beat, BeatSettings(**given)) == []
    other = given | {"redis_password_file": passwords.path("flower")}
    assert await where(diagnose_beat, BeatSettings(**other)) == ["TACHIKOMA_REDIS_URL"]
    schedules.write_text("schedule: []\n")
    assert await where(diagnose_beat, BeatSettings(**given, identity=tmp_path / "none")) == [
        "TACHIKOMA_IDENTITY",
        "TACHIKOMA_REDIS_…",
        "TACHIKOMA_SCHEDULES",
    ]


async def test_faults_of_flower_are_found(redis_url: str, passwords: Passwords, tmp_path: Path) -> None:
    users = tmp_path / "users"
    users.write_text("ada:secret\n")
    users.chmod(0o600)
    given = {"redis_url": redis_url, "redis_password_file": passwords.path("flower"), "flower_users": users}
    assert await where(diagnose_flower, FlowerSettings(**given)) == []
    users.write_text("ada\n")
    users.chmod(0o644)
    found = await where(diagnose_flower, FlowerSettings(**given, flower_key=tmp_path / "none"))
    assert found == [str(users), "TACHIKOMA_FLOWER_USERS", "TACHIKOMA_FLOWER_CERTIFICATE", str(tmp_path / "none")]
