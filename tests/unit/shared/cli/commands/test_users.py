"""`tachikoma users`."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tachikoma.client import PROFILE_VARIABLE
from tachikoma.client.membership import joining, token_file
from tachikoma.errors import ConfigurationError
from tachikoma.identity.spiffe import SpiffeId
from tachikoma.vocabulary.users import UserEnrolment, UserInfo

ADA = UserInfo(name="ada", joined=datetime.now(UTC), enrolled_by="spiffe://x/user/root", address="192.0.2.9")


def test_people_are_listed_with_their_state(run: Any, client: Any) -> None:
    revoked = UserInfo(name="bob", revoked=True, revoked_by="root", revoke_reason="left \x1b[m")
    client.answers["users"] = (ADA, revoked)
    done = run("users", "ls")
    rows = [line.split() for line in done.out.splitlines()]
    assert [row[:2] for row in rows[1:]] == [["ada", "active"], ["bob", "revoked"]]
    assert "192.0.2.9" in rows[1]
    assert done.err.splitlines() == [r"bob: revoked by root: left \x1b[m"]
    assert [item["name"] for item in json.loads(run("users", "ls", "-o", "json").out)] == ["ada", "bob"]


def test_a_token_is_the_only_output_and_the_command_that_takes_it_a_hint(run: Any, client: Any) -> None:
    client.answers["enroll_user"] = UserEnrolment(name="ada", token="t-1", expires=datetime.now(UTC))
    done = run("users", "add", "ada", "--ttl", "5m")
    assert done.out == "t-1\n"
    assert "tachikoma login" in done.err


def test_a_person_is_revoked_with_a_reason(run: Any, client: Any) -> None:
    client.answers["revoke_user"] = ADA.model_copy(update={"revoked": True})
    assert run("users", "revoke", "ada", "--reason", "left", "--yes").out == "ada: revoked\n"
    assert run("users", "revoke", "ada", "--yes").code == 2


def test_a_profile_that_cannot_be_written_is_found_before_the_token_is_used(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    profile = tmp_path / "file" / "profile.json"
    monkeypatch.setenv(PROFILE_VARIABLE, str(profile))
    token = SimpleNamespace(spiffe_id=SpiffeId.parse("spiffe://tachikoma.local/user/ada"))
    monkeypatch.setattr(token_file, "read_token", lambda *_, **__: token)
    used = []

    async def join(*given: object) -> None:
        used.append(given)

    monkeypatch.setattr(joining, "join", join)
    done = run("login", "--identity", str(tmp_path / "identity"))
    assert isinstance(done.error, ConfigurationError)
    assert str(done.error).startswith(f"cannot write the client profile {profile}: ")
    assert used == []
