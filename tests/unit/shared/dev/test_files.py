"""Configuration files that are written once."""

from __future__ import annotations

from pathlib import Path

from tachikoma.dev import files
from tachikoma.identity.spiffe import SpiffeId
from tachikoma.policy.decide import SEARCH_PATH, PolicySet
from tachikoma.vocabulary.isolation import Isolation
from tachikoma.vocabulary.requests import ExecRequest

USER = SpiffeId.parse("spiffe://tachikoma.local/user/alice")


def decision(path: Path, *command: str, subject: str = str(USER)) -> bool:
    request = ExecRequest(agent_id="agent-1", command=command, environment={"A": "b"}, work_dir="/tmp", user="root")
    return PolicySet.load(path).explain(request, subject, SEARCH_PATH, {}, "").decision.allowed


def test_the_policy_is_valid_and_allows_all_but_to_stop_the_machine(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    files.write_policy(path, USER)
    assert PolicySet.load(path).is_operator(str(USER))
    assert decision(path, "/bin/sh", "-c", "anything")
    assert decision(path, "uname", subject="spiffe://tachikoma.local/schedule/nightly")
    assert not decision(path, "reboot")
    assert not decision(path, "uname", subject="spiffe://tachikoma.local/user/bob")


def test_a_new_policy_can_isolate_commands(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    assert files.write_policy(path, USER)
    files.isolate(path)
    request = ExecRequest(agent_id="agent-1", command=("/bin/true",))
    grant = PolicySet.load(path).explain(request, str(USER), SEARCH_PATH, {}, "").decision.grant
    assert grant is not None
    assert grant.isolation is Isolation.PRIVATE
    assert not files.write_policy(path, USER)


def test_files_are_secret_where_they_must_be(tmp_path: Path) -> None:
    key, users = tmp_path / "audit.key", tmp_path / "flower.users"
    files.write_audit_key(key)
    files.write_flower_users(users)
    assert len(key.read_bytes()) == 32
    name, _, password = users.read_text().strip().partition(":")
    assert name == files.FLOWER_USER
    assert len(password) >= 16
    for path in (key, users):
        assert path.stat().st_mode & 0o777 == 0o600


def test_what_the_developer_changed_stays(tmp_path: Path) -> None:
    for number, write in enumerate(
        (lambda path: files.write_policy(path, USER), files.write_audit_key, files.write_flower_users)
    ):
        path = tmp_path / str(number)
        path.write_text("mine")
        write(path)
        assert path.read_text() == "mine"
