"""The steps for Redis: its users, with agents that joined since, and its version."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from tachikoma.errors import ConfigurationError
from tachikoma.identity.authority import CertificateAuthority
from tachikoma.identity.spiffe import service_id
from tachikoma.identity.svid import Svid
from tachikoma.redis.acl_file import agents_in
from tachikoma.redis.passwords import Passwords
from tachikoma.redis.users import ORCHESTRATOR
from tachikoma.setup.steps import Host, apply
from tachikoma_orchestrator.commands.setup.redis_steps import (
    LoadedCertificate,
    RedisUsers,
    configuration,
    waits_for_disk,
)

PLAIN = Host(owners=False, services=False)


@pytest.mark.parametrize(
    ("line", "durable"),
    [
        ("Redis server v=7.0.15 sha=0:0 malloc=jemalloc", False),
        ("Redis server v=7.2.4 sha=0:0", True),
        ("Valkey server v=9.1.0 sha=0:0", True),
        ("Redis server v=6.2.1", False),
        ("something else", False),
    ],
)
def test_the_version_says_whether_redis_waits_for_its_disk(line: str, durable: bool, tmp_path: Path) -> None:
    program = tmp_path / "redis-server"
    program.write_text(f"#!/bin/sh\necho '{line}'\n")
    program.chmod(0o755)
    assert waits_for_disk(str(program)) is durable


def test_without_the_program_the_remedy_is_named() -> None:
    with pytest.raises(ConfigurationError, match="--redis-url"):
        waits_for_disk("/nonexistent/redis-server")


def test_agents_that_joined_stay_when_the_users_change(tmp_path: Path) -> None:
    passwords = Passwords(tmp_path / "passwords")
    passwords.make(ORCHESTRATOR)
    step = RedisUsers(tmp_path / "users.acl", passwords.folder)
    assert len(list(apply([step], PLAIN))) == 1
    # Redis writes the file in its own words when an agent joins.
    acl = tmp_path / "users.acl"
    acl.write_text(acl.read_text().replace("user ", "user  ") + f"user agent.web-1 on #{'a' * 64} ~x\n")
    assert list(apply([step], PLAIN)) == []
    passwords.make("admin")
    assert len(list(apply([step], PLAIN))) == 1
    assert agents_in(acl.read_text()) == {"agent.web-1": ["a" * 64]}
    assert "user admin " in acl.read_text()
    assert list(apply([step], PLAIN)) == []


def test_the_configuration_has_tls_only_and_the_durability_of_the_version(tmp_path: Path) -> None:
    def lines(durable: bool) -> list[str]:
        text = configuration(
            data=tmp_path, acl=tmp_path / "a", identity=tmp_path / "i", bind="::", port=6379, durable=durable
        )
        return text.splitlines()

    assert {"port 0", "tls-port 6379", "tls-auth-clients yes", "appendfsync always"} <= set(lines(True))
    assert "appendfsync everysec" in lines(False)


def test_a_redis_that_does_not_run_loads_its_certificate_at_its_start(tmp_path: Path) -> None:
    step = LoadedCertificate("127.0.0.1", 1, tmp_path, tmp_path / "password")
    assert step.pending(PLAIN) == ""
    (tmp_path / "svid.pem").write_text("x")
    (tmp_path / "svid_key.pem").write_text("x")
    assert step.pending(PLAIN) == ""


def test_a_redis_with_a_certificate_for_another_name_is_restarted_and_not_asked_to_load_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ca = CertificateAuthority.create(tmp_path / "ca", "example.org", name="CA", lifetime=timedelta(days=9))
    pem, own = (tmp_path / "ca/ca.pem").read_bytes(), service_id("example.org", "redis")

    def issued(name: str) -> Svid:
        return ca.issue(own, bundle_pem=pem, lifetime=timedelta(days=1), dns_names=(name,))

    issued("new.example.org").write(tmp_path / "identity")
    step = LoadedCertificate("new.example.org", 1, tmp_path / "identity", tmp_path / "password")
    for name, words in (("old.example.org", ""), ("new.example.org", "let Redis load its new certificate")):
        der = issued(name).chain[0].public_bytes(Encoding.DER)
        monkeypatch.setattr(LoadedCertificate, "_shown", lambda _, der=der: der)
        assert step.pending(PLAIN) == words
