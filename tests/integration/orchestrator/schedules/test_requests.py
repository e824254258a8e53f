"""Schedules with targets: one batch at each scheduled time, whoever asks for it, and never one that was given up."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tachikoma.dev.ca import DevelopmentCA
from tachikoma.errors import AlreadyExists
from tachikoma.identity.spiffe import schedule_id, service_id
from tachikoma.redis import keys
from tachikoma.redis.commands import Redis
from tachikoma.vocabulary.audit import AuditCode
from tachikoma.vocabulary.batches import BatchState, BatchStatus, TargetState
from tachikoma.vocabulary.clock import from_ms
from tachikoma.vocabulary.schedules import DueOutcome, ScheduledRun
from tachikoma_orchestrator.caller import Peer
from tachikoma_orchestrator.schedules import runner

from .test_runner import DOMAIN, NAME, OPERATOR, POLICY, Stand

FILE = """\
schedules:
  - name: job
    every: 24h
    targets: [%(targets)s]
    batch: {parallel: 10%%, canary: 1, stopAfter: "3"}
    request: {command: [/usr/bin/true], timeout: 5m}
    missed: run-once
    overlap: %(overlap)s
"""
#: The interval of the schedule, so that each look at it finds one scheduled time.
DAY_MS = 24 * 3_600_000
PEER = Peer(schedule_id(DOMAIN, NAME), "")


def write(folder: Path, targets: str = '"agent-*"', overlap: str = "allow") -> None:
    new = folder / "new"
    new.write_text(FILE % {"targets": targets, "overlap": overlap})
    new.rename(folder / "schedules.yaml")


class BatchSchedules(Stand):
    """A submitter whose schedule has targets."""

    async def due(self) -> None:
        """Let a scheduled time come, and look at the schedule."""
        await self.back(DAY_MS)
        await self.runner.advance(NAME)

    async def known(self, *agents: str) -> None:
        """Let agents be heard of."""
        beat = (
            b'{"boot": "b", "run": "r", "version": "1", "hostname": "h", "running": 0, "slots": 1, "load": 0,'
            b' "memory_used": 0, "disk_used": 0}'
        )
        for agent in agents:
            await self.redis.set(keys.info(agent), beat)
            await self.registry.heard(agent, beat)

    async def all_batches(self) -> list[BatchStatus]:
        found = [await self.batches.store.status(batch) for batch in await self.batches.store.newest(100)]
        return [status for status in found if status is not None]


@pytest.fixture
async def make(redis: Redis, tmp_path: Path) -> Callable[[], BatchSchedules]:
    """Stands on one Redis and one file."""
    DevelopmentCA(tmp_path / "ca", DOMAIN).issue(service_id(DOMAIN, "orchestrator"), tmp_path / "orchestrator")
    (tmp_path / "policy.yaml").write_text(POLICY.replace("[agent-1]", '["agent-*"]'))
    write(tmp_path)
    return lambda: BatchSchedules(redis, tmp_path)


@pytest.fixture
async def stand(make: Callable[[], BatchSchedules]) -> BatchSchedules:
    made = make()
    await made.known("agent-1", "agent-2")
    await made.runner.advance(NAME)
    return made


async def test_a_due_time_is_one_batch_with_the_rules_of_the_file(stand: BatchSchedules) -> None:
    await stand.due()
    (run,) = await stand.runs()
    (status,) = await stand.all_batches()
    assert (run.outcome, run.agent_id, run.state, run.batch_state) == (DueOutcome.RUN, "", None, BatchState.RUNNING)
    assert (status.id, status.requested_by, status.total) == (run.id, f"spiffe://{DOMAIN}/schedule/job", 2)
    # The canary alone is started.
    await stand.batches.driver.drive(run.id)
    assert (await stand.batches.store.not_ended(run.id))[1] == ["agent-1"]
    shown = await stand.runner.status(NAME)
    assert (shown.agent_id, shown.targets, shown.command) == ("", ("agent-*",), ("/usr/bin/true",))
    assert shown.last == run


async def test_targets_are_resolved_at_each_due_time(stand: BatchSchedules) -> None:
    await stand.due()
    await stand.known("agent-3")
    await stand.runner.run_now(NAME, by=OPERATOR)
    assert sorted(status.total for status in await stand.all_batches()) == [2, 3]
    manual = (await stand.runs())[-1]
    assert (manual.requested_by, manual.batch_state) == (OPERATOR, BatchState.RUNNING)


async def test_two_submitters_make_one_batch(stand: BatchSchedules, make: Callable[[], BatchSchedules]) -> None:
    others = [make() for _ in range(3)]
    for other in others:
        await other.known("agent-1", "agent-2")
    await stand.back(DAY_MS)
    await asyncio.gather(*(each.runner.advance(NAME) for each in (stand, *others)))
    assert [run.outcome for run in await stand.runs()] == [DueOutcome.RUN]
    assert len(await stand.all_batches()) == 1


async def test_a_run_that_a_process_left_is_the_same_batch(
    stand: BatchSchedules, make: Callable[[], BatchSchedules], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether the process ended before or after its request."""
    monkeypatch.setattr(runner, "ABANDONED_MS", 0)
    settle = stand.store.settle

    async def crash(*_: Any) -> None:
        raise ConnectionError("ends here")

    monkeypatch.setattr(stand.store, "settle", crash)
    with pytest.raises(ConnectionError):
        await stand.due()
    (before,) = await stand.all_batches()
    await stand.known("agent-3")
    monkeypatch.setattr(stand.store, "settle", settle)
    await stand.runner.advance(NAME)
    (run,) = await stand.runs()
    assert (run.id, run.outcome) == (before.id, DueOutcome.RUN)
    assert [status.total for status in await stand.all_batches()] == [2]


