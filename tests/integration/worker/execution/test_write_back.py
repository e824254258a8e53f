"""What an agent writes again in a new life of Redis, on a real one."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator

import pytest

from authority import Authority
from local_agent import AGENT, LocalAgent, local_agent
from patience import PATIENCE_SECONDS
from tachikoma.config.tasks import supervised
from tachikoma.redis import keys
from tachikoma.redis.commands import Redis
from tachikoma_worker.execution import write_back as module
from tachikoma_worker.execution.recent import RecentExecution
from tachikoma_worker.execution.write_back import WriteBack
from tachikoma_worker.output import sent


@pytest.fixture
async def agent(redis: Redis, redis_url: str) -> AsyncIterator[LocalAgent]:
    async with local_agent(redis, redis_url, Authority()) as made:
        yield made


async def test_claims_results_and_orders_are_written_again_after_a_loss(agent: LocalAgent) -> None:
    await agent.record_life(1)
    order = agent.order("/bin/sh", "-c", "echo ran", order={"life": 1})
    execution = agent.execution(order)
    await execution.run()
    notices: list[str] = []
    written = WriteBack(agent.context, lambda: notices.append(written.done))
    await written.write()
    assert notices == [written.done] == [agent.context.lives.token]
    # Nothing was lost, so no orders are shown.
    assert not await agent.redis.execute_command("EXISTS", keys.orders(AGENT))
    claim, result = keys.claim(AGENT, order.jti), keys.result(AGENT, order.jti)
    before = await agent.redis.get(result)
    await agent.redis.delete(claim, result)
    await agent.context.lives.learn(await agent.record_life(2, valid_from=2))
    assert agent.context.lives.began.is_set()
    await written.write()
    assert await agent.redis.get(claim) == agent.context.journal.boot.encode()
    assert await agent.redis.get(result) == before
    shown = await agent.redis.hgetall(keys.orders(AGENT))
    assert {name.decode(): hashlib.sha256(token).hexdigest() for name, token in shown.items()} == {
        order.jti: execution.order_sha256
    }
    assert written.done == agent.context.lives.token
    # The next life may lack what was shown, although nobody knows of a loss.
    await agent.redis.delete(keys.orders(AGENT))
    await agent.context.lives.learn(await agent.record_life(3, valid_from=2))
    await written.write()
    assert await agent.redis.hkeys(keys.orders(AGENT)) == [order.jti.encode()]


async def _ran(agent: LocalAgent) -> str:
    """Run an execution of life 1, and return its id."""
    order = agent.order("/bin/true", order={"life": 1})
    await agent.execution(order).run()
    return order.jti


async def _published(agent: LocalAgent) -> set[str]:
    return {name.decode() for name in await agent.redis.hkeys(keys.orders(AGENT))}


async def test_after_a_loss_only_what_redis_lacks_is_written_again(agent: LocalAgent) -> None:
    await agent.record_life(1)
    written = WriteBack(agent.context, lambda: None)
    await written.write()
    kept, without_claim, without_result = [await _ran(agent) for _ in range(3)]
    await agent.redis.delete(keys.claim(AGENT, without_claim), keys.result(AGENT, without_result))
    await agent.redis.set(keys.result(AGENT, kept), "as it was")
    await agent.context.lives.learn(await agent.record_life(2, valid_from=2))
    await written.write()
    # A record is older than its claim, so only the record of the one without a claim may be lost.
    assert await _published(agent) == {without_claim}
    assert await agent.redis.get(keys.result(AGENT, kept)) == b"as it was"
    for exec_id in (without_claim, without_result):
        assert await agent.redis.exists(keys.claim(AGENT, exec_id), keys.result(AGENT, exec_id)) == 2


async def test_an_order_is_published_again_although_its_claim_was_written_again(agent: LocalAgent) -> None:
    await agent.record_life(1)
    written = WriteBack(agent.context, lambda: None)
    await written.write()
    kept, lost = [await _ran(agent) for _ in range(2)]
    # A life that is not known to have lost anything lacks a claim.
    await agent.redis.delete(keys.claim(AGENT, lost))
    await agent.context.lives.learn(await agent.record_life(2, valid_from=0))
    await written.write()
    assert await _published(agent) == set()
    for number in (3, 4):
        await agent.redis.delete(keys.orders(AGENT))
        await agent.context.lives.learn(await agent.record_life(number, valid_from=3))
        await written.write()
        assert await _published(agent) == {lost}
    # The next worker finds in the journal which claims were written again.
    await agent.redis.delete(keys.orders(AGENT))
    await WriteBack(agent.context, lambda: None).write()
    assert await _published(agent) == {lost}
    assert await agent.redis.exists(keys.claim(AGENT, kept))


async def test_an_interrupted_pass_is_completed_by_the_next(agent: LocalAgent, monkeypatch: pytest.MonkeyPatch) -> None:
    await agent.record_life(1)
    written = WriteBack(agent.context, lambda: None)
    await written.write()
    exec_id = await _ran(agent)
    await agent.redis.delete(keys.claim(AGENT, exec_id))
    await agent.context.lives.learn(await agent.record_life(2, valid_from=2))

    async def broken(*_: object) -> None:
        # The claim arrived, and nothing that followed it.
        await agent.redis.set(keys.claim(AGENT, exec_id), agent.context.journal.boot)
        raise ConnectionError

    monkeypatch.setattr(written, "_write", broken)
    with pytest.raises(ConnectionError):
        await written.write()
    assert agent.context.lives.began.is_set()
    monkeypatch.undo()
    await written.write()
    assert await _published(agent) == {exec_id}


async def test_a_fence_and_another_result_are_not_replaced(agent: LocalAgent) -> None:
    await agent.record_life(1)
    order = agent.order("/bin/true", order={"life": 1})
    await agent.execution(order).run()
    await agent.redis.set(keys.claim(AGENT, order.jti), "fence")
    await agent.redis.set(keys.result(AGENT, order.jti), "another")
    await WriteBack(agent.context, lambda: None).write()
    assert await agent.redis.get(keys.claim(AGENT, order.jti)) == b"fence"
    assert await agent.redis.get(keys.result(AGENT, order.jti)) == b"another"


async def test_a_loss_that_is_learned_during_a_pass_has_a_pass_of_its_own(
    agent: LocalAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    await agent.record_life(1)
    order = agent.order("/bin/true", order={"life": 1})
    await agent.execution(order).run()
    await agent.redis.delete(keys.claim(AGENT, order.jti))
    written = WriteBack(agent.context, lambda: None)
    await agent.context.lives.learn(await agent.record_life(2, valid_from=2))
    recent = agent.context.journal.recent

    async def recent_and_another_loss() -> list[RecentExecution]:
        monkeypatch.undo()
        found = await recent()
        await agent.context.lives.learn(await agent.record_life(3, valid_from=3))
        return found

    monkeypatch.setattr(agent.context.journal, "recent", recent_and_another_loss)
    await written.write()
    assert agent.context.lives.began.is_set()
    # Redis lost what the first pass has written.
    await agent.redis.delete(keys.orders(AGENT))
    await written.write()
    assert await agent.redis.hkeys(keys.orders(AGENT)) == [order.jti.encode()]


async def test_sent_output_is_removed_while_redis_answers_in_the_same_life(
    agent: LocalAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PRUNE_SECONDS", 0.05)
    monkeypatch.setattr(sent, "KEEP_SECONDS", 0)
    await agent.record_life(1)
    await agent.execution(agent.order("/bin/echo", "a", order={"life": 1})).run()
    assert agent.context.sent.retained == 1
    async with asyncio.timeout(PATIENCE_SECONDS), supervised(WriteBack(agent.context, lambda: None).run()):
        while agent.context.sent.retained:  # noqa: ASYNC110 (nothing notifies of it)
            await asyncio.sleep(0.02)
    assert not list(agent.context.spools.with_name("sent").iterdir())
