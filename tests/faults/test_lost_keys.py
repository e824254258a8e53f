"""Each key of an execution is deleted, expired or replaced while callers wait: every caller gets an answer in time."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Event

import pytest
from redis import Redis
from soak.lost_keys import OWN, delete, expire, retype
from support import prepare, request, wait_until

from patience import PATIENCE_SECONDS
from tachikoma import Client, ExecRequest, ExecState, OutputAltered, RecordAltered, TachikomaError
from tachikoma.dev.stack import Stack
from tachikoma.errors import NotFound, ResultUnknown
from tachikoma.redis import keys

RUNS, WAITS = "agent-1", "agent-2"
#: A caller whose record is gone has its answer after 15 s; the rest is the load of the machine.
BOUND_SECONDS = PATIENCE_SECONDS
QUEUE_SECONDS = 6
#: Keys that executions share.
SHARED = (
    keys.INDEX, keys.OPEN, *keys.queues(RUNS), *keys.queues(WAITS), keys.agent_index(RUNS), keys.agent_index(WAITS),
)  # fmt: skip


class LossyStack(Stack):
    """A stack whose ledger loses what it must not lose, so its books are not compared."""


FAULTS = (delete, expire, retype)
#: States of an execution whose command was started; on a slow machine it has ended.
RAN = (ExecState.STARTED, ExecState.SUCCEEDED)


class World:
    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.client = Client(stack.profile())
        self.redis = Redis(**stack.redis_admin)
        self.threads = ThreadPoolExecutor(max_workers=64)

    def callers(self, wanted: ExecRequest) -> list[Future[str]]:
        """Let one caller wait for the result, and one follow the output."""
        waiting = self.threads.submit(self.answer, lambda: self.client.execute(wanted).state)
        wait_until(lambda: self.redis.exists(keys.execution(wanted.id)), "it is accepted")
        attached = Event()
        following = self.threads.submit(self.answer, lambda: self.followed(wanted.id, attached))
        assert attached.wait(PATIENCE_SECONDS)
        return [waiting, following]

    def followed(self, exec_id: str, attached: Event) -> ExecState:
        result = None
        for output in self.client.attach(exec_id):
            attached.set()
            result = output.result
        assert result is not None
        return result.state

    @staticmethod
    def answer(call: Callable[[], ExecState]) -> str:
        """The state that a caller gets, or the class of its error."""
        try:
            return str(call())
        except (NotFound, ResultUnknown, RecordAltered, OutputAltered) as error:
            return type(error).__name__

    def running(self, seconds: float) -> ExecRequest:
        return request("sh", "-c", f"echo one; sleep {seconds}; echo two", agent_id=RUNS)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """The second agent keeps its lease for a while, and takes nothing from its queue."""
        pid = self.stack.agents[WAITS].pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)

    def serve_again(self) -> None:
        for agent in (RUNS, WAITS):
            wait_until(lambda agent=agent: self.works(agent), f"{agent} serves", 60)

    def works(self, agent: str) -> bool:
        try:
            return self.client.execute(request("true", agent_id=agent)).exit_code == 0
        except TachikomaError:
            return False


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, redis_server: Path | None) -> Iterator[World]:
    environment = {
        "TACHIKOMA_SWEEP": "500ms",
        "TACHIKOMA_LEASE": "5s",
        "TACHIKOMA_RATE_LIMIT": json.dumps({"queueTimeout": f"{QUEUE_SECONDS}s"}),
    }
    data = prepare(tmp_path_factory.mktemp("lost"))
    with LossyStack(data, agents=2, redis_server=redis_server, environment=environment) as stack:
        made = World(stack)
        pid = stack.orchestrator.pid
        yield made
        assert stack.orchestrator.pid == pid
        assert stack.orchestrator.alive
        made.client.close()


def answers(callers: dict[str, list[Future[str]]]) -> dict[str, tuple[str, ...]]:
    until = time.monotonic() + BOUND_SECONDS
    return {
        name: tuple(future.result(timeout=max(0.1, until - time.monotonic())) for future in futures)
        for name, futures in callers.items()
    }


def test_every_caller_of_a_running_execution_is_answered_whichever_of_its_keys_is_lost(world: World) -> None:
    callers, wanted = {}, {}
    for name in OWN:
        for fault in FAULTS:
            label = f"{fault.__name__} {name}"
            # Shorter than the time between the two looks that a caller of a lost record is given.
            wanted[label] = world.running(3)
            callers[label] = world.callers(wanted[label])
    for label, made in wanted.items():
        wait_until(lambda made=made: world.redis.exists(keys.claim(RUNS, made.id)), f"{label}: it is claimed")
        wait_until(lambda made=made: world.client.status(made.id).state in RAN, f"{label}: it runs")
    for name, key in OWN.items():
        for fault in FAULTS:
            fault(world.redis, key(RUNS, wanted[f"{fault.__name__} {name}"].id))
    # The receipt comes in time, and answers, also where the ledger has no record any more.
    assert answers(callers) == dict.fromkeys(callers, (ExecState.SUCCEEDED, ExecState.SUCCEEDED))


def test_callers_of_a_lost_record_do_not_wait_for_the_end_of_the_command(world: World, tmp_path: Path) -> None:
    callers, wanted = {}, {}
    end = tmp_path / "end"
    for fault in FAULTS:
        until = f"while [ ! -e {end} ]; do sleep 0.05; done"
        wanted[fault.__name__] = request("sh", "-c", f"echo one; {until}", agent_id=RUNS)
        callers[fault.__name__] = world.callers(wanted[fault.__name__])
    for label, made in wanted.items():
        wait_until(lambda made=made: world.redis.exists(keys.claim(RUNS, made.id)), f"{label}: it is claimed")
    for fault in FAULTS:
        fault(world.redis, keys.execution(wanted[fault.__name__].id))
    try:
        assert answers(callers) == dict.fromkeys(callers, ("ResultUnknown", "ResultUnknown"))
    finally:
        # They would take the slots of the other tests.
        end.touch()


def test_every_caller_of_a_queued_execution_is_answered_whichever_of_its_keys_is_lost(world: World) -> None:
    callers, wanted, late = {}, {}, set()
    with world.frozen():
        for name in OWN:
            for fault in FAULTS:
                label = f"{fault.__name__} {name}"
                wanted[label] = request("true", agent_id=WAITS)
                callers[label] = world.callers(wanted[label])
        for name, key in OWN.items():
            for fault in FAULTS:
                label = f"{fault.__name__} {name}"
                if world.redis.hget(keys.execution(wanted[label].id), "state") != b"QUEUED":
                    # Only on a slow machine: it has waited for too long before anything was lost.
                    late.add(label)
                fault(world.redis, key(WAITS, wanted[label].id))
        found = answers(callers)
    for label, states in found.items():
        lost_record = label.endswith("record") and label not in late
        # A claim of another type lets nothing start, but nothing says that nothing has started.
        allowed = {"ResultUnknown"} if lost_record else {ExecState.EXPIRED, ExecState.LOST}
        assert set(states) <= allowed, label
    world.serve_again()


@pytest.mark.parametrize("fault", FAULTS)
def test_every_caller_is_answered_when_indexes_and_queues_are_lost(
    world: World, fault: Callable[[Redis, str], None]
) -> None:
    with world.frozen():
        callers = {
            "running": world.callers(world.running(4)),
            "queued": world.callers(request("true", agent_id=WAITS)),
        }
        for key in SHARED:
            fault(world.redis, key)
        found = answers(callers)
    assert found["running"] == (ExecState.SUCCEEDED, ExecState.SUCCEEDED)
    assert found["queued"] == (ExecState.EXPIRED, ExecState.EXPIRED)
    world.redis.delete(*SHARED)
    world.serve_again()


def test_queues_of_another_type_keep_no_order_on_another_queue_waiting(world: World) -> None:
    own = keys.requester_queue(RUNS, world.client.spiffe_id, keys.QUEUE_LANES)
    others = set(keys.queues(RUNS)) - {own}
    try:
        for queue in others:
            retype(world.redis, queue)
        for _ in range(5):
            assert world.client.execute(request("true", agent_id=RUNS)).state is ExecState.SUCCEEDED
    finally:
        world.redis.delete(*others)
    world.serve_again()


def test_every_caller_is_answered_when_redis_is_emptied(world: World) -> None:
    with world.frozen():
        long, short = world.running(20), world.running(4)
        callers = {"long": world.callers(long), "short": world.callers(short)}
        for made in (long, short):
            wait_until(lambda made=made: world.redis.exists(keys.claim(RUNS, made.id)), "it is claimed")
        callers["queued"] = world.callers(request("true", agent_id=WAITS))
        world.redis.flushall()
        found = answers(callers)
    # The agent that still runs shows the orders again, from which the records are rebuilt.
    assert set(found.pop("long")) <= {ExecState.SUCCEEDED, "ResultUnknown"}
    assert found == {
        "short": (ExecState.SUCCEEDED, ExecState.SUCCEEDED),
        "queued": ("ResultUnknown", "ResultUnknown"),
    }
    wait_until(lambda: world.redis.exists(keys.execution(long.id)), "its record was rebuilt", 60)
    wait_until(lambda: world.client.status(long.id).state.terminal, "it ends", 60)
    assert world.client.status(long.id).state is ExecState.SUCCEEDED
    world.serve_again()


@pytest.mark.parametrize("fault", FAULTS)
def test_an_id_that_is_used_again_after_its_record_was_lost_does_not_run_twice_and_ends(
    world: World, fault: Callable[[Redis, str], None], tmp_path: Path
) -> None:
    marks = tmp_path / "marks"
    wanted = request("sh", "-c", f"echo ran >> {marks}", agent_id=RUNS)
    assert world.client.execute(wanted).state is ExecState.SUCCEEDED
    fault(world.redis, keys.execution(wanted.id))
    if fault is retype:
        world.redis.delete(keys.execution(wanted.id))
    # It expires a millisecond later, and a call may be as fast.
    wait_until(lambda: not world.redis.exists(keys.execution(wanted.id)), "the record is gone")
    again = world.client.execute(wanted)
    assert again.state is ExecState.LOST
    assert "another order of this id" in again.error
    assert marks.read_text() == "ran\n"


def test_an_id_that_is_used_again_while_its_first_order_runs_ends(world: World, tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    wanted = request("sh", "-c", f"echo ran >> {marks}; sleep 3", agent_id=RUNS)
    first = world.callers(wanted)
    wait_until(marks.exists, "it runs")
    world.redis.delete(keys.execution(wanted.id))
    assert world.client.execute(wanted).state is ExecState.LOST
    # Whoever asked first gets the receipt of the first order.
    assert first[0].result(timeout=BOUND_SECONDS) == ExecState.SUCCEEDED
    assert marks.read_text() == "ran\n"


def test_an_execution_whose_result_is_lost_is_not_shown_as_started_for_long(world: World, tmp_path: Path) -> None:
    """No orchestrator was running when it ended, and its result is gone."""
    go = tmp_path / "go"
    wanted = {
        fault: request("sh", "-c", f"while [ ! -e {go} ]; do sleep 0.05; done", agent_id=RUNS) for fault in FAULTS
    }
    for made in wanted.values():
        world.client.submit(made)
    for made in wanted.values():
        wait_until(lambda made=made: world.client.status(made.id).state is ExecState.STARTED, "it runs")
    pid = world.stack.orchestrator.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        # Nothing subscribes for it while it ends.
        for connection in world.redis.client_list(_type="pubsub"):
            if connection["name"].startswith("orchestrator"):
                world.redis.client_kill_filter(_id=connection["id"])
        go.touch()
        for made in wanted.values():
            wait_until(lambda made=made: world.redis.exists(keys.result(RUNS, made.id)), "it has ended")
        for fault, made in wanted.items():
            fault(world.redis, keys.result(RUNS, made.id))
    finally:
        os.kill(pid, signal.SIGCONT)
    for fault, made in wanted.items():
        given_up = f"{fault.__name__}: it is given up"
        wait_until(lambda made=made: world.client.status(made.id).state is not ExecState.STARTED, given_up, 60)
        assert world.client.status(made.id).state is ExecState.LOST
        assert "its result in Redis is" in world.client.status(made.id).error
