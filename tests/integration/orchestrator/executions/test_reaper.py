"""The reaper's passes, on a real Redis."""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from members import AGENT, OPERATOR, Stand
from tachikoma.config.tasks import cancel_all
from tachikoma.redis import keys
from tachikoma.redis.commands import Redis
from tachikoma.vocabulary.clock import now_ms
from tachikoma.vocabulary.policies import RateLimitConfig
from tachikoma.vocabulary.requests import ExecRequest
from tachikoma.vocabulary.states import ExecState
from tachikoma_orchestrator.agents import silence
from tachikoma_orchestrator.agents.registry import Registry
from tachikoma_orchestrator.audit.findings import Findings
from tachikoma_orchestrator.audit.trail import TrailBounds
from tachikoma_orchestrator.executions import reaper as module
from tachikoma_orchestrator.executions.collector import Collector
from tachikoma_orchestrator.executions.evidence import Evidence
from tachikoma_orchestrator.executions.reaper import Reaper, Retention
from tachikoma_orchestrator.executions.record import Record
from tachikoma_orchestrator.executions.revocation import ExecutionsOfMembers
from tachikoma_orchestrator.executions.transitions import FENCE, Admission, Dispatch, Outcome
from tachikoma_orchestrator.executions.waiters import Completions

HEARTBEAT = {
    "boot": "boot", "run": "r", "version": "0", "hostname": "h", "slots": 1, "running": 0, "load": 0, "memory_used": 0,
    "disk_used": 0,
}  # fmt: skip


@pytest.fixture
async def stand(redis: Redis, tmp_path: Path) -> Stand:
    stand = Stand(redis, tmp_path)
    await redis.set(keys.info(AGENT), json.dumps(HEARTBEAT))
    await redis.hset(keys.AGENTS, AGENT, json.dumps({"seen_ms": 1, "heartbeat": HEARTBEAT}))
    return stand


def reaper(stand: Stand, *, lease: timedelta = timedelta(0), lives: Any = None) -> Reaper:
    registry = Registry(stand.redis, stand.identity)
    findings = Findings(stand.redis, stand.trail)
    evidence = Evidence(stand.redis, findings, stand.identity, registry.revocations)
    collector = Collector(stand.redis, stand.ledger, Completions(), registry, stand.identity, evidence, findings)
    return Reaper(
        stand.redis, stand.ledger, registry, collector, lease=lease, interval=timedelta(hours=1),
        retention=Retention(stand.trail, TrailBounds(timedelta(hours=1), 1000, closed=False)), lives=lives,
        executions=ExecutionsOfMembers(stand.redis, stand.ledger, stand.identity),
    )  # fmt: skip


async def admit(
    stand: Stand, exec_id: str, *, wait: timedelta = timedelta(minutes=9), asks: bool = False, life: int = 0,
    dispatched: bool = True,
) -> None:  # fmt: skip
    request = ExecRequest(id=exec_id, agent_id=AGENT, command=["/bin/true"], requested_by=str(OPERATOR))
    more: dict[str, Any] = {"parked": "x", "approvers": (str(OPERATOR),)} if asks else {}
    admission = Admission(request, request.command, "digest", "web@1", "", wait, timedelta(hours=1), {}, **more)
    dispatch = None if asks or not dispatched else Dispatch("digest", "order", "web@1", b"message", life)
    assert (await stand.ledger.admit(admission, dispatch))[0] is Outcome.ADMITTED


async def read(stand: Stand, exec_id: str) -> Record:
    record = await stand.ledger.record(exec_id)
    assert record is not None
    return record


async def test_an_execution_past_its_deadline_expires_and_can_never_start(stand: Stand) -> None:
    await admit(stand, "late", wait=timedelta(0))
    await admit(stand, "early")
    await reaper(stand).sweep()
    late = await read(stand, "late")
    assert (late.state, late.error) == (ExecState.EXPIRED, "not started before its queue timeout")
    assert await stand.redis.get(keys.claim(AGENT, "late")) == FENCE.encode()
    assert (await read(stand, "early")).state is ExecState.QUEUED


async def test_an_execution_that_is_not_approved_in_time_expires(stand: Stand) -> None:
    await admit(stand, "asks", wait=timedelta(0), asks=True)
    await reaper(stand).sweep()
    record = await read(stand, "asks")
    assert (record.state, record.error) == (ExecState.EXPIRED, "not approved in time")


