"""Looks at the executions that callers wait for, on a real Redis."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from members import AGENT, OPERATOR, Stand
from patience import PATIENCE_SECONDS
from tachikoma.config.tasks import cancel_all
from tachikoma.errors import ResultUnknown, Unavailable
from tachikoma.redis import keys
from tachikoma.redis.commands import Redis
from tachikoma.streams.heartbeat import Heartbeat
from tachikoma.vocabulary.requests import ExecRequest
from tachikoma.vocabulary.states import ExecState
from tachikoma_orchestrator.agents.registry import Registry
from tachikoma_orchestrator.audit.findings import Findings
from tachikoma_orchestrator.executions import waiting_callers as module
from tachikoma_orchestrator.executions.collector import Collector
from tachikoma_orchestrator.executions.evidence import Evidence
from tachikoma_orchestrator.executions.transitions import Admission, Dispatch, Outcome
from tachikoma_orchestrator.executions.waiters import AwaitedOrder, Completions
from tachikoma_orchestrator.executions.waiting_callers import WaitingCallers

EXEC = "job-7"
ORDER = AwaitedOrder(AGENT, "order")


class Callers:
    """The looks, with one execution that waits on its agent's queue."""

    def __init__(self, stand: Stand) -> None:
        self.stand, self.redis = stand, stand.redis
        self.completions = Completions()
        registry, findings = Registry(stand.redis, stand.identity), Findings(stand.redis, stand.trail)
        evidence = Evidence(stand.redis, findings, stand.identity, registry.revocations)
        collector = Collector(stand.redis, stand.ledger, self.completions, registry, stand.identity, evidence, findings)
        self.life = 0
        lives: Any = self
        self.looks = WaitingCallers(stand.redis, stand.ledger, self.completions, collector, registry, lives)
        self._registry = registry

    # As the lives of Redis: a heartbeat names its life by its number.

    @property
    def number(self) -> int:
        return self.life

    @staticmethod
    def number_of(token: str) -> int:
        return int(token or 0)

    async def hear(self, life: int) -> None:
        """Let the agent send a heartbeat in a life."""
        beat = Heartbeat(
            boot="boot", run="run", version="1", hostname="web", labels={}, running=0, slots=1, load=0, memory_used=0,
            disk_used=0, life=str(life),
        ).model_dump_json()  # fmt: skip
        await self._registry.heard(AGENT, beat.encode())
        await self.redis.set(keys.info(AGENT), beat)

    @asynccontextmanager
    async def looking(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.looks.run())
        try:
            yield
        finally:
            await cancel_all([task])


@pytest.fixture
async def callers(redis: Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callers:
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.01)
    stand = Stand(redis, tmp_path)
    await redis.set(keys.info(AGENT), "{}")
    request = ExecRequest(id=EXEC, agent_id=AGENT, command=["/bin/true"], requested_by=str(OPERATOR))
    admission = Admission(request, request.command, "digest", "web@1", "", timedelta(minutes=9), timedelta(hours=1), {})
    assert (await stand.ledger.admit(admission, Dispatch("digest", "order", "web@1", b"m")))[0] is Outcome.ADMITTED
    return Callers(stand)


async def retyped(redis: Redis, key: str) -> None:
    await redis.delete(key)
    await redis.set(key, "no hash")


async def replaced(redis: Redis, key: str) -> None:
    await redis.hset(key, "order_sha256", "another")


async def garbled(redis: Redis, key: str) -> None:
    await redis.hset(key, "history", "x")


async def deleted(redis: Redis, key: str) -> None:
    await redis.delete(key)


@pytest.mark.parametrize("lose", [deleted, retyped, replaced, garbled])
async def test_a_caller_whose_record_is_lost_learns_that_nothing_is_known(
    callers: Callers, lose: Callable[[Redis, str], asyncio.Future[None]]
) -> None:
    with callers.completions.expect(EXEC) as end, callers.completions.approvals.expect(EXEC) as approval:
        callers.completions.note_order(EXEC, ORDER)
        await lose(callers.redis, keys.execution(EXEC))
        async with callers.looking():
            final = await asyncio.wait_for(end, PATIENCE_SECONDS)
        with pytest.raises(ResultUnknown, match=f"whether {EXEC} ran is unknown") as caught:
            final.response()
        assert caught.value.metadata == {"id": EXEC}
        assert approval.done()


