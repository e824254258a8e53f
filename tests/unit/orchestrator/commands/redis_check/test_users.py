"""Findings about users. Live servers are checked in tests/security."""

from __future__ import annotations

import hashlib
from pathlib import Path

from tachikoma.diagnosis.findings import Finding
from tachikoma.redis.passwords import Passwords
from tachikoma_orchestrator.commands.redis_check.acl import Acl, parse_acl
from tachikoma_orchestrator.commands.redis_check.users import (
    default_user_findings,
    revoked_findings,
    stranger_finding,
    user_findings,
)

USER = "orchestrator"


def acl(text: str) -> Acl:
    return parse_acl(text, {})


def whats(findings: object) -> list[str]:
    found = list(findings)  # type: ignore[call-overload]
    assert all(isinstance(item, Finding) and item.remedy for item in found)
    return [item.what for item in found]


def hash_of(passwords: Passwords) -> str:
    return hashlib.sha256(passwords.path(USER).read_text().split()[0].encode()).hexdigest()


def test_a_user_as_it_should_be_is_no_finding(tmp_path: Path) -> None:
    passwords = Passwords(tmp_path)
    passwords.make(USER)
    users = {USER: acl(f"on #{hash_of(passwords)} +get")}
    assert whats(user_findings(users, {USER: acl("on +get")}, passwords)) == []
    assert whats(user_findings(users, {USER: acl("on +get")}, None)) == []


def test_every_difference_of_a_user_is_found(tmp_path: Path) -> None:
    passwords, wanted = Passwords(tmp_path), {USER: acl("on +get")}
    assert whats(user_findings({}, wanted, None)) == ["does not exist, so it cannot connect"]
    assert whats(user_findings({USER: acl("off #aa +get")}, wanted, None)) == ["is off, so it cannot connect"]
    assert whats(user_findings({USER: acl("on +get")}, wanted, None)) == ["has no password"]
    assert whats(user_findings({USER: acl("on #aa +set")}, wanted, None)) == ["has in addition +set; lacks +get"]
    (unknown,) = whats(user_findings({USER: acl("on #aa +get")}, wanted, passwords))
    assert unknown == f"has no password in {tmp_path}: is it still in use?"
    # Agents that joined have passwords that are in no folder.
    joined = {USER: acl("on #aa +get"), "enroller": acl("on #bb")}
    assert whats(user_findings(joined, wanted, passwords)) == []
    passwords.make(USER)
    own = hash_of(passwords)
    assert whats(user_findings({USER: acl("on +get")}, wanted, passwords)) == ["does not accept its password"]
    assert whats(user_findings({USER: acl(f"on #{own} #aa #bb +get")}, wanted, passwords)) == [
        "accepts 2 passwords that are not its own"
    ]


def test_the_default_user_is_off_and_can_replay() -> None:
    assert whats(default_user_findings(None)) == []
    assert whats(default_user_findings(acl("off ~* &* +@all"))) == []
    assert whats(default_user_findings(acl("on nopass ~* &* +@all"))) == [
        "any client may do everything, without a password"
    ]
    assert whats(default_user_findings(acl("on #aa +get"))) == ["any client may do +get, with a password"]
    (replay,) = whats(default_user_findings(acl("off")))
    assert "a restart of Redis drops" in replay


def test_a_revoked_agent_has_neither_user_nor_password(tmp_path: Path) -> None:
    passwords, name = Passwords(tmp_path), "agent.web-1"
    assert whats(revoked_findings([name], {}, passwords)) == []
    passwords.make(name)
    assert whats(revoked_findings([name], {name: acl("on")}, passwords)) == [
        "is revoked, and can still connect",
        "is revoked, and still has a password: the next ACL file would let it connect",
    ]


def test_an_unknown_user_is_named_with_what_it_may_do() -> None:
    found = stranger_finding("eve", ["read results", "read output"])
    assert (found.where, found.what) == ("user eve", "is not a user of Tachikoma and may read results, read output")
