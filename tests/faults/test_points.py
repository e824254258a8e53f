"""SIGKILL and SIGSTOP of each process while executions stand at each step of their way.

One execution waits at each named point, all at the same time; then one process is killed or stopped, what was held is
let go, and the process comes back. Afterwards the observer compares everything with everything.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from redis import Redis
from support import AGENT, prepare, request, wait_until
from world import Job, Observer, World, end_of, submit

from order_queues import waiting_orders
from patience import PATIENCE_SECONDS
from relay import Command, Point
from tachikoma import Client, ExecState
from tachikoma.redis import keys
from tachikoma_orchestrator.executions.record import Record
from tachikoma_orchestrator.store.scripts import Script

_ADMIT, _TRANSITION = (Script(name).sha1.encode() for name in ("admit", "transition"))

SUCCEEDED, EXPIRED, LOST, REJECTED = ExecState.SUCCEEDED, ExecState.EXPIRED, ExecState.LOST, ExecState.REJECTED


def _admits(job: Job, command: Command) -> bool:
    return command[:2] == [b"EVALSHA", _ADMIT] and command[3] == keys.execution(job.id).encode()


def _claims(job: Job, command: Command) -> bool:
    return command[:2] == [b"SET", keys.claim(AGENT, job.id).encode()]


def _takes(_: Job, command: Command) -> bool:
    return command[:1] == [b"BRPOP"]


def _writes(job: Job, command: Command) -> bool:
    return command[:2] == [b"XADD", keys.output(AGENT, job.id).encode()]


def _taken(redis: Redis, job: Job) -> bool:
    # The ledger has it and its queue lost it: admission writes both at once.
    return bool(redis.exists(keys.execution(job.id))) and not waiting_orders(redis, AGENT)


def _reports(job: Job, command: Command) -> bool:
    return command[:2] == [b"SET", keys.result(AGENT, job.id).encode()]


def _ends(job: Job, command: Command) -> bool:
    if command[:2] != [b"EVALSHA", _TRANSITION] or command[3] != keys.execution(job.id).encode():
        return False
    arguments = json.loads(command[3 + int(command[2])])
    return bool(arguments["terminal"])


@dataclass(frozen=True)
class Spot:
    """A named point of an execution."""

    name: str
    process: str
    matches: Callable[[Job, Command], bool]
    #: Tells that what comes before it is done, where the answer is held.
    done: Callable[[Redis, Job], object] | None = None
    #: Whether its command runs on until it is told to end.
    runs: bool = False


def _ended(redis: Redis, job: Job) -> bool:
    return Record.parse(job.id, redis.hgetall(keys.execution(job.id))).state.terminal  # type: ignore[arg-type]


ORCHESTRATOR, SPAWNER, REDIS = "orchestrator", f"{AGENT}/spawner", "redis"
SPOTS = (
    Spot("before-admission", ORCHESTRATOR, _admits),
    Spot("after-admission", ORCHESTRATOR, _admits, lambda redis, job: redis.exists(keys.execution(job.id))),
    Spot("before-claim", AGENT, _claims),
    Spot("after-claim", AGENT, _claims, lambda redis, job: redis.exists(keys.claim(AGENT, job.id))),
    Spot("before-output", AGENT, _writes, runs=True),
    Spot("after-output", AGENT, _writes, lambda redis, job: redis.exists(keys.output(AGENT, job.id)), runs=True),
    Spot("before-receipt", AGENT, _reports),
    Spot("after-receipt", AGENT, _reports, lambda redis, job: redis.exists(keys.result(AGENT, job.id))),
    Spot("before-end", ORCHESTRATOR, _ends),
    Spot("after-end", ORCHESTRATOR, _ends, _ended),
    # The last one: while it is held the agent takes nothing more.
    Spot("taken", AGENT, _takes, _taken),
)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, redis_server: Path | None) -> Iterator[World]:
    with World(prepare(tmp_path_factory.mktemp("points")), redis_server=redis_server) as running:
        yield running


class Round:
    """Executions, one at each point."""

    def __init__(self, world: World, folder: Path, name: str) -> None:
        self.world = world
        self.go = folder / "go"
        self.jobs = {spot: Job.make(folder, f"{name}-{spot.name}", go=self.go if spot.runs else None) for spot in SPOTS}
        self._client = Client(world.profile())
        self._pool = ThreadPoolExecutor(len(SPOTS))
        self._submitting: list[Future[None]] = []
        self._held: dict[str, tuple[str, Point]] = {}

    def reach(self) -> None:
        """Bring each to its point."""
        # Redis forgets its scripts when it is started; what is held at the first try would only tell it of them.
        assert self._client.execute(request("true")).state is SUCCEEDED
        with self.world.direct() as redis:
            for spot, job in self.jobs.items():
                point = self.world.relays.hold(
                    spot.process,
                    lambda command, spot=spot, job=job: spot.matches(job, command),
                    answer=spot.done is not None,
                )
                self._held[spot.name] = spot.process, point
                self._submitting.append(self._pool.submit(submit, self._client, job))
                wait_until(point.reached.is_set, f"{job.id} is there")
                if spot.done is not None:
                    wait_until(lambda spot=spot, job=job: spot.done(redis, job), f"{job.id} got so far")

    def let_go(self, *but: str) -> None:
        """Let go of what is still held, but for some points."""
        for name, (process, point) in list(self._held.items()):
            if name not in but:
                self.world.relays.let_go(process, point)
                del self._held[name]

    def finish(self) -> dict[str, ExecState]:
        """How each ended, by its point, when everything was compared."""
        self.go.touch()
        self.world.wait_for_agents()
        for submitted in self._submitting:
            submitted.result(PATIENCE_SECONDS)
        self._pool.shutdown()
        observer = Observer(self.world, self.jobs.values())
        observer.wait_for_the_ends()
        for job in self.jobs.values():
            end_of(self._client, job)
        self._client.close()
        observer.check()
        return {spot.name: job.told[-1] for spot, job in self.jobs.items()}


# What may become of executions at each point where that is not success.
#: What a killed worker had claimed and not begun nobody can tell more of; what it was about to be given is gone.
_WORKER_KILLED = {"before-claim": {LOST}, "after-claim": {LOST}, "taken": {EXPIRED}}
#: With the spawner everything goes that runs, and the worker ends; what comes to it meanwhile may be lost as well.
_COMING = {SUCCEEDED, LOST, REJECTED, EXPIRED}
_SPAWNER_KILLED = {
    "before-admission": _COMING, "after-admission": _COMING, "taken": _COMING,
    "before-claim": {LOST, REJECTED}, "after-claim": {LOST, REJECTED}, "before-output": {LOST}, "after-output": {LOST},
}  # fmt: skip


#: What no agent has started yet may, on a slow machine, wait too long.
_NOT_STARTED = ("before-admission", "after-admission", "before-claim", "after-claim", "taken")


def _check(ends: dict[str, ExecState], otherwise: dict[str, set[ExecState]]) -> None:
    late = {name: {EXPIRED} if name in _NOT_STARTED else set() for name in ends}
    allowed = {name: otherwise.get(name, {SUCCEEDED}) | late[name] for name in ends}
    assert {name: end for name, end in ends.items() if end not in allowed[name]} == {}


@pytest.mark.parametrize(
    ("victim", "otherwise"),
    [(ORCHESTRATOR, {}), (AGENT, _WORKER_KILLED), (SPAWNER, _SPAWNER_KILLED), (REDIS, {})],
    ids=["orchestrator", "worker", "spawner", "redis"],
)
def test_killed_while_executions_are_at_every_point(
    world: World, tmp_path: Path, victim: str, otherwise: dict[str, set[ExecState]]
) -> None:
    run = Round(world, tmp_path, f"kill-{victim.replace('/', '-')}")
    run.reach()
    world.kill(victim)
    run.let_go()
    world.start_again(victim)
    _check(run.finish(), otherwise)


@pytest.mark.parametrize(
    "victim", [ORCHESTRATOR, AGENT, SPAWNER, REDIS], ids=["orchestrator", "worker", "spawner", "redis"]
)
def test_stopped_while_executions_are_at_every_point(world: World, tmp_path: Path, victim: str) -> None:
    run = Round(world, tmp_path, f"stop-{victim.replace('/', '-')}")
    run.reach()
    with world.stopped(victim):
        run.let_go()
    _check(run.finish(), {})


def test_a_worker_that_was_stopped_for_too_long_has_lost_what_it_held(world: World, tmp_path: Path) -> None:
    run = Round(world, tmp_path, "stop-long")
    run.reach()
    given_up = ("before-claim", "after-claim", "before-output", "after-output")
    with world.stopped(AGENT), world.direct() as redis:
        # Time would end its lease when its next heartbeat is long overdue. Here that one may come seconds after the
        # worker runs again; until then it takes nothing.
        run.let_go("taken")
        redis.delete(keys.info(AGENT))
        observer = Observer(world, [job for spot, job in run.jobs.items() if spot.name in given_up])
        ends = observer.wait_for_the_ends()
        assert {state for exec_id, state in ends.items() if not exec_id.endswith("before-claim")} == {LOST}
    world.wait_for_agents()
    run.let_go()
    _check(run.finish(), {name: {LOST} for name in given_up})


def test_a_worker_killed_while_it_asks_for_a_start_does_not_ask_twice(world: World, tmp_path: Path) -> None:
    job = Job.make(tmp_path, "asks-for-a-start")
    with Client(world.profile()) as client:
        with world.stopped(SPAWNER):
            submit(client, job)
            wait_until((world.data / "agents" / AGENT / "spool" / job.id).exists, "its spool is begun")
            world.kill(AGENT)
        world.start_again(AGENT)
        # The spawner may have read the request of the dead worker, or not.
        assert end_of(client, job) in (SUCCEEDED, LOST)
    Observer(world, [job]).check()


def test_redis_hears_of_a_claim_only_when_it_is_on_the_agents_disk(world: World, tmp_path: Path) -> None:
    job = Job.make(tmp_path, "on-disk-first")
    point = world.relays.hold(AGENT, lambda command: _claims(job, command))
    with Client(world.profile()) as client:
        submit(client, job)
        wait_until(point.reached.is_set, "it is about to be claimed")
        with sqlite3.connect(f"file:{world.data}/agents/{AGENT}/journal.db?mode=ro", uri=True) as journal:
            rows = journal.execute("SELECT done FROM execution WHERE id = ?", (job.id,)).fetchall()
        journal.close()
        assert rows == [(0,)]
        world.relays.let_go(AGENT, point)
        assert end_of(client, job) is SUCCEEDED
    Observer(world, [job]).check()


def test_an_end_that_is_told_again_is_told_as_it_was(world: World, tmp_path: Path) -> None:
    """By a worker that was killed before it could note that its receipt was delivered, and by the next."""
    job = Job.make(tmp_path, "told-again")
    channel = keys.result(AGENT, job.id)
    point = world.relays.hold(AGENT, lambda command: _reports(job, command), answer=True)
    with Client(world.profile()) as client, world.direct() as redis, redis.pubsub() as listening:
        listening.subscribe(channel)
        assert listening.get_message(timeout=PATIENCE_SECONDS)["type"] == "subscribe"
        submit(client, job)

        def told() -> bytes:
            message = wait_until(lambda: listening.get_message(timeout=1), "it is told")
            return bytes(message["data"])

        first = told()
        wait_until(point.reached.is_set, "its answer is held")
        world.kill(AGENT)
        world.relays.let_go(AGENT, point)
        world.start_again(AGENT)
        assert told() == first == redis.get(channel)
        assert end_of(client, job) is SUCCEEDED
    Observer(world, [job]).check()
