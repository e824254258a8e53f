"""The lives of Redis, as orchestrators number them, on a real Redis whose replication id changes."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from authority import Authority
from tachikoma.config.tasks import supervised
from tachikoma.identity.signed_messages import LifeRecord
from tachikoma.identity.signing import sign, verify
from tachikoma.identity.svid import Svid
from tachikoma.redis import gate, keys
from tachikoma.redis.access import connect
from tachikoma.redis.commands import Redis
from tachikoma.vocabulary.audit import AuditCode
from tachikoma_orchestrator.audit.entries import read_entries
from tachikoma_orchestrator.audit.trail import AuditTrail
from tachikoma_orchestrator.store import lives as module
from tachikoma_orchestrator.store.known import Known, share_known
from tachikoma_orchestrator.store.lives import Lives

ORCHESTRATOR = "spiffe://tachikoma.local/service/orchestrator"


class Identity:
    """A source of one identity."""

    def __init__(self, svid: Svid) -> None:
        self.svid = svid

    def current(self) -> Svid:
        return self.svid

    def close(self) -> None:
        """Nothing to close."""


class Stand:
    """One orchestrator on a Redis: its lives, and a trail through the gate."""

    def __init__(self, redis_url: str, identity: Identity) -> None:
        self.last = Known()
        self.own = connect(redis_url, name="life", max_connections=2)
        self.lives = Lives(self.own, identity, self.last, "a test")  # type: ignore[arg-type]
        self.redis = connect(redis_url, name="gated", gate=self.lives)
        share_known(self.redis, self.last)
        self.trail = AuditTrail(self.redis)
        self.remembered = 0
        self.lives.on_loss(self.remember)

    async def remember(self, redis: Redis) -> None:
        # An event that is written again has a number that was not used before.
        assert int(await redis.get(keys.AUDIT_SEQ) or 0) >= self.last.seq
        self.remembered += 1

    @property
    def life(self) -> tuple[int, int]:
        return self.lives.number, self.lives.valid_from

    async def close(self) -> None:
        await self.own.aclose()
        await self.redis.aclose()


@pytest.fixture(autouse=True)
def no_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HOLD_SECONDS", 0)


@pytest.fixture
def identity() -> Identity:
    return Identity(Authority().svid(ORCHESTRATOR))


@asynccontextmanager
async def orchestrator(redis_url: str, identity: Identity) -> AsyncIterator[Stand]:
    stand = Stand(redis_url, identity)
    try:
        await stand.lives.look()
        yield stand
    finally:
        await stand.close()


@pytest.fixture
async def stand(redis: Redis, redis_url: str, identity: Identity) -> AsyncIterator[Stand]:
    async with orchestrator(redis_url, identity) as made:
        yield made


async def new_replid(redis: Redis) -> None:
    """Give the server another replication id, as a restart, a restore or a promotion does. Its data stays."""
    await redis.execute_command("REPLICAOF", "127.0.0.1", "1")
    await redis.execute_command("REPLICAOF", "NO", "ONE")


async def events(redis: Redis) -> list[tuple[int, str]]:
    return [(event.seq, event.event) for event in read_entries(await redis.xrange(keys.AUDIT))]


async def forget_last_events(redis: Redis, number: int) -> None:
    """Let the trail go back by some events."""
    for cursor, _ in await redis.xrevrange(keys.AUDIT, count=number):
        await redis.execute_command("XDEL", keys.AUDIT, cursor)
    await redis.execute_command("INCRBY", keys.AUDIT_SEQ, -number)


async def test_the_first_life_is_recorded_and_no_event(stand: Stand, redis: Redis) -> None:
    await stand.lives.look()
    assert stand.life == (1, 0)
    assert await events(redis) == []
    token = await redis.get(keys.LIFE)
    assert token is not None
    svid = stand.lives._identity.current()
    record = verify(token.decode(), LifeRecord, svid.bundle, svid.spiffe_id)
    assert record.replid == (await redis.info("replication"))["master_replid"]


async def test_a_life_that_lost_nothing_has_the_next_number_and_voids_no_order(stand: Stand, redis: Redis) -> None:
    await stand.trail.append(AuditCode.POLICY_CHANGED, reason="x")
    await new_replid(redis)
    await stand.lives.look()
    assert stand.life == (2, 0)
    assert await events(redis) == [(1, "policy_changed"), (2, "redis_life")]
    assert (stand.remembered, stand.lives.lost_at) == (0, None)


async def test_a_life_without_the_last_event_voids_what_was_queued_and_its_numbers_continue(
    stand: Stand, redis: Redis
) -> None:
    for _ in range(5):
        await stand.trail.append(AuditCode.POLICY_CHANGED, reason="x")
    await forget_last_events(redis, 3)
    await new_replid(redis)
    await stand.lives.look()
    assert stand.life == (2, 2)
    assert stand.lives.lost_at is not None
    # Numbers 3 to 5 were seen before, and are not used again.
    assert await events(redis) == [(1, "policy_changed"), (2, "policy_changed"), (6, "redis_life")]
    assert stand.remembered == 1
    # The loss is taken into account: the next life loses nothing.
    await new_replid(redis)
    await stand.lives.look()
    assert stand.life == (3, 2)


async def test_a_loss_stays_known_when_another_orchestrator_was_first_and_knew_of_none(
    stand: Stand, redis: Redis
) -> None:
    """It had no connection when the lost events came. What is written again is known and contained afterwards."""
    async with orchestrator(str(redis_url_of(redis)), stand.lives._identity) as other:  # type: ignore[arg-type]
        for _ in range(3):
            await stand.trail.append(AuditCode.POLICY_CHANGED, reason="x")
        await forget_last_events(redis, 2)
        await new_replid(redis)

        async def write_again(own: Redis) -> None:
            share_known(own, stand.last)
            await AuditTrail(own).append(AuditCode.POLICY_CHANGED, reason="written again")
            await other.lives.look()

        stand.lives.on_loss(write_again)
        await stand.lives.look()
        # The other one recorded life 2, without a loss.
        assert other.life == (2, 0)
        stand.lives._remembering.remove(write_again)
        await stand.lives.look()
        assert stand.life == (3, 3)
        await other.lives.look()
        assert (other.life, other.remembered) == ((3, 3), 1)
        # The loss is taken into account: the next life loses nothing.
        await new_replid(redis)
        await stand.lives.look()
        assert stand.life == (4, 3)


async def test_an_event_with_the_same_number_and_another_id_is_not_the_known_one(stand: Stand, redis: Redis) -> None:
    await stand.trail.append(AuditCode.POLICY_CHANGED, reason="x")
    await forget_last_events(redis, 1)
    async with orchestrator(str(redis_url_of(redis)), stand.lives._identity) as other:  # type: ignore[arg-type]
        await other.trail.append(AuditCode.POLICY_CHANGED, reason="of another branch")
        await new_replid(redis)
        await stand.lives.look()
        assert stand.life == (2, 2)
        await other.lives.look()
        assert other.life == (2, 2)
        assert other.remembered == 1


def redis_url_of(redis: Redis) -> str:
    options = redis.connection_pool.connection_kwargs  # type: ignore[attr-defined]
    return f"unix://{options['path']}"


async def test_a_redis_that_was_emptied_is_a_new_life_that_lost_data(stand: Stand, redis: Redis) -> None:
    await stand.trail.append(AuditCode.POLICY_CHANGED, reason="x")
    await redis.execute_command("FLUSHALL")
    await stand.lives.look()
    assert stand.life == (2, 2)
    assert await events(redis) == [(2, "redis_life")]


async def test_a_life_is_the_latest_while_redis_has_its_record(stand: Stand, redis: Redis) -> None:
    assert stand.lives.is_latest(await redis.get(keys.LIFE))
    await stand.trail.append(AuditCode.POLICY_CHANGED, reason="x")
    await redis.flushall()
    assert not stand.lives.is_latest(await redis.get(keys.LIFE))
    await stand.lives.look()
    assert stand.lives.is_latest(await redis.get(keys.LIFE))
    assert not stand.lives.is_latest(b"of another life")


async def test_an_orchestrator_that_starts_with_an_event_of_its_file_notices_that_it_is_missing(
    redis: Redis, redis_url: str, identity: Identity
) -> None:
    async with orchestrator(redis_url, identity) as first:
        await first.trail.append(AuditCode.POLICY_CHANGED, reason="x")
        seq, cursor = first.last.seq, first.last.cursor
    await forget_last_events(redis, 1)
    late = Stand(redis_url, identity)
    late.lives.knows(seq, cursor)
    await late.lives.look()
    assert late.life == (2, 2)
    await late.close()
    # An orchestrator that was down meanwhile has the same event in its file, and voids nothing a second time.
    later = Stand(redis_url, identity)
    later.lives.knows(seq, cursor)
    await later.lives.look()
    assert later.life == (2, 2)
    await later.close()


async def test_a_trail_that_was_trimmed_has_lost_nothing(stand: Stand, redis: Redis) -> None:
    await stand.trail.append(AuditCode.POLICY_CHANGED, reason="x")
    seq, cursor = stand.last.seq, stand.last.cursor
    await stand.trail.append(AuditCode.POLICY_CHANGED, reason="later")
    await redis.execute_command("XTRIM", keys.AUDIT, "MAXLEN", 1)
    late = Stand(redis_url_of(redis), stand.lives._identity)  # type: ignore[arg-type]
    late.lives.knows(seq, cursor)
    await late.lives.look()
    assert late.life == (1, 0)
    await late.close()


async def test_a_life_that_only_an_agent_remembers_was_lost(stand: Stand, redis: Redis) -> None:
    svid = stand.lives._identity.current()
    record = LifeRecord(iss=ORCHESTRATOR, iat=int(time.time()), number=7, valid_from=3, replid="ab")
    assert stand.lives.number_of(sign(svid, record)) == 7
    await stand.lives.look()
    assert stand.life == (8, 8)


async def test_another_life_with_the_number_of_this_one_is_an_earlier_one(stand: Stand) -> None:
    """An agent that has reported in that life has not reported in this one."""
    svid = stand.lives._identity.current()
    current = stand.lives._current
    assert current is not None
    values = {"iss": ORCHESTRATOR, "iat": int(time.time()) - 5, "number": current.number}
    same, other = (
        sign(svid, LifeRecord.model_validate(values | {"valid_from": 0, "replid": replid}))
        for replid in (current.replid, "ab")
    )
    for _ in range(2):
        assert stand.lives.number_of(other) == current.number - 1
        assert stand.lives.number_of(same) == current.number
    await stand.lives.look()
    assert stand.life == (current.number, 0)


async def test_a_record_that_no_orchestrator_signed_counts_for_nothing(stand: Stand, redis: Redis) -> None:
    forger = Authority().svid(ORCHESTRATOR)
    info = await redis.info("replication")
    forged = sign(
        forger,
        LifeRecord(iss=ORCHESTRATOR, iat=int(time.time()), number=99, valid_from=99, replid=info["master_replid"]),
    )
    assert stand.lives.number_of(forged) == 0
    for value in (forged, "no token"):
        await redis.set(keys.LIFE, value)
        before = stand.lives.number
        await stand.lives.look()
        assert stand.lives.number == before + 1
    await redis.delete(keys.LIFE)
    await redis.execute_command("RPUSH", keys.LIFE, "of another type")
    await stand.lives.look()
    assert stand.life == (4, 0)


async def test_two_orchestrators_agree_on_one_number(
    stand: Stand, redis: Redis, redis_url: str, identity: Identity
) -> None:
    async with orchestrator(redis_url, identity) as other:
        assert other.life == (1, 0)
        await new_replid(redis)
        async with supervised(stand.lives.look(), other.lives.look()):
            pass
        for each in (stand, other):
            await each.lives.look()
            assert each.life == (2, 0)
    assert [code for _, code in await events(redis)] == ["redis_life"]


async def test_a_new_connection_waits_until_the_life_of_its_server_is_recorded(
    stand: Stand, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    await new_replid(redis)
    monkeypatch.setattr(module, "GATE_SECONDS", 0.2)
    with pytest.raises(RedisConnectionError, match="has recorded its new life"):
        await stand.redis.get("anything")
    monkeypatch.setattr(module, "GATE_SECONDS", gate.GATE_SECONDS)
    async with supervised(stand.lives.run()):
        assert await stand.redis.get("anything") is None
    assert stand.life == (2, 0)


async def test_a_record_is_signed_again_before_its_signer_may_be_forgotten(
    stand: Stand, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = await redis.get(keys.LIFE)
    monkeypatch.setattr(module, "SIGN_AGAIN_SECONDS", -1)
    await stand.lives.look()
    after = await redis.get(keys.LIFE)
    assert after != before
    assert stand.life == (1, 0)
    assert await events(redis) == []
