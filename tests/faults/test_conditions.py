"""Broken networks, full disks and memories, forgetful Redis, wrong clocks, messages twice and in disorder."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from support import AGENT, kill_redis, prepare, wait_until
from world import Job, Observer, World, end_of, submit

from order_queues import queue_with_orders
from patience import PATIENCE_SECONDS
from tachikoma import Client, ExecState, FailedPrecondition, Unavailable
from tachikoma.dev.part import Part
from tachikoma.redis import keys

SUCCEEDED, EXPIRED, LOST = ExecState.SUCCEEDED, ExecState.EXPIRED, ExecState.LOST
ORCHESTRATOR = "orchestrator"
#: Room of the agents' data, and of what is not taken while it is full.
DISK_BYTES = 24 * 1024 * 1024
HOUR = 3600


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, redis_server: Path | None) -> Iterator[World]:
    """A world whose agents have a disk of their own, where this user may mount one."""
    data = prepare(tmp_path_factory.mktemp("conditions"))
    disk = data / "agents"
    disk.mkdir()
    if os.getuid() == 0:
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(disk)], check=True)
    try:
        # A heartbeat comes within the lease, and an agent that is stopped for a moment does not count as gone.
        environment = {"TACHIKOMA_LEASE": "30s"}
        with World(data, redis_server=redis_server, queue_timeout="60s", environment=environment) as running:
            yield running
    finally:
        if os.getuid() == 0:
            subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.fixture
def client(world: World) -> Iterator[Client]:
    with Client(world.profile()) as connected:
        yield connected


def _running(world: World, client: Client, folder: Path, name: str, lines: int = 1000) -> tuple[Job, Path]:
    """A job that has written something and waits for a file."""
    go = folder / "go"
    job = Job.make(folder, name, lines=lines, go=go)
    submit(client, job)
    with world.direct() as redis:
        wait_until(lambda: redis.exists(keys.output(AGENT, job.id)), "it has written something")
    wait_until(lambda: client.status(job.id).state is ExecState.STARTED, "it runs")
    return job, go


# --- network ----------------------------------------------------------------------------------------------------------


def test_an_agent_cut_off_from_redis_delivers_everything_when_it_is_back(
    world: World, client: Client, tmp_path: Path
) -> None:
    job, go = _running(world, client, tmp_path, "cut-agent", lines=100_000)
    relay = world.relays["agent-1"]
    world.relays.do(relay.cut())
    go.touch()
    wait_until(lambda: job.ended, "it has ended there")
    world.relays.do(relay.mend())
    assert end_of(client, job) is SUCCEEDED
    Observer(world, [job]).check()


@pytest.mark.parametrize(("up", "down"), [(True, False), (False, True), (True, True)], ids=["up", "down", "both"])
def test_an_agent_that_does_not_hear_or_is_not_heard_delivers_everything_once(
    world: World, client: Client, tmp_path: Path, up: bool, down: bool
) -> None:
    job, go = _running(world, client, tmp_path, f"silent-agent-{up}-{down}")
    relay = world.relays["agent-1"]
    world.relays.do(relay.silence(up=up, down=down))
    go.touch()
    wait_until(lambda: job.ended, "it has ended there")
    if not up:
        with world.direct() as redis:
            wait_until(lambda: redis.xlen(keys.output(AGENT, job.id)) > 2, "its output is there, as nobody tells it")
    # What was under way is lost with the connections.
    world.relays.do(relay.cut())
    world.relays.do(relay.mend())
    assert end_of(client, job) is SUCCEEDED
    Observer(world, [job]).check()


@pytest.mark.parametrize(("up", "down"), [(True, False), (False, True), (True, True)], ids=["up", "down", "both"])
def test_an_orchestrator_that_does_not_hear_or_is_not_heard_accepts_once(
    world: World, client: Client, tmp_path: Path, up: bool, down: bool
) -> None:
    before, go = _running(world, client, tmp_path, f"before-silence-{up}-{down}")
    job = Job.make(tmp_path, f"silent-orchestrator-{up}-{down}")
    relay = world.relays[ORCHESTRATOR]
    world.relays.do(relay.silence(up=up, down=down))
    # Its answer is lost, or the request itself.
    with ThreadPoolExecutor(1) as pool, world.direct() as redis:
        asked = pool.submit(client.submit, job.request)
        if not up:
            wait_until(lambda: redis.exists(keys.execution(job.id)), "it is accepted, as nobody tells it")
        go.touch()
        wait_until(lambda: redis.exists(keys.result(AGENT, before.id)), "the other one has ended")
        world.relays.do(relay.cut())
        with pytest.raises(Unavailable):
            asked.result(PATIENCE_SECONDS)
        world.relays.do(relay.mend())
        submit(client, job)
    for each in (before, job):
        assert end_of(client, each) is SUCCEEDED
    Observer(world, [before, job]).check()


# --- delivery ---------------------------------------------------------------------------------------------------------


def test_orders_that_come_twice_and_in_disorder_start_once_each(world: World, client: Client, tmp_path: Path) -> None:
    jobs = [Job.make(tmp_path, f"twice-{number}") for number in range(8)]
    with world.stopped(AGENT), world.direct() as redis:
        for job in jobs:
            submit(client, job)
        queue = queue_with_orders(redis, AGENT)
        # One may be on its way to the agent already.
        messages = redis.lrange(queue, 0, -1)
        redis.rpush(queue, *messages)
        redis.lpush(queue, *messages[::2], *messages[1::2])
    assert [end_of(client, job) for job in jobs] == [SUCCEEDED] * len(jobs)
    Observer(world, jobs).check()


# --- no room ----------------------------------------------------------------------------------------------------------


def test_output_goes_on_while_the_agents_disk_is_full(
    world: World, client: Client, tmp_path: Path, need: Callable[[bool, str], None]
) -> None:
    need(os.getuid() == 0, "root, to mount a small file system")
    job, go = _running(world, client, tmp_path, "full-disk", lines=1_000_000)
    filler = world.data / "agents" / "filler"

    def full() -> bool:
        # The agent may still delete something of an earlier execution.
        with filler.open("ab", buffering=0) as file, suppress(OSError):
            while file.write(bytes(4096)):
                pass
        return psutil.disk_usage(str(filler.parent)).free == 0

    wait_until(full, "the disk is full")
    go.touch()
    assert end_of(client, job) is SUCCEEDED
    filler.unlink()
    Observer(world, [job]).check()


def test_a_redis_without_memory_refuses_and_loses_nothing(world: World, client: Client, tmp_path: Path) -> None:
    job, go = _running(world, client, tmp_path, "out-of-memory", lines=200_000)
    refused = Job.make(tmp_path, "refused")
    with world.direct() as redis:
        redis.config_set("maxmemory", 1)
        with pytest.raises(Unavailable, match="maxmemory"):
            client.submit(refused.request)
        go.touch()
        wait_until(lambda: job.ended, "it has ended there")
        redis.config_set("maxmemory", 0)
    submit(client, refused)
    assert [end_of(client, each) for each in (job, refused)] == [SUCCEEDED, SUCCEEDED]
    Observer(world, [job, refused]).check()


# --- time and memory --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library that makes clocks wrong."""
    library = tmp_path_factory.mktemp("clock") / "clock.so"
    compiler = os.environ.get("CC", "cc")
    source = Path(__file__).with_name("clock.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-O2", "-o", str(library), str(source)], check=True)
    return library


