"""Callers of many executions, each in its own manner, until each is answered."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from world import Job, World

from tachikoma import (
    AgentOffline,
    AgentUnknown,
    AsyncClient,
    ExecRequest,
    ExecResponse,
    ExecState,
    FailedPrecondition,
    OutputAltered,
    RecordAltered,
    ResourceExhausted,
    Unavailable,
)
from tachikoma.errors import NotFound, ResultUnknown, TachikomaError

__all__ = ["PATIENCE_SECONDS", "Callers", "Plan", "plans"]

#: Executions in progress at once.
AT_ONCE = 100
#: Longest time that a caller tries. One attempt takes 45 s at an orchestrator that first hangs and then is gone.
PATIENCE_SECONDS = 180.0
#: Calls that may be repeated: the id makes it safe. An agent is unknown to an emptied Redis until its next heartbeat.
_AGAIN = (Unavailable, AgentOffline, AgentUnknown, ResourceExhausted)
#: Answers to the caller of an execution whose keys were lost.
_LOST = (NotFound, ResultUnknown, RecordAltered, OutputAltered)


@dataclass
class Plan:
    """An execution, and what its caller does."""

    job: Job
    #: The caller follows the output, asks for the result, or cancels.
    manner: str
    #: The state or the class of the error that the caller got; empty before.
    answer: str = ""


def plans(folder: Path, dice: random.Random, number_of_plans: int, agents: tuple[str, ...]) -> list[Plan]:
    """Return a number of plans whose commands mark their starts in a folder."""
    made = []
    for number in range(number_of_plans):
        agent, manner = dice.choice(agents), dice.choices(("execute", "follow", "cancel"), (6, 3, 1))[0]
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
        made.append(Plan(job, manner))
    return made


class Callers(threading.Thread):
    """All callers, in an event loop of their own."""

    def __init__(self, world: World, made: list[Plan], seed: int) -> None:
        super().__init__(name="callers", daemon=True)
        self._world, self._plans, self._dice = world, made, random.Random(seed)
        self._agents = {plan.job.id: plan.job.agent for plan in made}
        #: Executions whose caller has made a call, and those of them whose caller waits.
        self.begun: set[str] = set()
        self.under_way: set[str] = set()
        #: Executions that lost a key; noted before it is lost.
        self.hurt: set[str] = set()
        #: Executions whose caller waited when Redis was killed. It may have lost what it answered in its last two
        #: seconds, so their callers submit them again (decision 0045).
        self.doubtful: set[str] = set()
        #: Number of answered callers.
        self.done = 0
        self.error: BaseException | None = None

    def agent_of(self, exec_id: str) -> str:
        """Return the agent of an execution."""
        return self._agents[exec_id]

    def answered(self) -> list[Job]:
        """Return the executions whose callers have a state."""
        return [plan.job for plan in self._plans if plan.job.told]

    def run(self) -> None:
        try:
            asyncio.run(self._run())
        except ExceptionGroup as group:
            self.error = group.exceptions[0]
        except BaseException as error:
            self.error = error

    async def _run(self) -> None:
        self._clients = [AsyncClient(self._world.profile_of(name)) for name in self._world.orchestrators]
        slots = asyncio.Semaphore(AT_ONCE)

        async def take(plan: Plan) -> None:
            async with slots:
                self.begun.add(plan.job.id)
                self.under_way.add(plan.job.id)
                await self._carry_out(plan)
                self.under_way.discard(plan.job.id)
                self.done += 1

        async with asyncio.TaskGroup() as group:
            for plan in self._plans:
                group.create_task(take(plan))
        for client in self._clients:
            await client.close()

    async def _carry_out(self, plan: Plan) -> None:
        try:
            response = await self._answer(plan)
        except _LOST as error:
            if isinstance(error, ResultUnknown) and plan.job.id in self.doubtful:
                # The whole of it was in those two seconds.
                self.hurt.add(plan.job.id)
            if plan.job.id not in self.hurt:
                raise
            plan.answer = type(error).__name__
        else:
            plan.answer = response.state
            plan.job.told.append(response.state)

    async def _answer(self, plan: Plan) -> ExecResponse:
        """Make the plan's calls at any orchestrator, again and again, until there is an answer."""
        give_up = time.monotonic() + PATIENCE_SECONDS
        seen: dict[str, bytearray] = {"STDOUT": bytearray(), "STDERR": bytearray()}
        #: The number of the last chunk, and whether the execution was cancelled.
        progress = [0, False]
        first = self._dice.randrange(len(self._clients))
        for attempt in count(first):
            # After a failure the next orchestrator, as a caller with several addresses does.
            client = self._clients[attempt % len(self._clients)]
            try:
                if plan.manner == "cancel" and not progress[1]:
                    await client.submit(plan.job.request)
                    # A moment of chance, in which a fault may happen.
                    await asyncio.sleep(self._dice.uniform(0, 0.2))
                    await client.cancel(plan.job.id)
                    progress[1] = True
                if plan.manner != "follow":
                    return await client.execute(plan.job.request)
                await client.submit(plan.job.request)
                return await self._follow(client, plan, seen, progress)
            except ResultUnknown:
                raise
            except (*_AGAIN, FailedPrecondition, NotFound) as error:
                lost = isinstance(error, NotFound) and plan.job.id in self.doubtful - self.hurt
                if not (lost or _passes(error)):
                    raise
                if time.monotonic() > give_up:
                    raise AssertionError(f"{plan.job.id} has no answer; the last error was: {error}") from error
                # A moment of chance, in which a fault may happen.
                await asyncio.sleep(self._dice.uniform(0.02, 0.2))
        raise AssertionError("the attempts never end by themselves")

    async def _follow(
        self, client: AsyncClient, plan: Plan, seen: dict[str, bytearray], progress: list[int]
    ) -> ExecResponse:
        """Follow the output to its end, and check it."""
        async for output in client.attach(plan.job.id, after_seq=progress[0]):
            progress[0] = max(progress[0], output.seq)
            if output.data:
                seen[output.kind.name] += output.data
            if output.result is not None:
                whole = (bytes(seen["STDOUT"]), bytes(seen["STDERR"])) == (plan.job.stdout, plan.job.stderr)
                ran = output.result.state in (ExecState.SUCCEEDED, ExecState.FAILED)
                if ran and not whole and plan.job.id not in self.hurt:
                    raise AssertionError(f"the output of {plan.job.id} is not whole")
                return output.result
        raise AssertionError(f"the output of {plan.job.id} ended without a result")


def _passes(error: TachikomaError) -> bool:
    """Return True if the call can be repeated; a refusal because of an agent's clock passes when it is set right."""
    return isinstance(error, _AGAIN) or "its clock is" in str(error)
