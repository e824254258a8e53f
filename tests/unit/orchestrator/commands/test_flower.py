"""`tachikoma flower` before it listens: what it does not begin with."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from tachikoma.errors import ConfigurationError
from tachikoma_orchestrator.commands.flower import flower


def refused(**environment: str | Path) -> str:
    """Why it does not start."""
    given = {f"TACHIKOMA_{name.upper()}": str(value) for name, value in environment.items()}
    result = CliRunner().invoke(flower, [], env={"TACHIKOMA_REDIS_URL": "redis://localhost", **given})
    assert isinstance(result.exception, ConfigurationError), result
    return str(result.exception)


@pytest.fixture
def users(tmp_path: Path) -> Path:
    file = tmp_path / "users"
    file.write_text("alice:secret\n")
    return file


def test_without_a_file_of_users_it_does_not_start(tmp_path: Path) -> None:
    assert refused() == "flower settings: TACHIKOMA_FLOWER_USERS is not set; set it or give --users"
    assert refused(flower_users=tmp_path / "none").startswith("cannot read the users of Flower from ")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"", "there is no user in "),
        (b"\n \n", "there is no user in "),
        (b"somebody\n", "users:1: is not user:password in ASCII"),
        (b"a:b\n:c\n", "users:2: is not user:password in ASCII"),
        (b"a:\n", "users:1: is not user:password in ASCII"),
        ("jörg:geheim\n".encode(), "users:1: is not user:password in ASCII"),
        (b"a:\x00\n", "users:1: is not user:password in ASCII"),
        (b"\xff:x\n", "cannot read the users of Flower from "),
    ],
)
def test_without_a_user_that_has_a_password_it_does_not_start(tmp_path: Path, text: bytes, said: str) -> None:
    (tmp_path / "users").write_bytes(text)
    reason = refused(flower_users=tmp_path / "users")
    assert said in reason
    assert "geheim" not in reason


@pytest.mark.parametrize(
    "address", ["", "localhost", "5555", ":5555", "localhost:", "localhost:http", "localhost:65536"]
)
def test_an_address_without_host_or_port_is_refused(users: Path, address: str) -> None:
    reason = refused(flower_users=users, flower_listen=address)
    assert reason.startswith(f"flower settings: TACHIKOMA_FLOWER_LISTEN (--listen): {address!r} has ")
    assert "; write host:port, " in reason


def test_a_certificate_comes_with_its_key(users: Path) -> None:
    assert "given together" in refused(flower_users=users, flower_key=users)


def test_redis_over_tls_needs_a_certificate(users: Path) -> None:
    assert refused(flower_users=users, redis_url="rediss://localhost").startswith("rediss:// needs an identity, or ")
