"""Rate limits over several orchestrators that are killed meanwhile: never exceeded, and given back to the last."""

from __future__ import annotations

import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
from support import prepare
from world import Job, Observer, World

from tachikoma import AgentOffline, AuditCode, Client, ExecState, ResourceExhausted, Unavailable
from tachikoma.redis import keys
from tachikoma.vocabulary.audit import ExecAuditLog
from tachikoma_orchestrator.audit.entries import parse

#: Executions not ended, not started, and accepted in any minute.
CONCURRENT, WAITING, RATE = 5, 4, 36
CALLERS = 9
#: Processes that are killed at least, and executions that callers request until then: fewer than the minute has, by
#: more than there are callers.
KILLS, MEANWHILE = 3, RATE - 2 * CALLERS
#: Longest time until the limit of a minute is reached.
SECONDS = 180
MINUTE = timedelta(minutes=1)
ENDS = {str(state.lower()) for state in ExecState if state.terminal}
ORCHESTRATORS = ("orchestrator", "orchestrator-2", "orchestrator-3")
VICTIMS = (*ORCHESTRATORS, "agent-1", "orchestrator-2", "agent-1", "orchestrator")


@pytest.mark.timeout(SECONDS + 120)
def test_limits_hold_over_several_orchestrators_whatever_is_killed(tmp_path: Path, redis_server: Path | None) -> None:
    policy = prepare(tmp_path) / "policy.yaml"
    limits = f"{{concurrentLimit: {CONCURRENT}, queueSize: {WAITING}, requestsPerMinute: {RATE}}}"
    policy.write_text(policy.read_text() + f"    rateLimit: {limits}\n")
    used_up, accepted, killed = threading.Event(), [], []
    refusals: set[str] = set()

    def ask(world: World, caller: int) -> None:
        """Ask for one execution after the other, at any orchestrator, until the minute's are used up."""
        chance = random.Random(caller)
        number = 0
        deadline = time.monotonic() + SECONDS
        while not used_up.is_set() and time.monotonic() < deadline:
            if len(accepted) >= MEANWHILE and len(killed) < KILLS:
                time.sleep(0.05)
                continue
            with Client(world.profile_of(chance.choice(ORCHESTRATORS))) as client:
                for _ in range(3):
                    job = Job.make(tmp_path, f"caller-{caller}-{number}", lines=5)
                    try:
                        client.submit(job.request)
                    except ResourceExhausted as refused:
                        refusals.add(refused.metadata["limit"])
                        if refused.metadata["limit"] == "rate":
                            used_up.set()
                            return
                        time.sleep(0.02)
                        continue
                    except (Unavailable, AgentOffline):
                        # Whether it was accepted, its id tells: the same is asked for again.
                        break
                    accepted.append(job)
                    number += 1

    with World(tmp_path, orchestrators=len(ORCHESTRATORS), redis_server=redis_server) as world:
        with ThreadPoolExecutor(CALLERS) as pool:
            asking = [pool.submit(ask, world, caller) for caller in range(CALLERS)]
            for victim in VICTIMS:
                if used_up.is_set():
                    break
                world.kill(victim)
                world.start_again(victim)
                killed.append(victim)
            for one in asking:
                one.result()
        # Which of the other two limits is met first depends on how fast the agent takes what waits.
        assert "rate" in refusals
        assert refusals & {"concurrent", "waiting"}
        assert len(killed) >= KILLS
        with world.direct() as redis:
            events = [parse(entry) for entry in redis.xrange(keys.AUDIT)]  # type: ignore[union-attr]
        _check_limits(events)
        Observer(world, accepted).check()
        with world.direct() as redis:
            # What is taken is given back: only the minute's count stays, for a minute.
            assert redis.keys("orch:open:*") == []
            assert redis.keys("orch:waiting:*") == []


def _check_limits(trail: list[ExecAuditLog]) -> None:
    """Walk through the trail, which tells in which order what was accepted, started and ended."""
    running: set[str] = set()
    waiting: set[str] = set()
    most = 0
    admitted = {event.id: event.time for event in trail if event.event == AuditCode.ADMITTED}
    assert len(admitted) == sum(event.event == AuditCode.ADMITTED for event in trail)
    times = list(admitted.values())
    assert all(later - earlier >= MINUTE for earlier, later in zip(times, times[RATE:], strict=False))
    for code, exec_id in ((event.event, event.id) for event in trail):
        if code == AuditCode.ADMITTED:
            running.add(exec_id)
            waiting.add(exec_id)
        elif code == AuditCode.STARTED:
            waiting.discard(exec_id)
        elif code in ENDS:
            running.discard(exec_id)
            waiting.discard(exec_id)
        assert len(running) <= CONCURRENT
        assert len(waiting) <= WAITING
        most = max(most, len(running))
    # The limit was what held it.
    assert most == CONCURRENT
