"""The claim, on a real Redis and a real journal: exactly one delivery may start, whatever Redis holds."""

from __future__ import annotations

import asyncio
import errno
import sqlite3
import threading
from typing import Any

import pytest
from structlog.testing import capture_logs

from local_agent import AGENT, LocalAgent
from tachikoma.redis import keys
from tachikoma_worker.execution.claim import CLAIM_SECONDS, REJECTED, ClaimOutcome, claim, prevent_start
from tachikoma_worker.execution.journal import Journal, JournalError

ID = "job-7"
KEY = keys.claim(AGENT, ID)
PATIENCE_SECONDS = 30


async def outcome(agent: LocalAgent) -> ClaimOutcome:
    return (await claim(agent.context, ID, "ab", "order")).outcome


async def test_the_first_delivery_is_granted_and_the_next_is_repeated(agent: LocalAgent) -> None:
    assert await outcome(agent) is ClaimOutcome.GRANTED
    assert await agent.redis.get(KEY) == agent.context.journal.boot.encode()
    assert await outcome(agent) is ClaimOutcome.REPEATED


async def test_of_many_deliveries_at_once_one_is_granted(agent: LocalAgent) -> None:
    outcomes = await asyncio.gather(*(outcome(agent) for _ in range(50)))
    assert outcomes.count(ClaimOutcome.GRANTED) == 1
    assert outcomes.count(ClaimOutcome.REPEATED) == 49


@pytest.mark.parametrize("holder", ["fenced", "another-journal"])
async def test_an_execution_that_is_held_elsewhere_is_left_alone(agent: LocalAgent, holder: str) -> None:
    await agent.redis.set(KEY, holder)
    assert await outcome(agent) is ClaimOutcome.HELD_ELSEWHERE
    assert await agent.redis.get(KEY) == holder.encode()
    await agent.context.journal.flush()
    assert agent.context.journal.unfinished() == []
    # In a later life of Redis it is not this agent's either, also if that one lost who holds it.
    assert await agent.context.journal.recent() == []
    await agent.redis.delete(KEY)
    assert await outcome(agent) is ClaimOutcome.REPEATED


async def test_a_redis_that_lost_the_claim_does_not_grant_it_again(agent: LocalAgent) -> None:
    await outcome(agent)
    await agent.redis.flushall()  # type: ignore[attr-defined]
    assert await outcome(agent) is ClaimOutcome.REPEATED


async def test_a_claim_outlives_every_order(agent: LocalAgent) -> None:
    await outcome(agent)
    assert CLAIM_SECONDS - 60 <= await agent.redis.ttl(KEY) <= CLAIM_SECONDS  # type: ignore[attr-defined]


async def test_the_cancel_beside_the_claim_is_returned(agent: LocalAgent) -> None:
    await agent.redis.set(keys.cancel(AGENT, ID), "token")
    assert (await claim(agent.context, ID, "ab", "order")).cancel == "token"


async def test_a_claim_of_another_type_is_not_granted(agent: LocalAgent) -> None:
    await agent.redis.hset(KEY, "not", "a claim")
    with capture_logs() as logs:
        assert await outcome(agent) is ClaimOutcome.HELD_ELSEWHERE
    assert "claim.unreadable" in [entry["event"] for entry in logs]


async def test_a_cancel_of_another_type_is_none(agent: LocalAgent) -> None:
    await agent.redis.hset(keys.cancel(AGENT, ID), "not", "a cancel")
    granted = await claim(agent.context, ID, "ab", "order")
    assert (granted.outcome, granted.cancel) == (ClaimOutcome.GRANTED, None)


async def test_a_journal_that_cannot_be_written_grants_nothing(
    agent: LocalAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> list[bool]:
        raise sqlite3.OperationalError("disk full")

    monkeypatch.setattr(Journal, "_transaction", refuse)
    with pytest.raises(JournalError):
        await outcome(agent)
    # Held elsewhere it is no matter of this journal.
    await agent.redis.set(KEY, "fenced")
    assert await outcome(agent) is ClaimOutcome.HELD_ELSEWHERE


async def test_a_claim_is_granted_only_when_its_row_is_on_disk(
    agent: LocalAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick, sync = threading.Event(), Journal._sync

    def slow_sync(journal: Journal) -> None:
        assert quick.wait(PATIENCE_SECONDS)
        sync(journal)

    monkeypatch.setattr(Journal, "_sync", slow_sync)
    claiming = asyncio.create_task(outcome(agent))
    # Redis has it meanwhile. A power cut now would leave a claim of which the agent knows nothing, and no command.
    async with asyncio.timeout(PATIENCE_SECONDS):
        while await agent.redis.get(KEY) is None:
            assert not claiming.done()
            await asyncio.sleep(0.01)
    await asyncio.sleep(0)
    assert not claiming.done()
    quick.set()
    assert await asyncio.wait_for(claiming, PATIENCE_SECONDS) is ClaimOutcome.GRANTED


async def test_a_row_that_does_not_reach_the_disk_grants_nothing(
    agent: LocalAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: Journal) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Journal, "_sync", broken)
    with pytest.raises(JournalError, match="Input/output error"):
        await outcome(agent)


async def test_a_claim_waits_for_redis(agent: LocalAgent, monkeypatch: pytest.MonkeyPatch, until: Any) -> None:
    other = agent.context.redis.pipeline
    failures: list[int] = []

    def pipeline(*, transaction: bool) -> Any:
        if len(failures) < 3:
            failures.append(1)
            raise ConnectionError("unavailable")
        return other(transaction=transaction)

    monkeypatch.setattr(agent.context.redis, "pipeline", pipeline)
    assert await outcome(agent) is ClaimOutcome.GRANTED
    assert len(failures) == 3


async def test_a_prevented_start_stays_prevented(agent: LocalAgent) -> None:
    await prevent_start(agent.context, ID)
    assert await agent.redis.get(KEY) == REJECTED.encode()
    assert await outcome(agent) is ClaimOutcome.HELD_ELSEWHERE


async def test_preventing_a_start_without_redis_is_only_logged(
    agent: LocalAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def unavailable(*_: Any, **__: Any) -> None:
        raise ConnectionError("unavailable")

    monkeypatch.setattr(agent.context.redis, "set", unavailable)
    with capture_logs() as logs:
        await prevent_start(agent.context, ID)
    assert [entry["event"] for entry in logs] == ["claim.not_rejected"]