async def test_a_batch_that_redis_forgot_would_have_the_same_executions(stand: BatchSchedules) -> None:
    await stand.due()
    (run,) = await stand.runs()
    schedule = stand.source.current.get(NAME)
    await stand.batches.driver.drive(run.id)
    (first,) = list(await stand.redis.keys("orch:exec:*"))
    await stand.redis.delete(*keys.batch(run.id), first)
    await stand.runner._requests.request(schedule, run.id, PEER)
    await stand.batches.driver.drive(run.id)
    assert list(await stand.redis.keys("orch:exec:*")) == [first]


async def test_a_run_that_was_given_up_never_starts(stand: BatchSchedules) -> None:
    run = ScheduledRun(due=from_ms(1000), time=from_ms(0), outcome=DueOutcome.TAKEN, id="run-1")
    assert run.is_batch
    await stand.redis.hset(keys.schedule(NAME), "taken:1000", run.to_json())
    settled = await stand.store.settle(NAME, str(PEER), "1000", run, DueOutcome.MISSED, "late")
    assert settled is not None
    assert settled.outcome is DueOutcome.MISSED
    assert await stand.batches.store.status("run-1") is None
    with pytest.raises(AlreadyExists):
        await stand.runner._requests.request(stand.source.current.get(NAME), "run-1", PEER)
    assert await stand.all_batches() == []
    assert 0 < await stand.redis.ttl(keys.batch("run-1")[0]) <= 3600
    # Its event names the batch.
    (_, event), *_ = await stand.redis.xrevrange(keys.AUDIT, count=1)
    assert (event[b"event"], event[b"batch"]) == (b"schedule_missed", b"run-1")


async def test_a_batch_of_the_schedule_counts_although_it_was_late(stand: BatchSchedules) -> None:
    run = ScheduledRun(due=from_ms(1000), time=from_ms(0), outcome=DueOutcome.TAKEN, id="run-1")
    await stand.redis.hset(keys.schedule(NAME), "taken:1000", run.to_json())
    await stand.runner._requests.request(stand.source.current.get(NAME), "run-1", PEER)
    settled = await stand.store.settle(NAME, str(PEER), "1000", run, DueOutcome.MISSED, "late")
    assert settled is not None
    assert settled.outcome is DueOutcome.RUN


async def test_targets_that_are_no_agent_are_a_refusal(stand: BatchSchedules, tmp_path: Path) -> None:
    write(tmp_path, targets='"mail-*"')
    assert stand.source.reload()
    await stand.due()
    (run,) = await stand.runs()
    assert run.outcome is DueOutcome.REFUSED
    assert "no agent matches" in run.reason


async def test_a_batch_that_has_not_ended_is_an_overlap(stand: BatchSchedules, tmp_path: Path) -> None:
    write(tmp_path, overlap="skip")
    assert stand.source.reload()
    await stand.runner.run_now(NAME, by=OPERATOR)
    await stand.due()
    assert {run.requested_by: run.outcome for run in await stand.runs()} == {
        OPERATOR: DueOutcome.RUN, "": DueOutcome.SKIPPED,
    }  # fmt: skip
    (batch,) = await stand.all_batches()
    assert batch.totals == {TargetState.PENDING: 2}
    # An ended one is none.
    await stand.batches.store.halt(batch.id, BatchState.CANCELLED, AuditCode.BATCH_CANCELLED, "", by=OPERATOR)
    await stand.due()
    assert len(await stand.all_batches()) == 2


async def test_a_paused_schedule_makes_no_batch(stand: BatchSchedules) -> None:
    await stand.runner.pause(NAME, by=OPERATOR, reason="freeze")
    await stand.redis.hset(keys.schedule(NAME), "paused_ms", 1)
    await stand.due()
    assert [run.outcome for run in await stand.runs()] == [DueOutcome.SKIPPED]
    assert await stand.all_batches() == []