def _set_clock(part: Part, clock: Path, seconds: int) -> None:
    """Let the next start of a part be off by so much."""
    part._environment = {**part._environment, "LD_PRELOAD": str(clock), "CLOCK_OFFSET": str(seconds)}


def test_a_redis_whose_clock_is_wrong_by_hours_ends_everything_all_the_same(
    world: World, client: Client, tmp_path: Path, clock: Path
) -> None:
    """Its keys expire when it jumps ahead, and no agent is taken for gone; what is overdue then is given up."""
    for seconds, end in ((HOUR // 2, SUCCEEDED), (-5 * HOUR, SUCCEEDED), (0, LOST)):
        job, go = _running(world, client, tmp_path, f"wrong-clock-{seconds}")
        if end is LOST:
            # Also where nobody knows any more who claimed it.
            with world.direct() as redis:
                redis.delete(keys.claim(AGENT, job.id))
        kill_redis(world)
        _set_clock(world.redis, clock, seconds)
        world.start_redis()
        with world.direct() as redis:
            told, _ = redis.time()
            assert abs(told - seconds - psutil.time.time()) < 60
        world.wait_for_agents()
        if end is LOST:
            assert end_of(client, job) is LOST
        go.touch()
        after = Job.make(tmp_path, f"after-{seconds}")
        submit(client, after)
        assert [end_of(client, each) for each in (job, after)] == [end, SUCCEEDED]
        go.unlink()
        Observer(world, [job, after]).check()


def test_an_agent_whose_clock_is_hours_ahead_is_refused_in_words_and_starts_nothing(
    world: World, client: Client, tmp_path: Path, clock: Path
) -> None:
    agent = world.agents[AGENT]
    agent.stop()
    _set_clock(agent, clock, 5 * HOUR)
    world.start_again(AGENT)
    world.wait_for_agents()
    refused = Job.make(tmp_path, "clock-ahead")
    wait_until(lambda: any("its clock is" in text for text in client.agents()[0].warnings), "the warning is shown")
    with pytest.raises(FailedPrecondition, match=r"its clock is 1[78][0-9]{3} s ahead of the orchestrator's"):
        client.submit(refused.request)
    agent.stop()
    _set_clock(agent, clock, 0)
    world.start_again(AGENT)
    world.wait_for_agents()
    wait_until(lambda: not any("its clock is" in text for text in client.agents()[0].warnings), "the warning is gone")
    after = Job.make(tmp_path, "right-again")
    submit(client, after)
    assert end_of(client, after) is SUCCEEDED
    assert refused.starts == 0
    Observer(world, [after]).check()
