"""The lives of Redis as an agent knows them, on a real Redis."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from authority import Authority
from local_agent import AGENT, LocalAgent, local_agent
from patience import PATIENCE_SECONDS
from tachikoma.config.tasks import supervised
from tachikoma.identity.signed_messages import LifeRecord
from tachikoma.identity.signing import sign
from tachikoma.redis import keys
from tachikoma.redis.commands import Redis
from tachikoma.streams.heartbeat import RememberedLife
from tachikoma.vocabulary.states import ExecState
from tachikoma_worker.execution import lives as module
from tachikoma_worker.execution import write_back
from tachikoma_worker.execution.journal import Journal
from tachikoma_worker.execution.lives import Lives


@pytest.fixture
async def agent(redis: Redis, redis_url: str) -> AsyncIterator[LocalAgent]:
    async with local_agent(redis, redis_url, Authority()) as made:
        yield made


async def run(agent: LocalAgent, mark: Path, life: int) -> tuple[ExecState, str]:
    """Run a command whose order names a life; return the state and the error in its receipt."""
    order = agent.order("/bin/sh", "-c", f"echo ran >> {mark}", order={"life": life})
    await agent.execution(order).run()
    receipt = await agent.receipt(order.jti)
    assert receipt is not None
    return receipt.state, receipt.error


async def test_an_order_of_a_life_before_the_loss_is_not_started(agent: LocalAgent, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    await agent.record_life(5, valid_from=4)
    state, error = await run(agent, mark, 3)
    assert state is ExecState.EXPIRED
    assert "accepted in life 3 of Redis, data was lost before life 4" in error
    assert not mark.exists()
    for life in (4, 5):
        assert await run(agent, mark, life) == (ExecState.SUCCEEDED, "")


async def test_an_order_that_a_loss_may_have_erased_from_the_ledger_is_published_before_its_receipt(
    agent: LocalAgent,
) -> None:
    await agent.record_life(5, valid_from=4)
    lost, known = (agent.order("/bin/true", order={"life": life}) for life in (3, 4))
    for order in (lost, known):
        await agent.execution(order).run()
        assert await agent.receipt(order.jti) is not None
    assert list(await agent.redis.hgetall(keys.orders(AGENT))) == [lost.jti.encode()]
    assert await agent.redis.ttl(keys.orders(AGENT)) > 0


async def test_also_one_that_is_refused_for_another_reason(agent: LocalAgent) -> None:
    await agent.record_life(5, valid_from=4)
    order = agent.order("/no/such/program", order={"life": 3})
    await agent.execution(order).run()
    receipt = await agent.receipt(order.jti)
    assert receipt is not None
    assert receipt.state is not ExecState.EXPIRED
    assert await agent.redis.hkeys(keys.orders(AGENT)) == [order.jti.encode()]


async def test_an_order_that_is_larger_than_the_journal_retains_is_not_published(
    agent: LocalAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(write_back, "MAX_TEXT", 100)
    await agent.record_life(5, valid_from=4)
    order = agent.order("/bin/true", order={"life": 3})
    await agent.execution(order).run()
    assert await agent.receipt(order.jti) is not None
    assert await agent.redis.exists(keys.orders(AGENT)) == 0


async def test_orders_of_orchestrators_that_record_no_lives_start(agent: LocalAgent, tmp_path: Path) -> None:
    assert await run(agent, tmp_path / "mark", 0) == (ExecState.SUCCEEDED, "")


async def test_a_life_that_begins_on_an_open_connection_counts_for_the_next_order(
    agent: LocalAgent, tmp_path: Path
) -> None:
    await agent.record_life(1)
    assert await run(agent, tmp_path / "mark", 1) == (ExecState.SUCCEEDED, "")
    await agent.record_life(2, valid_from=2)
    assert (await run(agent, tmp_path / "mark", 1))[0] is ExecState.EXPIRED


async def test_nothing_is_sent_to_a_server_whose_life_is_not_recorded(
    agent: LocalAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "GATE_SECONDS", 0.3)
    await agent.record_life(2)
    await agent.context.redis.get("anything")
    await agent.context.redis.connection_pool.disconnect()  # type: ignore[attr-defined]
    foreign = LifeRecord(iss=str(agent.orchestrator.spiffe_id), iat=0, number=9, valid_from=9, replid="ab")
    others = (
        agent.life(1, 0, await agent.replid()),
        agent.life(3, 0, "ab"),
        sign(Authority().svid(str(agent.orchestrator.spiffe_id)), foreign),
        "no token",
    )
    for token in others:
        await agent.redis.set(keys.LIFE, token)
        with pytest.raises(RedisConnectionError, match="no orchestrator has recorded its new life"):
            await agent.context.redis.get("anything")
    for command, *values in (("RPUSH", "x"), ("HSET", "x", "x"), ("XADD", "*", "x", "x"), ("ZADD", "1", "x")):
        await agent.redis.delete(keys.LIFE)
        await agent.redis.execute_command(command, keys.LIFE, *values)
        with pytest.raises(RedisConnectionError, match="no orchestrator has recorded its new life"):
            await agent.context.redis.get("anything")
    await agent.redis.delete(keys.LIFE)
    with pytest.raises(RedisConnectionError):
        await agent.context.redis.get("anything")
    await agent.record_life(3)
    assert await agent.context.redis.get("anything") is None


async def test_lost_output_is_back_before_a_new_life_is_used(agent: LocalAgent) -> None:
    agent.context.lives.on_new_life(lambda: agent.context.sent.restore(agent.redis))
    await agent.record_life(1)
    order = agent.order("/bin/echo", "a", order={"life": 1})
    await agent.execution(order).run()
    output = keys.output(AGENT, order.jti)
    entries = await agent.redis.xrange(output)
    await agent.redis.delete(output)
    await agent.record_life(2)
    await agent.context.redis.connection_pool.disconnect()  # type: ignore[attr-defined]
    assert await agent.context.redis.xrange(output) == entries
    assert entries


async def test_a_life_in_which_lost_output_cannot_be_sent_is_not_used(agent: LocalAgent) -> None:
    tries: list[int] = []

    async def restore() -> None:
        tries.append(agent.context.lives.number)
        if len(tries) == 1:
            raise RedisConnectionError("it is gone again")

    agent.context.lives.on_new_life(restore)
    token = await agent.record_life(1)
    with pytest.raises(RedisConnectionError):
        await agent.context.lives.learn(token)
    assert agent.context.lives.number == 0
    await agent.context.lives.learn(token)
    assert (agent.context.lives.number, tries) == (1, [0, 0])


async def test_another_life_with_the_same_number_is_a_new_one(agent: LocalAgent) -> None:
    """Redis was killed and went back within a second of the first one, which only one orchestrator had seen."""
    restored: list[str] = []

    async def restore() -> None:
        restored.append(await agent.replid())

    agent.context.lives.on_new_life(restore)
    await agent.record_life(2)
    await agent.context.redis.get("anything")
    # The same life, signed again.
    await agent.context.lives.learn(agent.life(2, 0, await agent.replid()))
    assert restored == [await agent.replid()]
    await agent.redis.execute_command("REPLICAOF", "127.0.0.1", "1")
    await agent.redis.execute_command("REPLICAOF", "NO", "ONE")
    token = await agent.record_life(2, valid_from=2)
    await agent.context.redis.connection_pool.disconnect()  # type: ignore[attr-defined]
    await agent.context.redis.get("anything")
    assert restored[1:] == [await agent.replid()]
    assert (agent.context.lives.number, agent.context.lives.valid_from) == (2, 2)
    assert agent.context.lives.token == token


async def test_the_highest_life_outlives_the_worker(agent: LocalAgent) -> None:
    token = await agent.record_life(4, valid_from=3)
    await agent.context.redis.get("anything")
    journal = Journal(agent.context.settings.data)
    again = Lives(journal, agent.context.identity, "orchestrator")
    assert (again.token, again.number, again.valid_from) == (token, 4, 3)
    journal.close()


async def test_the_watch_finds_a_life_while_no_connection_breaks(agent: LocalAgent) -> None:
    await agent.record_life(6)
    async with asyncio.timeout(PATIENCE_SECONDS), supervised(agent.context.lives.watch(agent.redis, AGENT)):
        await agent.context.lives.began.wait()
    assert agent.context.lives.number == 6


async def test_a_life_that_redis_and_the_orchestrators_forgot_is_reported(
    agent: LocalAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that was restarted names no life in its heartbeat, and nobody else knows of it."""
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.01)
    remembered = await agent.record_life(6)
    await agent.context.lives.learn(remembered)
    redis, lives = agent.redis, agent.context.lives
    async with redis.pubsub() as listening, asyncio.timeout(PATIENCE_SECONDS):
        await listening.subscribe(keys.events(AGENT))
        for token in ("no record", remembered, agent.life(6, 0, "ab"), agent.life(7, 0, "ab")):
            assert not lives._is_later_than(token)
        await redis.set(keys.LIFE, agent.life(2, 0, await agent.replid()))
        async with supervised(lives.watch(redis, AGENT)):
            while (message := await listening.get_message(True, 1)) is None:
                pass
        assert RememberedLife.model_validate_json(message["data"]).record == remembered
        assert (lives.number, lives.token) == (6, remembered)


async def test_a_known_record_is_not_verified_for_each_order(
    agent: LocalAgent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = await agent.record_life(1)
    assert await run(agent, tmp_path / "mark", 1) == (ExecState.SUCCEEDED, "")
    monkeypatch.setattr(agent.context.lives, "_verify", lambda _: pytest.fail("it is verified again"))
    assert await run(agent, tmp_path / "mark", 1) == (ExecState.SUCCEEDED, "")
    await agent.context.lives.learn(token)
    assert agent.context.lives.number == 1
