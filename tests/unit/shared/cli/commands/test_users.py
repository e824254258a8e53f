"""`tachikoma users`."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

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
