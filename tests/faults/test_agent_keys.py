"""Whatever is stored at a key that an agent reads or writes: its worker goes on, callers are answered, and the next
command runs as soon as the value is gone."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from redis import Redis
from support import gone, make_cli, prepare, request, wait_until

from patience import PATIENCE_SECONDS
from tachikoma import Client, ExecState, TachikomaError
from tachikoma.dev.stack import Stack
from tachikoma.redis import keys
from tachikoma.redis.users import agent_user

AGENT = "agent-1"
#: A value of each type, the right one too: then its content is wrong.
WRONG: dict[str, tuple[str | bytes, ...]] = {
    "string": ("SET", "x"),
    "bytes": ("SET", b"\xff\xfe"),
    "nested": ("SET", "[" * 100_000),
    "list": ("RPUSH", "x"),
    "set": ("SADD", "x"),
    "zset": ("ZADD", "1", "x"),
    "hash": ("HSET", "x", "x"),
    "stream": ("XADD", "*", "x", "x"),
}
#: Keys of one execution, by agent and id.
OF_EXECUTION: dict[str, Callable[[str, str], str]] = {
    "claim": keys.claim,
    "output": keys.output,
    "result": keys.result,
    "cancel": keys.cancel,
    "read": keys.read,
    "input": keys.input,
    "session": keys.session,
}
#: Keys of the agent and of its life.
OF_AGENT = {
    "info": keys.info(AGENT),
    "orders": keys.orders(AGENT),
    "queue": keys.queue(AGENT),
    "life": keys.LIFE,
}


class LossyStack(Stack):
    """A stack in which records are altered, so its books are not compared."""


class World:
    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.client = Client(stack.profile())
        self.redis = Redis(**stack.redis_admin)
        #: The worker that no value may end.
        self.expected = self.worker

    def put(self, key: str, wrong: str) -> None:
        """Replace what is at a key."""
        command, *values = WRONG[wrong]
        with self.redis.pipeline(transaction=True) as pipe:
            pipe.delete(key)
            pipe.execute_command(command, key, *values)
            pipe.execute()

    def answer(self, exec_id: str) -> str:
        """Execute a command, and return its state or the class of the error."""
        try:
            return str(self.client.execute(request("echo", "x", id=exec_id)).state)
        except TachikomaError as error:
            return type(error).__name__

    def works(self) -> bool:
        return self.answer(request("true").id) == ExecState.SUCCEEDED

    def connected(self) -> bool:
        """Whether the agent has connections to Redis."""
        return any(one["user"] == agent_user(AGENT) for one in self.redis.client_list())

    @property
    def worker(self) -> psutil.Process:
        pid = self.stack.agents[AGENT].pid
        assert pid is not None
        return psutil.Process(pid)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, redis_server: Path | None) -> Iterator[World]:
    environment = {
        "TACHIKOMA_SWEEP": "500ms", "TACHIKOMA_LEASE": "5s", "TACHIKOMA_SLOTS": "4",
        "TACHIKOMA_RATE_LIMIT": json.dumps({"queueTimeout": "5s"}),
    }  # fmt: skip
    data = prepare(tmp_path_factory.mktemp("agent"))
    with LossyStack(data, redis_server=redis_server, environment=environment) as stack:
        made = World(stack)
        yield made
        made.client.close()
        made.redis.close()


@pytest.fixture(autouse=True)
def same_processes(world: World) -> Iterator[None]:
    """No value ends a process, and the agent serves again."""
    orchestrator = world.stack.orchestrator.pid
    yield
    wait_until(world.works, "the agent serves again")
    assert (world.worker, world.stack.orchestrator.pid) == (world.expected, orchestrator)


@pytest.mark.parametrize("name", OF_EXECUTION)
def test_a_wrong_value_at_a_key_of_an_execution_concerns_no_other(world: World, name: str) -> None:
    wanted = {wrong: request("true").id for wrong in WRONG}
    for wrong, exec_id in wanted.items():
        world.put(OF_EXECUTION[name](AGENT, exec_id), wrong)
    with ThreadPoolExecutor(len(wanted)) as threads:
        callers = {wrong: threads.submit(world.answer, exec_id) for wrong, exec_id in wanted.items()}
        # Beside them.
        assert world.works()
        answers = {wrong: caller.result(PATIENCE_SECONDS) for wrong, caller in callers.items()}
    if name == "claim":
        # It lets nothing start, since nobody can tell whose it is.
        assert not set(answers.values()) & {ExecState.SUCCEEDED, ExecState.FAILED}, answers
    elif name == "output":
        assert set(answers.values()) <= {ExecState.SUCCEEDED, "OutputAltered"}, answers
    elif name == "result":
        assert set(answers.values()) <= {ExecState.SUCCEEDED, "RecordAltered"}, answers
    else:
        assert set(answers.values()) == {ExecState.SUCCEEDED}, answers
    for exec_id in wanted.values():
        world.redis.delete(OF_EXECUTION[name](AGENT, exec_id))


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("name", OF_AGENT)
def test_a_wrong_value_at_a_key_of_an_agent_passes(world: World, name: str, wrong: str) -> None:
    try:
        world.put(OF_AGENT[name], wrong)
        # It ends in whatever way, and within the time that it may wait on the queue.
        assert world.answer(request("true").id)
    finally:
        world.redis.delete(OF_AGENT[name])


def test_all_queues_of_an_agent_may_hold_wrong_values_at_once(world: World) -> None:
    try:
        for queue, wrong in zip(keys.queues(AGENT), [*WRONG, *WRONG], strict=True):
            world.put(queue, wrong)
        assert world.answer(request("true").id)
    finally:
        world.redis.delete(*keys.queues(AGENT))


def test_a_wrong_value_does_not_keep_a_cancel_from_a_running_command(world: World, tmp_path: Path) -> None:
    wanted = {name: request("sh", "-c", f"echo $$ > {tmp_path}/{name}; exec sleep 600") for name in OF_EXECUTION}
    for name, made in wanted.items():
        world.client.submit(made)
        wait_until(lambda name=name: (tmp_path / name).exists() and (tmp_path / name).read_text(), f"{name}: it runs")
        world.put(OF_EXECUTION[name](AGENT, made.id), "hash" if name != "claim" else "list")
        world.client.cancel(made.id)
        pid = int((tmp_path / name).read_text())
        wait_until(lambda pid=pid: gone(pid), f"{name}: it is killed")
        wait_until(lambda made=made: world.client.status(made.id).state.terminal, f"{name}: it ends")
        world.redis.delete(OF_EXECUTION[name](AGENT, made.id))


@pytest.mark.parametrize("wrong", ["string", "list", "hash", "stream"])
def test_a_worker_starts_whatever_is_at_its_keys(world: World, wrong: str) -> None:
    """Its commands go on, and it serves when the values are gone."""
    cli, other = make_cli(world.stack), "kept-" + wrong
    world.client.submit(request("sh", "-c", "echo begun; exec sleep 2", id=other))
    wait_until(lambda: world.client.status(other).state is ExecState.STARTED, "it runs")
    part = world.stack.agents[AGENT]
    pid = part.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    part.process.wait(PATIENCE_SECONDS)
    wait_until(lambda: not world.connected(), "its connections are gone")
    for key in OF_AGENT.values():
        world.put(key, wrong)
    part.start()
    # The values stay until it has met them.
    wait_until(lambda: part.alive and world.connected(), "it uses Redis")
    world.redis.delete(*OF_AGENT.values())
    wait_until(world.works, "it serves")
    assert part.alive
    world.expected = world.worker
    wait_until(lambda: world.client.status(other).state is ExecState.SUCCEEDED, "its command ended")
    assert cli.run("logs", other).stdout == b"begun\n"
