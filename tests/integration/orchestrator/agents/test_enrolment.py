"""Tokens on a real Redis: which are accepted, and which are not."""

from __future__ import annotations

import asyncio
import hashlib
import time
from datetime import timedelta
from pathlib import Path

import pytest

from members import AGENT, DOMAIN, OPERATOR, Stand, refused
from tachikoma.errors import (
    AgentUnknown,
    FailedPrecondition,
    InvalidRequest,
)
from tachikoma.identity.signed_messages import Enrolment
from tachikoma.identity.signing import sign
from tachikoma.identity.spiffe import service_id
from tachikoma.redis import keys
from tachikoma.redis.commands import Redis


@pytest.fixture
async def stand(redis: Redis, tmp_path: Path) -> Stand:
    return Stand(redis, tmp_path)


async def test_the_secret_is_only_in_the_token(stand: Stand) -> None:
    token = await stand.token()
    assert token.secret.hex() not in repr(token)
    assert "secret" not in repr(token)
    everything = [await stand.redis.get(keys.enrolment(AGENT))]
    everything += [value for _, event in await stand.redis.xrange(keys.AUDIT) for value in event.values()]
    for value in everything:
        assert token.secret not in value
        assert token.secret.hex().encode() not in value


async def test_a_new_token_replaces_the_previous_one(stand: Stand) -> None:
    old, new = await stand.token(), await stand.token()
    with refused():
        await stand.join(old)
    await stand.join(new)


async def test_write_access_to_redis_is_not_enough_to_enroll(stand: Stand) -> None:
    token = await stand.token()
    stored: bytes = await stand.redis.get(keys.enrolment(AGENT))
    secret = b"m" * 32
    svid = await stand.joined("web-2")
    claims = Enrolment(
        iss=str(service_id(DOMAIN, "orchestrator")), iat=int(time.time()), agent=AGENT,
        secret_sha256=hashlib.sha256(secret).hexdigest(), made_ms=0, exp=int(time.time()) + 600, by="me",
    )  # fmt: skip
    for forged in (
        sign(svid, claims),
        sign(svid, claims.model_copy(update={"iss": str(svid.spiffe_id)})),
        stored.decode().rsplit(".", 1)[0] + ".AAAA",
        "{}",
        "",
        b"\xff\xfe",
    ):
        await stand.redis.set(keys.enrolment(AGENT), forged)
        with refused():
            await stand.join(token, secret=secret)
    # Another agent's enrolment under its name.
    other = await stand.token("web-3")
    await stand.redis.copy(keys.enrolment("web-3"), keys.enrolment(AGENT), replace=True)
    with refused():
        await stand.join(token, secret=other.secret)


async def test_an_agent_that_is_online_cannot_be_enrolled(stand: Stand) -> None:
    await stand.redis.set(keys.info(AGENT), "{}")
    with pytest.raises(FailedPrecondition, match="online"):
        await stand.token()
    assert await stand.events() == []


@pytest.mark.parametrize("ttl", [timedelta(days=2), timedelta(seconds=-1)])
async def test_a_token_is_valid_for_a_day_at_most(stand: Stand, ttl: timedelta) -> None:
    with pytest.raises(InvalidRequest):
        await stand.token(ttl=ttl)


@pytest.mark.parametrize("agent", ["", "a.b", "a:b", "*", "../x", "x" * 64, "web-1\n"])
async def test_an_invalid_id_can_be_neither_enrolled_nor_revoked(stand: Stand, agent: str) -> None:
    with pytest.raises(InvalidRequest):
        await stand.token(agent)
    with pytest.raises(AgentUnknown):
        await stand.members.revoker.revoke(agent, "why", OPERATOR)
    assert await stand.redis.keys("orch:*") == []


async def test_a_token_expires(stand: Stand) -> None:
    token = await stand.token(ttl=timedelta(milliseconds=1))
    # Longer than its life.
    await asyncio.sleep(0.01)
    with refused():
        await stand.join(token)


async def test_a_token_expires_even_if_redis_keeps_its_enrolment(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    token = await stand.token(ttl=timedelta(minutes=1))
    await stand.redis.persist(keys.enrolment(AGENT))
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 61)
    with refused("has expired"):
        await stand.join(token)


async def test_a_revoked_agent_cannot_join_with_an_enrolment_that_redis_kept(stand: Stand) -> None:
    token = await stand.token()
    stored = await stand.redis.get(keys.enrolment(AGENT))
    await stand.members.revoker.revoke(AGENT, "stolen", OPERATOR)
    with refused():
        await stand.join(token)
    await stand.redis.set(keys.enrolment(AGENT), stored)
    with refused("before its owner was revoked"):
        await stand.join(token)
    # Nor where Redis forgets the revocation.
    await stand.redis.delete(keys.REVOKED)
    with refused("before its owner was revoked"):
        await stand.join(token)