async def test_a_claimed_execution_is_not_expired_but_its_start_is_noted(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SETTLE_MS", -1)
    await admit(stand, "claimed", wait=timedelta(0))
    await stand.redis.set(keys.claim(AGENT, "claimed"), "boot")
    await reaper(stand).sweep()
    assert (await read(stand, "claimed")).state is ExecState.STARTED


@pytest.mark.parametrize(
    ("boot", "online", "known", "reason"),
    [
        ("boot", True, True, ""),
        ("another", True, True, "its agent lost its journal, so the result is unknown"),
        (b"\xff\xfe", True, True, "its agent lost its journal, so the result is unknown"),
        ("boot", False, True, "its agent sent no heartbeat for 0 s"),
        ("boot", False, False, "its agent is unknown"),
    ],
)
async def test_a_started_execution_is_lost_with_the_run_or_the_agent_that_claimed_it(
    stand: Stand, boot: str | bytes, online: bool, known: bool, reason: str
) -> None:
    await admit(stand, "runs")
    await stand.redis.set(keys.claim(AGENT, "runs"), boot)
    await stand.ledger.started(AGENT, "runs", 1)
    if not online:
        await stand.redis.delete(keys.info(AGENT))
    if not known:
        await stand.redis.delete(keys.AGENTS)
    sweeps = reaper(stand)
    await sweeps.sweep()
    # A claim that is found for the first time may be the sign of life of a worker that had been stopped.
    assert online or (await read(stand, "runs")).state is ExecState.STARTED
    await sweeps.sweep()
    record = await read(stand, "runs")
    assert (record.state, record.error) == (ExecState.LOST if reason else ExecState.STARTED, reason)


async def test_no_execution_is_lost_before_a_full_lease_of_silence(stand: Stand) -> None:
    await admit(stand, "runs")
    await stand.redis.set(keys.claim(AGENT, "runs"), "another")
    await stand.ledger.started(AGENT, "runs", 1)
    await reaper(stand, lease=timedelta(hours=1)).sweep()
    assert (await read(stand, "runs")).state is ExecState.STARTED


async def test_a_claim_that_cannot_be_read_keeps_no_other_execution_from_its_final_state(stand: Stand) -> None:
    await admit(stand, "broken", wait=timedelta(0))
    await admit(stand, "late", wait=timedelta(milliseconds=1))
    await stand.redis.lpush(keys.claim(AGENT, "broken"), "no string")
    sweeps = reaper(stand)
    for _ in range(2):
        await sweeps.sweep()
    assert (await read(stand, "late")).state is ExecState.EXPIRED
    broken = await read(stand, "broken")
    assert broken.state is ExecState.LOST
    assert "its claim cannot be read" in broken.error


@pytest.mark.parametrize("kind", ["deleted", "string", "hash", "list"])
async def test_an_index_that_is_lost_or_no_index_is_made_again(stand: Stand, kind: str) -> None:
    await admit(stand, "late")
    sweeps = reaper(stand)
    await sweeps.sweep()
    await stand.redis.delete(keys.OPEN)
    plant = {"string": ("SET", "x"), "hash": ("HSET", "x", "y"), "list": ("RPUSH", "x")}
    if kind in plant:
        command, *values = plant[kind]
        await stand.redis.execute_command(command, keys.OPEN, *values)
    await sweeps.sweep()
    assert await stand.redis.zrange(keys.OPEN, 0, -1) == [b"late"]
    await stand.redis.hset(keys.execution("late"), "deadline_ms", 1)
    await sweeps.sweep()
    assert (await read(stand, "late")).state is ExecState.EXPIRED
    assert await stand.redis.zrange(keys.OPEN, 0, -1) == []


@pytest.mark.parametrize("kind", ["deleted", "string"])
async def test_an_index_that_was_lost_gets_executions_that_no_pass_has_seen(stand: Stand, kind: str) -> None:
    sweeps = reaper(stand)
    await admit(stand, "seen")
    await sweeps.sweep()
    await admit(stand, "unseen")
    await stand.redis.delete(keys.OPEN, keys.INDEX)
    if kind == "string":
        await stand.redis.set(keys.OPEN, "x")
    for _ in range(2):
        await sweeps.sweep()
    assert set(await stand.redis.zrange(keys.OPEN, 0, -1)) == {b"seen", b"unseen"}


@pytest.mark.parametrize("planted", [None, "no receipt", ["no string"]])
async def test_an_execution_that_its_agent_holds_no_longer_is_lost_without_its_result(
    stand: Stand, monkeypatch: pytest.MonkeyPatch, planted: Any
) -> None:
    monkeypatch.setattr(module, "SETTLE_MS", -1)
    monkeypatch.setattr(silence, "RESULT_SECONDS", 0)
    await admit(stand, "ended")
    await admit(stand, "runs")
    for exec_id in ("ended", "runs"):
        await stand.redis.set(keys.claim(AGENT, exec_id), "boot")
        await stand.ledger.started(AGENT, exec_id, 1)
    if isinstance(planted, str):
        await stand.redis.set(keys.result(AGENT, "ended"), planted)
    elif planted:
        await stand.redis.rpush(keys.result(AGENT, "ended"), *planted)
    await stand.redis.set(keys.info(AGENT), json.dumps({**HEARTBEAT, "executions": ["runs"]}))
    await reaper(stand).sweep()
    ended = await read(stand, "ended")
    assert ended.state is ExecState.LOST
    assert ended.error.startswith("its agent no longer holds it, and its result in Redis is")
    assert (await read(stand, "runs")).state is ExecState.STARTED


async def test_agents_that_cannot_be_read_lose_no_execution_and_expire_the_late(stand: Stand) -> None:
    await admit(stand, "late", wait=timedelta(0))
    await admit(stand, "runs")
    await stand.redis.set(keys.claim(AGENT, "runs"), "another")
    await stand.ledger.started(AGENT, "runs", 1)
    await stand.redis.delete(keys.AGENTS)
    await stand.redis.set(keys.AGENTS, "no hash")
    await reaper(stand, lease=timedelta(minutes=1)).sweep()
    assert (await read(stand, "late")).state is ExecState.EXPIRED
    assert (await read(stand, "runs")).state is ExecState.STARTED


async def test_limits_are_released_when_a_record_is_gone(stand: Stand) -> None:
    request = ExecRequest(id="gone", agent_id=AGENT, command=["/bin/true"], requested_by=str(OPERATOR))
    scopes = {"agent:web-1": RateLimitConfig(concurrent_limit=1)}
    admission = Admission(
        request, request.command, "digest", "web@1", "", timedelta(minutes=9), timedelta(hours=1), scopes
    )
    assert (await stand.ledger.admit(admission, None))[0] is Outcome.ADMITTED
    sweeps = reaper(stand)
    await sweeps.sweep()
    await stand.redis.delete(keys.execution("gone"))
    await sweeps.sweep()
    for key in keys.scope("agent:web-1")[1:]:
        assert await stand.redis.execute_command("SCARD", key) == 0


async def test_an_execution_whose_record_is_gone_is_removed_from_the_open_ones(stand: Stand) -> None:
    await admit(stand, "gone")
    await stand.redis.delete(keys.execution("gone"))
    await reaper(stand).sweep()
    assert await stand.redis.zcard(keys.OPEN) == 0


async def test_a_pass_reaches_every_execution_in_steps(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BATCH", 2)
    for number in range(7):
        # Every second one stays open, so the offset moves.
        await admit(stand, f"job-{number}", wait=timedelta(milliseconds=number) if number % 2 else timedelta(hours=1))
    while await stand.ledger.now_ms() <= (await read(stand, "job-5")).deadline_ms:
        pass
    await reaper(stand).sweep()
    states = [(await read(stand, f"job-{number}")).state for number in range(7)]
    assert states == [ExecState.EXPIRED if number % 2 else ExecState.QUEUED for number in range(7)]


@pytest.mark.parametrize(
    ("ahead_ms", "words"), [(90_500, "90 s ahead of"), (-600_000, "600 s behind"), (10**9, "ahead")]
)
async def test_what_waits_for_an_agent_whose_clock_is_wrong_ends_at_once_with_the_difference(
    stand: Stand, monkeypatch: pytest.MonkeyPatch, ahead_ms: int, words: str
) -> None:
    monkeypatch.setattr(module, "SETTLE_MS", -1)
    await admit(stand, "waits")
    await admit(stand, "claimed")
    await stand.redis.set(keys.claim(AGENT, "claimed"), "boot")
    made = reaper(stand)
    await made._registry.heard(AGENT, json.dumps({**HEARTBEAT, "sent_ms": now_ms() + ahead_ms}).encode())
    await made.sweep()
    record = await read(stand, "waits")
    assert record.state is ExecState.EXPIRED
    assert record.error.startswith(f"not started by agent {AGENT}: its clock is ")
    assert words in record.error
    assert await stand.redis.get(keys.claim(AGENT, "waits")) == FENCE.encode()
    # The agent reports the command that it has started.
    assert (await read(stand, "claimed")).state is ExecState.STARTED


# --- bounds of time ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("asks", [False, True])
async def test_a_deadline_is_held_between_two_passes(
    stand: Stand, monkeypatch: pytest.MonkeyPatch, until: Any, asks: bool
) -> None:
    monkeypatch.setattr(module, "DUE_SECONDS", 0.01)
    states: list[ExecState] = []

    async def look() -> None:
        while True:
            states.append((await read(stand, "late")).state)
            await asyncio.sleep(0.01)

    passes = asyncio.create_task(reaper(stand).run())
    # The next pass is an hour later.
    await asyncio.sleep(0.1)
    await admit(stand, "late", wait=timedelta(milliseconds=200), asks=asks)
    await admit(stand, "early")
    looks = asyncio.create_task(look())
    await until(lambda: ExecState.EXPIRED in states, "it expires")
    await cancel_all([passes, looks])
    late = await read(stand, "late")
    assert late.history[-1].at_ms >= late.deadline_ms
    assert (await read(stand, "early")).state is ExecState.QUEUED


@pytest.mark.parametrize(
    ("lease", "silent", "lost"), [(45, 29, False), (45, 31, True), (1, 0.5, False), (1, 1.5, True), (20, 16, True)]
)
async def test_silence_counts_from_the_last_heartbeat_and_starts_with_the_process(
    stand: Stand, monkeypatch: pytest.MonkeyPatch, lease: float, silent: float, lost: bool
) -> None:
    now = 1000.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    await admit(stand, "runs")
    await stand.redis.set(keys.claim(AGENT, "runs"), "boot")
    await stand.ledger.started(AGENT, "runs", 1)
    await stand.redis.delete(keys.info(AGENT))
    sweeps = reaper(stand, lease=timedelta(seconds=lease))
    sweeps._silence._answering_since = now - 1000
    await sweeps.sweep()
    now += silent
    await sweeps.sweep()
    assert (await read(stand, "runs")).state is (ExecState.LOST if lost else ExecState.STARTED)


async def test_the_grace_of_a_new_process_and_the_lease_do_not_add_up(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    await admit(stand, "runs")
    await stand.redis.set(keys.claim(AGENT, "runs"), "boot")
    await stand.ledger.started(AGENT, "runs", 1)
    await stand.redis.delete(keys.info(AGENT))
    sweeps = reaper(stand, lease=timedelta(seconds=45))
    for later, state in ((1, ExecState.STARTED), (44, ExecState.STARTED), (45, ExecState.LOST)):
        now = 1000.0 + later
        await sweeps.sweep()
        assert (await read(stand, "runs")).state is state


async def test_a_pass_costs_no_command_for_each_agent(stand: Stand) -> None:
    """With 10,000 agents these would be most of what Redis does at rest."""
    sweeps = reaper(stand)
    await admit(stand, "runs")

    async def commands_of_a_pass() -> int:
        # What is needed once was done by an earlier pass.
        await sweeps.sweep()
        before = (await stand.redis.info("stats"))["total_commands_processed"]
        await sweeps.sweep()
        return int((await stand.redis.info("stats"))["total_commands_processed"] - before)

    with_one = await commands_of_a_pass()
    for number in range(400):
        await stand.redis.set(keys.info(f"more-{number}"), json.dumps(HEARTBEAT))
        await stand.redis.hset(keys.AGENTS, f"more-{number}", json.dumps({"seen_ms": 1, "heartbeat": HEARTBEAT}))
        await stand.redis.hset(keys.ONLINE, f"more-{number}", "r")
    assert await commands_of_a_pass() <= with_one + 3


class LivesOf:
    """A life of Redis that lost data, and whose number agents report as text."""

    number = valid_from = 5
    latest = True
    #: Of a loss that nothing was queued before.
    lost_ms = 0

    def is_latest(self, token: bytes | None) -> bool:
        return self.latest

    def number_of(self, token: str) -> int:
        return int(token or 0)


async def test_an_execution_queued_before_a_loss_expires_once_its_agent_has_written_its_claims_again(
    stand: Stand,
) -> None:
    await admit(stand, "before", life=4)
    await admit(stand, "after", life=5)
    await admit(stand, "asks", asks=True)
    sweeps = reaper(stand, lives=LivesOf())
    await sweeps.sweep()
    assert (await read(stand, "before")).state is ExecState.QUEUED
    await stand.redis.set(keys.info(AGENT), json.dumps({**HEARTBEAT, "life": "5"}))
    await sweeps.sweep()
    before = await read(stand, "before")
    assert before.state is ExecState.EXPIRED
    assert before.error == "not started: Redis went back to an older state while it was queued"
    assert await stand.redis.get(keys.claim(AGENT, "before")) == FENCE.encode()
    assert (await read(stand, "after")).state is ExecState.QUEUED
    assert (await read(stand, "asks")).state is ExecState.PENDING_APPROVAL


async def test_an_execution_whose_order_was_lost_expires_as_well(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its admission is there, and what followed it is not."""
    lives = LivesOf()
    sweeps = reaper(stand, lives=lives)
    await stand.redis.set(keys.info(AGENT), json.dumps({**HEARTBEAT, "life": "5"}))
    await admit(stand, "before", dispatched=False)
    admitted_ms = (await read(stand, "before")).admitted_ms
    # Its order may follow at once: it was queued after the loss, or a moment ago.
    lives.lost_ms = admitted_ms - 1
    monkeypatch.setattr(module, "SETTLE_MS", -1)
    await sweeps.sweep()
    assert (await read(stand, "before")).state is ExecState.QUEUED
    lives.lost_ms = admitted_ms
    monkeypatch.setattr(module, "SETTLE_MS", 3_600_000)
    await sweeps.sweep()
    assert (await read(stand, "before")).state is ExecState.QUEUED
    monkeypatch.setattr(module, "SETTLE_MS", -1)
    await sweeps.sweep()
    before = await read(stand, "before")
    assert before.state is ExecState.EXPIRED
    assert before.error == "not started: Redis went back to an older state while it was queued"


async def test_an_execution_that_was_approved_after_a_loss_gets_its_order(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    lives = LivesOf()
    await admit(stand, "asks", asks=True)
    record = await read(stand, "asks")
    # The approval and the order are two changes where a replica must confirm the first one.
    await stand.redis.hset(
        keys.execution("asks"), "history", f"PENDING_APPROVAL {record.admitted_ms};QUEUED {record.admitted_ms + 2}"
    )
    await stand.redis.hset(keys.execution("asks"), "state", "QUEUED")
    lives.lost_ms = record.admitted_ms + 1
    monkeypatch.setattr(module, "SETTLE_MS", -3_600_000)
    await stand.redis.set(keys.info(AGENT), json.dumps({**HEARTBEAT, "life": "5"}))
    await reaper(stand, lives=lives).sweep()
    assert (await read(stand, "asks")).state is ExecState.QUEUED


async def test_a_queued_execution_is_not_judged_in_a_life_that_is_over(stand: Stand) -> None:
    """Another orchestrator has found a loss, and restored what it remembers. Its agent may have run it."""
    lives = LivesOf()
    lives.latest = False
    await admit(stand, "restored", life=5, wait=timedelta(milliseconds=1))
    await admit(stand, "before", life=4)
    # Longer than it may wait.
    await asyncio.sleep(0.01)
    await stand.redis.set(keys.info(AGENT), json.dumps({**HEARTBEAT, "life": "5"}))
    sweeps = reaper(stand, lives=lives)
    await sweeps.sweep()
    assert [(await read(stand, name)).state for name in ("restored", "before")] == [ExecState.QUEUED] * 2
    lives.latest = True
    await sweeps.sweep()
    assert [(await read(stand, name)).state for name in ("restored", "before")] == [ExecState.EXPIRED] * 2


async def test_an_execution_queued_before_a_loss_is_not_expired_if_its_agent_claimed_it(stand: Stand) -> None:
    await admit(stand, "ran", life=4)
    await stand.redis.set(keys.claim(AGENT, "ran"), "boot")
    await stand.redis.set(keys.info(AGENT), json.dumps({**HEARTBEAT, "life": "5"}))
    await reaper(stand, lives=LivesOf()).sweep()
    assert (await read(stand, "ran")).state is ExecState.QUEUED


async def test_claims_that_were_written_to_an_earlier_life_may_be_lost_again(stand: Stand) -> None:
    """The later life lacks no audit event that is known, so it counts as one without a loss."""
    lives = LivesOf()
    lives.number = 6
    await admit(stand, "before", life=4)
    sweeps = reaper(stand, lives=lives)
    for reported, state in (("5", ExecState.QUEUED), ("6", ExecState.EXPIRED)):
        await stand.redis.set(keys.info(AGENT), json.dumps({**HEARTBEAT, "life": reported}))
        await sweeps.sweep()
        assert (await read(stand, "before")).state is state


class NothingLost(LivesOf):
    """A life that is not known to have lost anything."""

    number, valid_from = 6, 0


PAST = timedelta(milliseconds=-1)


async def test_a_claim_that_left_no_event_may_be_lost_without_a_known_loss(stand: Stand) -> None:
    """Redis restarts within the second before a write reaches its file: the execution may have run, and ended."""
    sweeps = reaper(stand, lives=NothingLost())
    await admit(stand, "before", life=5, wait=PAST)
    await admit(stand, "now", life=6, wait=PAST)
    await stand.redis.set(keys.info(AGENT), json.dumps({**HEARTBEAT, "life": "5"}))
    await sweeps.sweep()
    await sweeps.expire_due()
    assert (await read(stand, "before")).state is ExecState.QUEUED
    # Its claim would have been written to this life.
    assert (await read(stand, "now")).state is ExecState.EXPIRED
    await stand.redis.set(keys.info(AGENT), json.dumps({**HEARTBEAT, "life": "6"}))
    await sweeps.sweep()
    before = await read(stand, "before")
    assert (before.state, before.error) == (ExecState.EXPIRED, "not started before its queue timeout")


async def test_a_claim_that_is_written_again_counts(stand: Stand) -> None:
    await admit(stand, "before", life=5, wait=PAST)
    await stand.redis.set(keys.info(AGENT), json.dumps({**HEARTBEAT, "life": "5"}))
    sweeps = reaper(stand, lives=NothingLost())
    await sweeps.sweep()
    await stand.redis.set(keys.claim(AGENT, "before"), "boot")
    await stand.redis.set(keys.info(AGENT), json.dumps({**HEARTBEAT, "life": "6"}))
    await sweeps.sweep()
    assert (await read(stand, "before")).state is ExecState.QUEUED


@pytest.mark.parametrize("lease", [timedelta(0), timedelta(hours=1)])
async def test_an_execution_of_an_earlier_life_waits_for_the_lease_of_its_silent_agent(
    stand: Stand, lease: timedelta
) -> None:
    await admit(stand, "before", life=5, wait=PAST)
    await stand.redis.delete(keys.info(AGENT))
    await reaper(stand, lives=NothingLost(), lease=lease).sweep()
    assert (await read(stand, "before")).state is (ExecState.QUEUED if lease else ExecState.EXPIRED)


async def test_a_worker_that_writes_nothing_again_is_not_waited_for(stand: Stand) -> None:
    await admit(stand, "before", life=5, wait=PAST)
    await stand.redis.set(keys.info(AGENT), json.dumps(HEARTBEAT))
    await reaper(stand, lives=NothingLost()).sweep()
    assert (await read(stand, "before")).state is ExecState.EXPIRED


async def test_an_execution_queued_before_a_loss_is_lost_with_its_silent_agent(stand: Stand) -> None:
    await admit(stand, "before", life=4)
    await stand.redis.delete(keys.info(AGENT))
    await reaper(stand, lives=LivesOf()).sweep()
    before = await read(stand, "before")
    assert before.state is ExecState.LOST
    assert before.error.endswith(", and Redis lost whether it was started")


async def test_an_execution_queued_before_a_loss_waits_for_its_agent_also_past_its_deadline(stand: Stand) -> None:
    """The agent may have run it, and may have reported that to an earlier life."""
    await admit(stand, "before", life=4, wait=timedelta(milliseconds=1))
    # Longer than it may wait.
    await asyncio.sleep(0.01)
    sweeps = reaper(stand, lives=LivesOf())
    await stand.redis.set(keys.info(AGENT), json.dumps({**HEARTBEAT, "life": "4"}))
    await sweeps.sweep()
    await sweeps.expire_due()
    assert (await read(stand, "before")).state is ExecState.QUEUED
    # A worker of an older version never names a life.
    await stand.redis.set(keys.info(AGENT), json.dumps(HEARTBEAT))
    await sweeps.sweep()
    before = await read(stand, "before")
    assert (before.state, before.error) == (ExecState.EXPIRED, "not started before its queue timeout")
