"""Many executions while random faults happen, from a seed that is printed.

TACHIKOMA_TEST_SEED repeats a run's faults; TACHIKOMA_TEST_EXECUTIONS says how many executions there are. `tox -e soak`
runs the same program with ten times as many.
"""

from __future__ import annotations

import asyncio
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from redis.exceptions import RedisError
from support import prepare, wait_until
from world import Job, Observer, World

from tachikoma import AgentOffline, AsyncClient, ExecRequest, ExecResponse, ExecState, ResourceExhausted, Unavailable
from tachikoma.redis import keys

EXECUTIONS = int(os.environ.get("TACHIKOMA_TEST_EXECUTIONS", "1000"))
SEED = int(os.environ.get("TACHIKOMA_TEST_SEED") or random.randrange(10**6))
#: Executions under way at once.
AT_ONCE = 100
#: One fault in so many executions.
PER_FAULT = 15
#: When nothing has ended for so long, something is done all the same; it may be to undo what keeps it from going on.
STALL_SECONDS = 0.5
AGENTS, ORCHESTRATORS = ("agent-1", "agent-2"), ("orchestrator", "orchestrator-2")
#: Calls that may be made again: the id makes it safe.
_AGAIN = (Unavailable, AgentOffline, ResourceExhausted)
#: Longest a caller tries; the bound of an execution is far below it.
PATIENCE_SECONDS = 90.0

