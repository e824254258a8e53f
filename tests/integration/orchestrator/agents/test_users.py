"""People: enrolled, joined, listed and revoked, on a real Redis."""

from __future__ import annotations

from pathlib import Path

import pytest

from members import DOMAIN, OPERATOR, Stand, refused
from tachikoma.errors import InvalidRequest
from tachikoma.identity.spiffe import Member, user_id
from tachikoma.redis import keys
from tachikoma.redis.commands import Redis

ADA = "user/ada.l"


@pytest.fixture
async def stand(redis: Redis, tmp_path: Path) -> Stand:
    return Stand(redis, tmp_path)


async def test_a_person_joins_once_without_a_redis_user_and_is_listed(stand: Stand) -> None:
    token = await stand.token(ADA)
    assert token.spiffe_id == user_id(DOMAIN, "ada.l")
    issued = await stand.join(token)
    assert (issued.redis_password, issued.redis_url) == ("", "")
    with refused("no enrolment exists"):
        await stand.join(token)
    [found] = await stand.members.users.describe()
    assert (found.name, found.enrolled_by, found.address, found.revoked) == (
        "ada.l", str(OPERATOR), "192.0.2.9", False,
    )  # fmt: skip
    assert found.joined is not None
    assert [(event.event, event.requested_by, event.agent_id) for event in await stand.events()] == [
        ("user_enrolled", str(token.spiffe_id), ""), ("user_joined", str(token.spiffe_id), ""),
    ]  # fmt: skip
    # An agent of the same name is another member.
    assert Member.parse("ada") == Member.agent("ada")
    assert not await stand.redis.hexists(keys.JOINED, ADA)


async def test_a_revoked_person_is_refused_until_the_next_join(stand: Stand) -> None:
    svid = await stand.joined(ADA)
    old = await stand.token(ADA)
    await stand.members.revoker.revoke_user("ada.l", "left", OPERATOR)
    begins = svid.chain[0].not_valid_before_utc
    assert "user ada.l was revoked" in stand.revocations.refusal(ADA, begins)
    with refused():
        await stand.join(old)
    found = await stand.members.users.info("ada.l")
    assert (found.revoked, found.revoked_by, found.revoke_reason, found.joined) == (True, str(OPERATOR), "left", None)
    assert (await stand.members.users.describe()) == [found]
    assert (await stand.codes())[-1] == "user_revoked"

    again = await stand.joined(ADA)
    assert stand.revocations.refusal(ADA, again.chain[0].not_valid_before_utc) == ""
    assert "issued before user ada.l was revoked" in stand.revocations.refusal(ADA, begins)


async def test_a_person_of_another_source_can_be_revoked_and_an_operator_not_by_itself(stand: Stand) -> None:
    await stand.members.revoker.revoke_user("by-spire", "left", OPERATOR)
    assert stand.revocations.active("user/by-spire") is not None
    with pytest.raises(InvalidRequest, match="cannot revoke yourself"):
        await stand.members.revoker.revoke_user("root", "oops", OPERATOR)
    for name in ("", "a/b", ".", "x y", "../root"):
        with pytest.raises(InvalidRequest):
            await stand.members.revoker.revoke_user(name, "x", OPERATOR)
        with pytest.raises(InvalidRequest):
            await stand.token(f"user/{name}")


async def test_an_entry_that_cannot_be_read_is_shown_without_its_facts(stand: Stand) -> None:
    await stand.redis.hset(keys.USERS, ADA, b"nonsense")
    [found] = await stand.members.users.describe()
    assert (found.name, found.joined, found.enrolled_by) == ("ada.l", None, "")
