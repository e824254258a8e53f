"""`tachikoma doctor worker`: planted faults on an agent's host are found."""

from __future__ import annotations

import platform
import resource
import socket
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from authority import Authority
from tachikoma.diagnosis import redis as redis_diagnosis
from tachikoma.identity.files import KEY_FILE
from tachikoma.identity.join_token import Joined
from tachikoma.redis import keys
from tachikoma.streams.heartbeat import Heartbeat
from tachikoma_worker import diagnosis
from tachikoma_worker.cgroups.hierarchy import NoHierarchy
from tachikoma_worker.diagnosis import diagnose
from tachikoma_worker.settings import WorkerSettings

Found = Callable[..., list[str]]


@pytest.fixture
def heartbeat(redis_url: str) -> Iterator[Callable[..., None]]:
    """Write the registration of a worker that is online on this host, with these values besides right ones."""
    client = Redis.from_url(redis_url)

    def write(**values: Any) -> None:
        given: dict[str, Any] = {
            "boot": "b", "run": "r", "version": version("tachikoma-exec"), "hostname": platform.node(), "running": 0,
            "slots": 4, "load": 0, "memory_used": 0, "disk_used": 0, "isolation": ("shared", "private", "sealed"),
            **values,
        }  # fmt: skip
        client.set(keys.info("web-1"), Heartbeat(**given).model_dump_json())

    write()
    yield write
    client.delete(keys.info("web-1"))
    client.close()


@pytest.fixture
def found(redis_url: str, heartbeat: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Found:
    """Return where the findings are, with these settings besides right ones."""
    Authority().write(tmp_path / "identity", "spiffe://tachikoma.local/agent/web-1")
    (tmp_path / "identity" / KEY_FILE).chmod(0o600)
    monkeypatch.setattr(redis_diagnosis, "SLOW_MS", 60_000)
    # The cgroups of the machine of a test may lack some.
    monkeypatch.setattr(diagnosis, "_check_cgroups", lambda _: iter(()))

    def run(**values: Any) -> list[str]:
        given = {
            "agent_id": "web-1", "redis_url": redis_url, "identity": tmp_path / "identity", "data": tmp_path / "data",
            "slots": 4, **values,
        }  # fmt: skip
        return [finding.where for finding in diagnose(WorkerSettings(**given))]

    return run


def test_a_host_that_is_in_order_has_no_finding(found: Found) -> None:
    assert found() == []


def test_planted_faults_are_found(found: Found, tmp_path: Path) -> None:
    missing, wrong = tmp_path / "missing", tmp_path / "policy.yaml"
    wrong.write_text("version: 1\npolices: []\n")
    data = tmp_path / "file"
    data.touch()
    password = tmp_path / "password"
    password.write_text("x\n")
    password.chmod(0o644)
    assert found(identity=missing) == ["TACHIKOMA_IDENTITY", "TACHIKOMA_REDIS_…"]
    assert found(redis_url=f"unix://{missing}") == ["TACHIKOMA_REDIS_URL"]
    assert found(redis_password_file=password) == [str(password), "TACHIKOMA_REDIS_URL"]
    assert found(data=data) == [str(data)]
    assert found(spawner=missing) == ["TACHIKOMA_SPAWNER"]
    assert found(local_policy=wrong) == ["TACHIKOMA_LOCAL_POLICY"]
    (tmp_path / "identity" / KEY_FILE).chmod(0o640)
    assert found() == [str(tmp_path / "identity" / KEY_FILE)]


def test_too_few_descriptors_are_found(found: Found, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 256))
    assert found(slots=64) == ["TACHIKOMA_SLOTS"]


def test_a_missing_spawner_is_found(found: Found, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnosis, "PROGRAM", tmp_path / "none")
    assert found() == [str(tmp_path / "none")]


def test_limits_that_a_host_cannot_enforce_are_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(diagnosis, "detect", lambda *_, **__: NoHierarchy("a test"))
    settings = WorkerSettings(agent_id="web-1", redis_url="unix:///x", data=tmp_path)
    (finding,) = diagnosis._check_cgroups(settings)
    assert "without limits" in finding.what


@pytest.mark.parametrize(
    ("values", "where"),
    [
        ({"version": "0.0.1"}, "versions"),
        ({"hostname": "elsewhere"}, "agent web-1"),
        ({"warnings": ("commands cannot be isolated at sealed: no namespaces",)}, "spawner"),
    ],
)
def test_faults_of_the_running_worker_are_found(
    found: Found, heartbeat: Callable[..., None], values: dict[str, Any], where: str
) -> None:
    heartbeat(**values)
    assert found() == [where]


def test_a_worker_that_is_offline_is_found(found: Found) -> None:
    assert found(agent_id="web-2") == ["agent web-2"]


def test_a_level_of_isolation_that_the_host_cannot_enforce_is_found(
    found: Found, heartbeat: Callable[..., None]
) -> None:
    heartbeat(isolation=("shared", "private"))
    assert found(isolation="private") == []
    assert found(isolation="sealed") == ["TACHIKOMA_ISOLATION"]


def test_an_orchestrator_that_renews_nothing_is_found(found: Found, tmp_path: Path) -> None:
    with socket.socket() as taken:
        # Bound and not listening: no other program can answer there.
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        Joined(address=address, server_name="orchestrator").save(tmp_path / "identity")
        assert found() == [address]
    (tmp_path / "identity" / "joined.json").write_text("{")
    assert found() == [str(tmp_path / "identity")]