pytestmark = pytest.mark.timeout(100 + EXECUTIONS // 5)


@dataclass
class Plan:
    """An execution, and what its caller does."""

    job: Job
    #: Whether it follows the output, asks for the end, or cancels.
    manner: str


def _plans(folder: Path, dice: random.Random) -> list[Plan]:
    plans = []
    for number in range(EXECUTIONS):
        agent, manner = dice.choice(AGENTS), dice.choices(("execute", "follow", "cancel"), (6, 3, 1))[0]
        kind = dice.choices(("short", "long", "timeout"), (8, 2, 1))[0]
        job = Job.make(
            folder,
            f"job-{number}",
            agent=agent,
            lines=dice.choice((0, 1, 100, 5000)),
            exit_code=dice.choice((0, 0, 0, 7)),
        )
        if kind != "short":
            # It never ends, or after a while.
            script = f'echo $$ >> "$0"; exec sleep {600 if kind == "timeout" else dice.uniform(0.1, 1):.2f}'
            request = ExecRequest(
                id=job.id, agent_id=agent, command=("/bin/sh", "-c", script, str(job.mark)),
                timeout=0.5 if kind == "timeout" else 60,
            )  # fmt: skip
            job = Job(request, job.mark, stdout=b"", stderr=b"")
        plans.append(Plan(job, manner))
    return plans


class Callers(threading.Thread):
    """All callers, in an event loop of their own."""

    def __init__(self, world: World, plans: list[Plan], seed: int) -> None:
        super().__init__(name="callers", daemon=True)
        self._world, self._plans, self._dice = world, plans, random.Random(seed)
        self.done = 0
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            asyncio.run(self._run())
        except BaseException as error:
            self.error = error

    async def _run(self) -> None:
        self._clients = [AsyncClient(self._world.profile_of(name)) for name in ORCHESTRATORS]
        slots = asyncio.Semaphore(AT_ONCE)

        async def one(plan: Plan) -> None:
            async with slots:
                plan.job.told.append((await self._one(plan)).state)
                self.done += 1

        await asyncio.gather(*map(one, self._plans))
        for client in self._clients:
            await client.close()

    async def _one(self, plan: Plan) -> ExecResponse:
        """Do one, again and again with whichever orchestrator, until its end is told."""
        give_up = time.monotonic() + PATIENCE_SECONDS
        seen, seq = {"STDOUT": b"", "STDERR": b""}, 0
        cancelled = False
        while True:
            client = self._dice.choice(self._clients)
            try:
                if plan.manner == "cancel" and not cancelled:
                    await client.submit(plan.job.request)
                    await asyncio.sleep(self._dice.uniform(0, 0.2))
                    await client.cancel(plan.job.id)
                    cancelled = True
                if plan.manner != "follow":
                    return await client.execute(plan.job.request)
                await client.submit(plan.job.request)
                async for output in client.attach(plan.job.id, after_seq=seq):
                    seq = max(seq, output.seq)
                    if output.data:
                        seen[output.kind.name] += output.data
                    if output.result is not None:
                        if output.result.state in (ExecState.SUCCEEDED, ExecState.FAILED):
                            assert (seen["STDOUT"], seen["STDERR"]) == (plan.job.stdout, plan.job.stderr), plan.job.id
                        return output.result
            except _AGAIN:
                assert time.monotonic() < give_up, f"{plan.job.id} has no end"
                await asyncio.sleep(self._dice.uniform(0.02, 0.2))


class Faults:
    """What may happen, each undone a while later."""

    def __init__(self, world: World, dice: random.Random) -> None:
        self._world, self._dice = world, dice
        #: What undoes a fault, by what it was done to.
        self._undo: dict[str, Callable[[], None]] = {}
        self.count: Counter[str] = Counter()

    def strike(self) -> None:
        """Undo some fault, or do another."""
        self._bring_back()
        if self._undo and self._dice.random() < 0.5:
            self._undo.pop(self._dice.choice(sorted(self._undo)))()
            return
        kinds = (self._kill, self._stop, self._cut, self._silence, self._spawner, self._disorder)
        kind = self._dice.choices(kinds, (6, 4, 3, 4, 1, 4))[0]
        kind()

    def mend(self) -> None:
        """Undo everything, and wait until all is there again, and takes what waits for it.

        A worker whose spawner was killed is there for a while yet, and takes nothing.
        """
        while self._undo:
            self._undo.popitem()[1]()

        def settled() -> bool:
            self._bring_back()
            with self._world.direct() as redis:
                return self._world.all_ready() and not any(redis.llen(keys.queue(agent)) for agent in AGENTS)

        wait_until(settled, "everything runs again", 60)

    def _victim(self, *more: str) -> str | None:
        """Something that nothing was done to; always one orchestrator and one agent are left alone."""
        blocked = (
            {name for name in self._undo if name in AGENTS},
            {name for name in self._undo if name in ORCHESTRATORS},
        )
        free = [
            *(AGENTS if not blocked[0] else ()), *(ORCHESTRATORS if not blocked[1] else ()),
            *(item for item in more if item not in self._undo),
        ]  # fmt: skip
        return self._dice.choice(free) if free else None

    def _bring_back(self) -> None:
        """Start what has ended without our doing: a worker whose spawner is gone."""
        for agent in AGENTS:
            if agent not in self._undo and not self._world.agents[agent].alive:
                self._world.agents[agent].start()

    def _note(self, kind: str, victim: str) -> None:
        self.count[f"{kind} {victim}"] += 1

    def _kill(self) -> None:
        if (victim := self._victim("redis")) is not None:
            self._world.kill(victim)
            self._note("killed", victim)
            part = self._world.part(victim)
            if victim == "redis":
                part.start()
            else:
                self._undo[victim] = lambda: part.start() and None

    def _stop(self) -> None:
        if (victim := self._victim("redis")) is not None:
            process = psutil.Process(self._world.pid(victim))
            process.suspend()
            self._note("stopped", victim)
            self._undo[victim] = process.resume

    def _cut(self) -> None:
        if (victim := self._victim()) is not None:
            relays = self._world.relays
            relays.do(relays[victim].cut())
            self._note("cut off", victim)
            self._undo[victim] = lambda: relays.do(relays[victim].mend())

    def _silence(self) -> None:
        if (victim := self._victim()) is not None:
            relays = self._world.relays
            up, down = self._dice.choice(((True, False), (False, True), (True, True)))
            relays.do(relays[victim].silence(up=up, down=down))
            self._note("silenced", victim)

            def undo() -> None:
                # What was under way arrives late, or never.
                if self._dice.random() < 0.5:
                    relays.do(relays[victim].cut())
                relays.do(relays[victim].mend())

            self._undo[victim] = undo

    def _spawner(self) -> None:
        agent = self._dice.choice(AGENTS)
        with suppress(LookupError, psutil.NoSuchProcess):
            self._world.kill(f"{agent}/spawner")
            self._note("killed", "spawner")

    def _disorder(self) -> None:
        """Copy what waits on a queue, and mix it up."""
        if "redis" in self._undo:
            # It is stopped, and would answer only when somebody lets it go on.
            return
        queue = keys.queue(self._dice.choice(AGENTS))
        with suppress(RedisError), self._world.direct() as redis:
            messages = redis.lrange(queue, 0, -1)
            if messages:
                redis.lpush(queue, *self._dice.sample(messages, len(messages)))
                self._note("disordered", "queue")


def test_whatever_happens_each_execution_has_one_end_and_at_most_one_start(
    tmp_path: Path, redis_server: Path | None, capsys: pytest.CaptureFixture[str]
) -> None:
    with capsys.disabled():
        print(f"\n{EXECUTIONS} executions, TACHIKOMA_TEST_SEED={SEED}")
    dice = random.Random(SEED)
    marks = tmp_path / "marks"
    marks.mkdir()
    plans = _plans(marks, dice)
    with World(
        prepare(tmp_path), agents=len(AGENTS), orchestrators=len(ORCHESTRATORS), queue_timeout="6s",
        redis_server=redis_server, environment={"TACHIKOMA_LEASE": "6s"},
    ) as world:  # fmt: skip
        faults = Faults(world, dice)
        callers = Callers(world, plans, SEED)
        callers.start()
        for number in range(PER_FAULT, EXECUTIONS, PER_FAULT):
            before = time.monotonic()
            while callers.done < number and callers.is_alive() and time.monotonic() - before < STALL_SECONDS:
                time.sleep(0.01)
            faults.strike()
        faults.mend()
        done = -1
        while callers.is_alive() and callers.done > done:
            done = callers.done
            callers.join(PATIENCE_SECONDS)
        if callers.error is not None:
            raise callers.error
        waiting = [plan.job for plan in plans if not plan.job.told]
        assert not waiting, f"{[job.id for job in waiting]} were told no end; by the ledger: " + str(
            Observer(world, waiting).states()
        )
        faults.mend()
        ends = Observer(world, [plan.job for plan in plans]).check()
    with capsys.disabled():
        print(", ".join(f"{count} {state}" for state, count in ends.most_common()))
        print(", ".join(f"{fault} {count}" for fault, count in sorted(faults.count.items())))
    # That it is no proof of nothing.
    assert ends[ExecState.SUCCEEDED] + ends[ExecState.FAILED] > EXECUTIONS / 4
    assert sum(faults.count.values()) > EXECUTIONS / PER_FAULT / 4