async def test_a_caller_whose_request_is_still_being_admitted_is_left_alone(callers: Callers) -> None:
    with callers.completions.expect("another") as end:
        async with callers.looking():
            # Time in which it could be answered, which it must not.
            await asyncio.sleep(0.1)
        assert not end.done()


async def test_a_missed_final_state_is_delivered_and_a_missing_index_entry_restored(callers: Callers) -> None:
    with callers.completions.expect(EXEC) as end:
        await callers.redis.zrem(keys.OPEN, EXEC)
        await callers.looks.check()
        assert callers.completions.orders(EXEC) == {ORDER}
        assert await callers.redis.zrange(keys.OPEN, 0, -1) == [EXEC.encode()]
        await callers.stand.ledger.settle(AGENT, EXEC, [ExecState.QUEUED], ExecState.EXPIRED, reason="late", fence=True)
        await callers.looks.check()
        assert (await asyncio.wait_for(end, PATIENCE_SECONDS)).response().state is ExecState.EXPIRED


@pytest.mark.parametrize("reports_here", [True, False])
async def test_each_look_finds_only_results_that_agents_report_to_another_process(
    callers: Callers, monkeypatch: pytest.MonkeyPatch, reports_here: bool
) -> None:
    """That process may have been killed, and the reaper may have a long interval."""
    taken: list[str] = []

    async def fold(_: Collector, agent: str, exec_id: str, raw: bytes) -> bool:
        taken.append(f"{agent} {exec_id} {raw.decode()}")
        return True

    monkeypatch.setattr(Collector, "fold", fold)
    await callers.redis.set(keys.result(AGENT, EXEC), "result")
    with callers.completions.expect(EXEC):
        callers.completions.note_order(EXEC, AwaitedOrder(AGENT, "order", reports_here=reports_here))
        assert await callers.looks._look(missed_results=False) == set()
        assert taken == ([] if reports_here else [f"{AGENT} {EXEC} result"])
        await callers.looks.check()
        assert set(taken) == {f"{AGENT} {EXEC} result"}


async def test_a_caller_whose_agent_is_silent_in_a_new_life_of_redis_gets_an_answer(
    callers: Callers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SILENT_SECONDS", 0.05)
    await callers.hear(0)
    callers.life = 2
    with callers.completions.expect(EXEC) as end:
        async with callers.looking():
            final = await asyncio.wait_for(end, PATIENCE_SECONDS)
        with pytest.raises(Unavailable, match="silent since Redis was restarted or replaced; call again") as caught:
            final.response()
        assert caught.value.metadata == {"id": EXEC}
    # The execution goes on.
    record = await callers.stand.ledger.record(EXEC)
    assert record is not None
    assert record.state is ExecState.QUEUED


@pytest.mark.parametrize(("life", "reported"), [(0, 0), (1, 0), (2, 2)])
async def test_a_caller_whose_agent_has_reported_or_in_the_first_life_goes_on_waiting(
    callers: Callers, monkeypatch: pytest.MonkeyPatch, life: int, reported: int
) -> None:
    monkeypatch.setattr(module, "SILENT_SECONDS", 0)
    callers.life = life
    await callers.hear(reported)
    with callers.completions.expect(EXEC) as end:
        for _ in range(3):
            await callers.looks._look(missed_results=False)
            await callers.looks._answer_for_silent_agents()
        assert not end.done()


@pytest.mark.parametrize("error", [RedisConnectionError("closed"), RedisTimeoutError("late"), OSError("reset")])
async def test_a_redis_that_fails_while_callers_are_answered_ends_no_look(
    callers: Callers, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """An error that leaves a look ends the process."""
    await callers.redis.delete(keys.execution(EXEC))
    current_order, failures = callers.looks._current_order, 0

    async def fails_at_first(exec_id: str) -> str:
        nonlocal failures
        failures += 1
        if failures <= 3:
            raise error
        return await current_order(exec_id)

    monkeypatch.setattr(callers.looks, "_current_order", fails_at_first)
    with callers.completions.expect(EXEC) as waiting:
        callers.completions.note_order(EXEC, ORDER)
        async with callers.looking():
            final = await asyncio.wait_for(waiting, PATIENCE_SECONDS)
    with pytest.raises(ResultUnknown):
        final.response()
    assert failures == 4
