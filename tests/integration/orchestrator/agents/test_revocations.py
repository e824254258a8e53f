"""The orchestrators' copies of the revocations, on a real Redis."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from members import AGENT, OPERATOR, WEB, Stand
from tachikoma.config.tasks import supervised
from tachikoma.identity.authority import make_request, new_key, private_pem
from tachikoma.identity.svid import Svid
from tachikoma.redis import keys
from tachikoma.redis.commands import Redis
from tachikoma_orchestrator.agents.refreshed_copy import REFRESH_SECONDS
from tachikoma_orchestrator.agents.revocations import Revocations
from tachikoma_orchestrator.caller import Peer


@pytest.fixture
async def stand(redis: Redis, tmp_path: Path) -> Stand:
    return Stand(redis, tmp_path)


async def test_every_orchestrator_learns_of_a_revocation_by_itself(
    stand: Stand, until: Callable[[Callable[[], object], str], Awaitable[None]]
) -> None:
    await stand.joined()
    others = [Revocations(stand.redis) for _ in range(3)]
    # Twice as long is the promise: known within a second.
    assert REFRESH_SECONDS <= 0.5
    async with supervised(*(other.run() for other in others)):
        await asyncio.sleep(0)
        await stand.members.revoker.revoke(AGENT, "stolen", OPERATOR)
        await until(lambda: all(other.active(AGENT) for other in others), "all know the revocation")
    for other in others:
        revoked = other.active(AGENT)
        assert revoked is not None
        assert (revoked.by, revoked.reason) == (str(OPERATOR), "stolen")


async def test_what_was_issued_before_stays_refused_when_the_agent_joins_again(stand: Stand) -> None:
    old = await stand.joined()
    assert stand.revocations.refusal(AGENT, old.chain[0].not_valid_before_utc) == ""
    await stand.members.revoker.revoke(AGENT, "stolen", OPERATOR)
    assert "was revoked" in stand.revocations.refusal(AGENT, dt.datetime.now(dt.UTC) + timedelta(days=1))
    assert await stand.users() == []
    new = await stand.joined()
    assert stand.revocations.active(AGENT) is None
    assert stand.revocations.refusal(AGENT, new.chain[0].not_valid_before_utc) == ""
    assert "issued before" in stand.revocations.refusal(AGENT, old.chain[0].not_valid_before_utc)
    # Its first renewal does not begin before the revocation either, although certificates are backdated.
    key = new_key()
    made = await stand.members.renewals.renew(Peer(WEB, "", new.chain[0]), make_request(key, WEB))
    renewed = Svid.load(made.chain_pem, private_pem(key), made.bundle_pem)
    assert stand.revocations.refusal(AGENT, renewed.chain[0].not_valid_before_utc) == ""


async def test_an_orchestrator_does_not_forget_a_revocation_that_redis_forgets(stand: Stand) -> None:
    await stand.joined()
    before = await stand.redis.hget(keys.REVOKED, AGENT)
    assert before is None
    await stand.members.revoker.revoke(AGENT, "stolen", OPERATOR)
    first = await stand.redis.hget(keys.REVOKED, AGENT)
    await stand.members.revoker.revoke(AGENT, "again", OPERATOR)
    await stand.redis.hset(keys.REVOKED, AGENT, first.replace(b"true", b"false"))
    await stand.revocations.refresh()
    assert stand.revocations.active(AGENT)
    await stand.redis.delete(keys.REVOKED)
    await stand.revocations.refresh()
    assert stand.revocations.active(AGENT)


async def test_an_unreadable_entry_is_an_active_revocation(stand: Stand) -> None:
    await stand.redis.hset(keys.REVOKED, AGENT, "nonsense")
    await stand.revocations.refresh()
    assert stand.revocations.active(AGENT)


async def test_the_copy_stays_while_redis_is_unavailable(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    await stand.joined()
    await stand.members.revoker.revoke(AGENT, "stolen", OPERATOR)

    async def unavailable(name: str) -> dict[bytes, bytes]:
        raise RedisConnectionError(name)

    monkeypatch.setattr(stand.redis, "hgetall", unavailable)
    with pytest.raises(RedisConnectionError):
        await stand.revocations.refresh()
    await stand.revocations.refresh_if_available()
    assert stand.revocations.active(AGENT)


async def test_an_orchestrator_writes_the_revocations_again_that_redis_lost(stand: Stand) -> None:
    await stand.joined()
    revocations = stand.revocations
    await stand.members.revoker.revoke(AGENT, "stolen", OPERATOR)
    await revocations.refresh()
    before = await stand.redis.hgetall(keys.REVOKED)
    await stand.redis.delete(keys.REVOKED)
    await revocations.write_again(stand.redis)
    assert await stand.redis.hgetall(keys.REVOKED) == before
    # A later one in Redis stays.
    later = before[AGENT.encode()].replace(b'"at_ms":1', b'"at_ms":9')
    await stand.redis.hset(keys.REVOKED, AGENT, later)
    await revocations.write_again(stand.redis)
    assert await stand.redis.hgetall(keys.REVOKED) == {AGENT.encode(): later}
